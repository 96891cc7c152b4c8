"""What a run says of rewards that are missing or all equal, and where it says it."""

import dataclasses

import jax
import numpy as np
import pytest
import toys

from grpo_jax import tasks, training_loop
from grpo_jax.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def shared_optimizer(monkeypatch):
    monkeypatch.setattr(training_loop, "make_optimizer", toys.make_optimizer)


def test_several_reward_functions_are_weighted_and_may_not_apply(tmp_path):
    task = tasks.MaxOfThree()

    def length(question, completions):
        return [float(row.num_tokens) for row in completions]

    def odd(question, completions):  # applies to the first question alone
        return [1.0 if question.number == 0 else float("nan")] * len(completions)

    def third(question, completions):  # nothing at all for the third question's group
        return [float("nan")] * len(completions)

    toys.run(
        tmp_path / "run",
        steps=1,
        task=task,
        rewards={"right": task.reward, "length": length, "odd": odd, "third": third},
        reward_weights={"length": -0.5, "odd": 2.0},
        **toys.ONE_UPDATE,
    )
    (line,) = toys.lines(tmp_path / "run", "metrics.jsonl")
    groups = toys.lines(tmp_path / "run", "completions.jsonl")
    for group in groups:
        for row in group["completions"]:
            rewards = row["rewards"]
            assert rewards["length"] == row["num_tokens"]
            assert np.isnan(rewards["odd"]) == (group["question"] != 0)
            assert np.isnan(rewards["third"])
            total = rewards["right"] - 0.5 * rewards["length"]
            total += 2.0 * (group["question"] == 0)
            assert row["reward"] == pytest.approx(total)
    assert line["rewards/odd/mean"] == 1.0
    assert np.isnan(line["rewards/third/mean"])
    assert np.isfinite(line["loss"])


def test_completions_without_any_reward_are_left_out_and_move_nothing(tmp_path):
    task = tasks.MaxOfThree()

    def reward(question, completions):
        values = task.reward(question, completions)
        if question.number == 0:
            return [float("nan")] * len(values)
        return [float("nan"), *values[1:]]

    toys.run(tmp_path / "run", steps=2, rewards={"partly": reward}, **toys.ONE_UPDATE)
    first, second = toys.lines(tmp_path / "run", "metrics.jsonl")
    groups = toys.lines(tmp_path / "run", "completions.jsonl")
    rewards = np.array([[row["reward"] for row in g["completions"]] for g in groups])
    advantages = np.array([[row["advantage"] for row in g["completions"]] for g in groups])
    assert np.isnan(rewards[0]).all()
    assert np.isnan(rewards[:, 0]).all()
    assert np.isfinite(rewards[1:, 1:]).all()
    assert (advantages[np.isnan(rewards)] == 0).all()
    assert first["reward"] == pytest.approx(np.nanmean(rewards[:4]))
    assert second["reward"] == pytest.approx(np.nanmean(rewards[4:]))
    assert np.isfinite([first["loss"], first["grad_norm"], first["reward_std"]]).all()
    assert np.isfinite(
        np.concatenate(
            [
                leaf.ravel()
                for path, leaf in toys.saved_state(tmp_path / "run", **toys.ONE_UPDATE)[0].items()
            ]
        )
    ).all()


def test_nothing_scored_at_all_changes_no_parameter(tmp_path, capsys):
    def reward(question, completions):
        return [float("nan")] * len(completions)

    toys.run(tmp_path / "run", steps=1, rewards={"never": reward}, **toys.ONE_UPDATE)
    (line,) = toys.lines(tmp_path / "run", "metrics.jsonl")
    assert np.isnan(line["reward"])
    assert line["frac_reward_zero_std"] == 1.0
    assert line["grad_norm"] == 0.0
    state = toys.saved_state(tmp_path / "run", **toys.ONE_UPDATE)[0]
    for path, leaf in jax.tree.leaves_with_path(toys.network().load()):
        np.testing.assert_array_equal(state[".params" + jax.tree_util.keystr(path)], leaf)
    assert "after step 1" in capsys.readouterr().out


# -- it says when nothing can be learnt ----------------------------------------------------------


def advice(output):
    return [line for line in output.splitlines() if line.startswith("after step ")]


def test_equal_rewards_are_pointed_out_after_steps_1_5_and_20(tmp_path, capsys):
    def constant(question, completions):
        return [1.1] * len(completions)

    fields = {"rewards": {"constant": constant}} | toys.ONE_UPDATE
    toys.run(tmp_path / "run", steps=3, **fields)
    toys.run(tmp_path / "run", steps=21, resume=True, **fields)
    found = advice(capsys.readouterr().out)
    assert [line.split(":")[0] for line in found] == [f"after step {n}" for n in (1, 5, 20)]
    for line in found:
        assert "all rewards were equal" in line
        assert "1.1" in line
        assert "--group-size" in line
        assert "--temperature" in line
    assert all(line["loss"] == 0 for line in toys.lines(tmp_path / "run", "metrics.jsonl"))
    assert all(line["grad_norm"] == 0 for line in toys.lines(tmp_path / "run", "metrics.jsonl"))


@dataclasses.dataclass(frozen=True)
class Unreadable(tasks.MaxOfThree):
    def parse(self, completion):
        return None


def test_truncation_and_unreadable_answers_are_pointed_out(tmp_path, capsys):
    made = toys.network()
    endless = toys.CharTokenizer(toys.ALPHABET)
    endless.stop_ids = (len(endless),)  # no such token

    def lottery(question, completions):
        return [float(g) for g, _ in enumerate(completions)]

    toys.run(
        tmp_path / "run",
        steps=6,
        task=Unreadable(),
        network=dataclasses.replace(made, tokenizer=endless),
        rewards={"lottery": lottery},
        **toys.ONE_UPDATE,
    )
    found = advice(capsys.readouterr().out)
    assert [line.split(":")[0] for line in found] == ["after step 1"] * 2 + ["after step 5"] * 2
    assert sum("--max-new-tokens" in line for line in found) == 2
    assert sum("no answer could be read" in line for line in found) == 2
    assert not any("equal" in line for line in found)


@pytest.mark.parametrize("fields", [toys.ONE_UPDATE], ids=["one update"])
def test_a_run_that_can_learn_gets_no_advice(fields, tmp_path, capsys):
    toys.run(tmp_path / "run", steps=5, **fields)
    assert advice(capsys.readouterr().out) == []


def test_the_table_has_a_line_a_step_and_groups_now_and_then(tmp_path, capsys):
    toys.run(tmp_path / "run", steps=4, **toys.ONE_UPDATE | {"show_every": 2})
    out = capsys.readouterr().out
    heading = next(line for line in out.splitlines() if line.split()[:2] == ["step", "reward"])
    for word in ("no signal", "KL", "entropy", "clipped", "length", "tok/s", "mismatch", "seconds"):
        assert word in heading
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["2"], ["4"])]
    assert len(rows) == 3
    assert out.count("  question ") == 3  # steps 1, 2 and 4
    assert str(tmp_path / "run") in out


def test_logs_may_be_read_while_a_line_is_being_written(tmp_path):
    directory = RunDirectory(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert directory.read("metrics.jsonl") == [{"step": 1}, {"step": 2}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        directory.read("metrics.jsonl")
