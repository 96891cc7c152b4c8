"""The run as a whole: it learns, resumes bit for bit, compiles once, and what it leaves behind."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import grpo_jax
from experiments import toy
from grpo_jax import algorithm, anchors, continuous_batching, objectives, tasks, training_loop
from grpo_jax.ops import controllers, kl, references
from grpo_jax.ops.advantages import group_normalize
from grpo_jax.policy import completion_log_probs
from grpo_jax.update import update

SEVERAL = {"learning_rate": 1e-2, "kl_coef": 0.1, "num_minibatches": 2, "num_epochs": 2}
METHODS = pytest.mark.parametrize(
    "fields", [toys.ONE_UPDATE, SEVERAL], ids=["one update", "four updates and a reference"]
)


@pytest.fixture(autouse=True)
def shared_optimizer(monkeypatch):
    monkeypatch.setattr(training_loop, "make_optimizer", toys.make_optimizer)


_finished = {}


@pytest.fixture
def twenty(fields, tmp_path_factory):
    """20 steps of these fields in one go; made once."""
    name = json.dumps(fields)
    if name not in _finished:
        _finished[name] = tmp_path_factory.mktemp("twenty") / "run"
        toys.run(_finished[name], steps=20, **fields)
    return _finished[name]


def failing_at(step):
    """A reward function that fails once it is asked for this step's first group."""
    task, calls = tasks.MaxOfThree(), []

    def reward(question, completions):
        calls.append(question.number)
        if len(calls) > (step - 1) * toys.SMALL["num_prompts"]:
            raise OSError("the disk of the judge is full")
        return task.reward(question, completions)

    return {task.name: reward}


# -- it learns -----------------------------------------------------------------------------------


def test_the_toy_learns_from_nothing(tmp_path):
    toy.main(toy.Config(run_dir=str(tmp_path / "run"), eval_questions=0, show_every=0))
    rewards = [line["reward"] for line in toys.lines(tmp_path / "run", "metrics.jsonl")]
    assert len(rewards) == 100
    assert np.mean(rewards[:3]) < 0.2  # it did not begin there
    assert np.mean(rewards[-10:]) >= 0.7


# -- it resumes ----------------------------------------------------------------------------------


@METHODS
def test_eight_steps_and_a_resume_are_twenty_steps(fields, twenty, tmp_path):
    toys.run(tmp_path / "run", steps=8, **fields)
    before = toys.saved_state(tmp_path / "run", **fields)[0]
    toys.run(tmp_path / "run", steps=20, resume=True, **fields)
    toys.assert_same_run(tmp_path / "run", twenty, **fields)
    after = toys.saved_state(tmp_path / "run", **fields)[0]
    assert before[".step"] == 8
    assert after[".step"] == 20
    assert any(not np.array_equal(before[path], after[path]) for path in before if "param" in path)


@METHODS
def test_a_run_that_died_between_checkpoints_resumes_from_the_last_one(fields, twenty, tmp_path):
    directory = tmp_path / "run"
    with pytest.raises(grpo_jax.rewards.RewardError, match="judge"):
        toys.run(directory, steps=20, checkpoint_every=5, rewards=failing_at(step=9), **fields)
    assert [line["step"] for line in toys.lines(directory, "metrics.jsonl")] == [*range(1, 9)]
    # What a kill in the middle of a write leaves.
    for name in ("metrics.jsonl", "completions.jsonl", "evaluations.jsonl"):
        with (directory / name).open("a") as file:
            file.write(json.dumps({"step": 9, "reward": 99.0, "completions": []}) + "\n")
            file.write('{"step": 10, "rewa')
    toys.run(directory, steps=20, resume=True, **fields)
    toys.assert_same_run(directory, twenty, **fields)
    assert (directory / "evaluations.jsonl").read_text() == ""


@pytest.mark.parametrize("fields", [toys.ONE_UPDATE], ids=["one update"])
def test_resuming_a_finished_run_changes_nothing(fields, twenty, tmp_path):
    toys.run(tmp_path / "run", steps=20, **fields)
    toys.run(tmp_path / "run", steps=20, resume=True, **fields)
    toys.assert_same_run(tmp_path / "run", twenty, **fields)


def test_what_an_objective_keeps_is_resumed(tmp_path):
    """A moved reference, a controlled coefficient, and the place after phases of sampling."""
    paper = dataclasses.replace(
        objectives.dapo(max_sampling_rounds=3),
        kl=kl.k3,
        kl_coef=0.1,
        kl_controller=partial(controllers.adaptive_kl_coef, target=1e-3, horizon=10, num_samples=4),
        reference=partial(references.refresh, every=2),
    )
    fields = toys.ONE_UPDATE | {"paper": paper}
    toys.run(tmp_path / "whole", steps=6, **fields)
    toys.run(tmp_path / "run", steps=3, **fields)
    before, place = toys.saved_state(tmp_path / "run", **fields)
    toys.run(tmp_path / "run", steps=6, resume=True, **fields)
    toys.assert_same_run(tmp_path / "run", tmp_path / "whole", **fields)
    assert before[".coefs['kl']"] != np.float32(0.1)
    norm = "['norm']['scale']"
    assert not np.array_equal(before[f".ref_params{norm}"], before[f".params{norm}"])
    found = toys.metrics(tmp_path / "whole")
    assert all("dynamic_sampling/rounds" in line for line in found)
    assert place["position"] == 4 * sum(line["dynamic_sampling/rounds"] for line in found[:3])
    # What is logged as trained on has a signal, as long as phases brought enough.
    for line in toys.lines(tmp_path / "whole", "completions.jsonl"):
        if found[line["step"] - 1]["dynamic_sampling/rounds"] < 3:
            assert len({c["reward"] for c in line["completions"]}) > 1


def test_a_greedy_baseline_is_no_part_of_the_record(tmp_path):
    """ReMax with one completion a prompt, as its paper has it."""
    toys.run(tmp_path / "run", steps=2, paper=objectives.remax(kl_coef=0.0), group_size=1)
    for line in toys.lines(tmp_path / "run", "completions.jsonl"):
        assert len(line["completions"]) == 1
    found = toys.metrics(tmp_path / "run")
    mean = np.mean([c["reward"] for c in _completions(tmp_path / "run", step=1)])
    np.testing.assert_allclose(found[0]["reward"], mean, rtol=1e-6)


def _completions(run_dir, step):
    lines = toys.lines(run_dir, "completions.jsonl")
    return [c for line in lines if line["step"] == step for c in line["completions"]]


def test_a_group_of_one_is_refused_where_groups_are_compared(tmp_path):
    with pytest.raises(ValueError, match="group_size is 1; a group of one has nothing"):
        toys.run(tmp_path / "run", steps=2, group_size=1)
    assert not (tmp_path / "run").exists()


def test_a_signal_is_judged_by_the_function_that_is_named(tmp_path):
    def task(question, completions):
        return [1.0] * len(completions)

    def punished(question, completions):
        return [-i / 10 for i in range(len(completions))]

    fields = {"rewards": {"task": task, "punished": punished}, "steps": 1, "group_size": 4}
    paper = objectives.dapo(max_sampling_rounds=2)
    toys.run(tmp_path / "sum", paper=paper, **fields)
    toys.run(tmp_path / "task", paper=paper, signal_reward="task", **fields)
    rounds = [
        toys.metrics(tmp_path / name)[0]["dynamic_sampling/rounds"] for name in ("sum", "task")
    ]
    assert rounds == [1, 2]
    with pytest.raises(ValueError, match="signal_reward is 'x'; it must be one of task, punished"):
        toys.run(tmp_path / "no", paper=paper, signal_reward="x", **fields)
    with pytest.raises(ValueError, match="selects nothing by signal"):
        toys.run(tmp_path / "no", signal_reward="task", **fields)


def test_resuming_keeps_the_schedule(tmp_path):
    fields = {"warmup_steps": 3, "lr_schedule": "cosine", "learning_rate": 1e-2, "steps": 6}
    toys.run(tmp_path / "whole", **fields)
    with pytest.raises(grpo_jax.rewards.RewardError):
        toys.run(tmp_path / "run", checkpoint_every=2, rewards=failing_at(step=5), **fields)
    toys.run(tmp_path / "run", resume=True, **fields)
    toys.assert_same_run(tmp_path / "run", tmp_path / "whole", **fields)
    rates = [line["learning_rate"] for line in toys.metrics(tmp_path / "run")]
    np.testing.assert_allclose(rates[:4], [0.01 / 3, 0.02 / 3, 0.01, 0.01], rtol=1e-6)
    assert 0 < rates[5] < rates[4] < rates[3]


def test_evaluations_are_the_same_after_a_resume_and_not_asked_twice(tmp_path):
    # As many questions and samples as a step has: nothing new to compile but the greedy answer.
    fields = toys.ONE_UPDATE | {"eval_questions": 4, "eval_samples": 4, "eval_every": 3}
    whole = toys.run(tmp_path / "whole", steps=6, **fields)
    toys.run(tmp_path / "run", steps=3, **fields)
    resumed = toys.run(tmp_path / "run", steps=6, resume=True, **fields)
    one, other = (
        [
            {key: value for key, value in line.items() if key != "eval_time"}
            for line in toys.lines(tmp_path / name, "evaluations.jsonl")
        ]
        for name in ("whole", "run")
    )
    assert [line["step"] for line in one] == [0, 3, 6]
    assert one == other
    for name in ("held_out_before", "held_out_after", "steps"):
        assert whole[name] == resumed[name]
    assert whole["held_out_before"] == one[0]["eval/sampled/reward"]
    assert whole["held_out_after"] == one[-1]["eval/sampled/reward"]


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT], ids=lambda which: which.name)
def test_a_signal_saves_and_the_run_goes_on_from_there(which, tmp_path):
    directory = tmp_path / "run"
    fields = json.dumps(toys.ONE_UPDATE | {"steps": 1_000_000})
    root = pathlib.Path(__file__).resolve().parent
    process = subprocess.Popen(
        [sys.executable, str(root / "toys.py"), str(directory), fields],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(root.parent)},
    )
    too_late = threading.Timer(180, process.kill)
    too_late.start()
    try:
        output = []
        for line in process.stdout:
            output.append(line)
            if line.split()[:1] == ["4"]:  # the table's line of step 4
                process.send_signal(which)
                break
        output += process.stdout.readlines()
        assert process.wait(timeout=120) == 0, "".join(output)
    finally:
        too_late.cancel()
        process.kill()
    last = toys.saved_state(directory, **toys.ONE_UPDATE)[0][".step"]
    assert last >= 4
    text = "".join(output)
    assert f"stopped by {which.name} after step {last}, which is saved" in text
    assert "--resume" in text
    assert "Traceback" not in text

    steps = int(last) + 3
    toys.run(directory, steps=steps, resume=True, **toys.ONE_UPDATE)
    toys.run(tmp_path / "whole", steps=steps, **toys.ONE_UPDATE)
    toys.assert_same_run(directory, tmp_path / "whole", **toys.ONE_UPDATE)


def test_the_seed_matters_and_nothing_else_does(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        toys.run(tmp_path / name, steps=2, seed=seed, **toys.ONE_UPDATE)
    toys.assert_same_run(tmp_path / "one", tmp_path / "two", **toys.ONE_UPDATE)
    one, three = (toys.lines(tmp_path / name, "completions.jsonl") for name in ("one", "three"))
    assert [line["prompt"] for line in one] != [line["prompt"] for line in three]


# -- it compiles once ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "scorings"),
    [(toys.ONE_UPDATE, 0), (SEVERAL, 1)],
    ids=["one update", "four updates and a reference"],
)
def test_sampling_scoring_and_update_are_traced_and_compiled_once(fields, scorings, tmp_path):
    made, traces = toys.network(), []

    def prefill(*args):
        traces.append(jax.tree.leaves(args[1])[0].shape)
        return made.policy.prefill(*args)

    policy = dataclasses.replace(made.policy, prefill=prefill)
    programs = ("_read", "_begin", "_decode", "_move")
    sampling = [getattr(continuous_batching, name) for name in programs]
    functions = (*sampling, completion_log_probs, update)
    before = [f._cache_size() for f in functions]
    toys.run(tmp_path / "run", steps=5, network=dataclasses.replace(made, policy=policy), **fields)
    # Each reads the prompts once, so each trace is one call of prefill.
    assert len(traces) == 3 + scorings, traces  # and one for the sizes of things
    after = [f._cache_size() for f in functions]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 0, scorings, 1]


def test_how_many_rows_are_decoded_at_once_does_not_change_what_is_drawn(tmp_path):
    for rows in (0, 4, 8):
        toys.run(tmp_path / str(rows), steps=2, rows_at_once=rows, **toys.ONE_UPDATE)
    texts = [
        [line["completions"] for line in toys.lines(tmp_path / str(rows), "completions.jsonl")]
        for rows in (0, 4, 8)
    ]
    assert len(texts[0]) == 8
    assert texts[0] == texts[1] == texts[2]


def test_a_run_that_keeps_the_support_evaluates(tmp_path):
    fields = {"top_k": 5, "keep_support": True, "eval_questions": 4, "eval_every": 1}
    toys.run(tmp_path / "run", steps=2, **toys.ONE_UPDATE | fields)
    asked = toys.lines(tmp_path / "run", "evaluations.jsonl")
    assert [line["step"] for line in asked] == [0, 1, 2]


def test_fewer_rows_at_once_than_a_group_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rows_at_once.* at least the group size, 4"):
        toys.run(tmp_path / "run", rows_at_once=3)
    assert not (tmp_path / "run").exists()


# -- what is computed, and what is not -----------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, []),
        ({"kl_coef": 0.1}, ["ref"]),
        ({"num_epochs": 2}, ["old"]),
        ({"num_minibatches": 2}, ["old"]),
        ({"num_minibatches": 2, "kl_coef": 0.1}, ["old", "ref"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_one_update_needs_no_second_forward_and_no_kl_no_reference(
    fields, passes, tmp_path, monkeypatch
):
    made, loads, scored, batches = toys.network(), [], [], []

    def load():
        loads.append(made.load())
        return loads[-1]

    def log_probs(policy, params, rollout, **kwargs):
        scored.append(params)
        return completion_log_probs(policy, params, rollout, **kwargs)

    def no_update(policy, objective, optimizer, state, batch, **_):
        batches.append(batch)
        return state, {"finite": jnp.array(True), "loss": jnp.array(0.0)}

    monkeypatch.setattr(anchors, "completion_log_probs", log_probs)
    monkeypatch.setattr(algorithm, "update", no_update)
    toys.run(tmp_path / "run", steps=1, network=dataclasses.replace(made, load=load), **fields)
    assert len(loads) == 1 + ("ref" in passes)
    wanted = [loads[0] if name == "old" else loads[1] for name in passes]
    assert len(scored) == len(wanted)
    assert all(one is other for one, other in zip(scored, wanted, strict=True))
    for batch in batches:
        assert (batch.old_log_probs is not None) == ("old" in passes)
        assert (batch.ref_log_probs is not None) == ("ref" in passes)
    assert len(batches) == fields.get("num_minibatches", 1) * fields.get("num_epochs", 1)


def test_the_reference_has_buffers_of_its_own_and_never_moves(tmp_path, monkeypatch):
    references, step = [], training_loop.grpo_step

    def recorded(policy, objective, optimizer, state, ref_params, *args, **kwargs):
        pointers = [
            {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
            for tree in (state.params, ref_params)
        ]
        assert not pointers[0] & pointers[1]
        references.append(ref_params)
        return step(policy, objective, optimizer, state, ref_params, *args, **kwargs)

    monkeypatch.setattr(training_loop, "grpo_step", recorded)
    # The network's own load, not the copying one of `toys`.
    made = dataclasses.replace(toys.network(), load=toys.fresh_network().load)
    toys.run(tmp_path / "run", steps=4, network=made, **SEVERAL)
    assert len({id(reference) for reference in references}) == 1
    initial = made.load()
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), references[-1], initial))
    trained = toys.saved_state(tmp_path / "run", **SEVERAL)[0]
    start = dict(jax.tree.leaves_with_path(initial))
    moved = [
        not np.array_equal(trained[".params" + jax.tree_util.keystr(path)], leaf)
        for path, leaf in start.items()
    ]
    assert all(moved)


@pytest.mark.parametrize("fields", [SEVERAL], ids=["four updates and a reference"])
def test_the_kl_of_the_log_grows_from_near_nothing(fields, twenty):
    kl = [line["kl"] for line in toys.lines(twenty, "metrics.jsonl")]
    assert all(value >= 0 for value in kl)
    assert kl[0] < 0.05 < max(kl[10:])


# -- what it leaves behind -----------------------------------------------------------------------

REWARD_KEYS = {"reward", "reward_std", "frac_reward_zero_std"}
REWARD_KEYS |= {"rewards/max_of_three/mean", "rewards/max_of_three/std"}
COMPLETION_KEYS = {
    f"completions/{name}"
    for name in (
        "mean_length",
        "min_length",
        "max_length",
        "mean_terminated_length",
        "clipped_ratio",
        "parsed_ratio",
    )
}
UPDATE_KEYS = {"loss", "grad_norm", "entropy", "sampler_mismatch/mean", "sampler_mismatch/max"}
UPDATE_KEYS |= {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}
UPDATE_KEYS |= {
    f"clip_ratio/{x}_{y}_mean" for x in ("low", "high") for y in ("positive", "negative")
}
UPDATE_KEYS |= {"ratio/min", "ratio/max", "ratio/ess"}
RUN_KEYS = {"step", "learning_rate", "tokens/seen", "prompts/dropped"}
RUN_KEYS |= {"step_time", "tokens_per_second"}


@METHODS
def test_every_step_logs_every_metric_and_the_sampler_agrees_with_the_scorer(fields, twenty):
    wanted = REWARD_KEYS | COMPLETION_KEYS | UPDATE_KEYS | RUN_KEYS
    wanted |= {"kl", "kl/k1", "kl/k3"} if "kl_coef" in fields else set()
    found = toys.lines(twenty, "metrics.jsonl")
    assert [line["step"] for line in found] == [*range(1, 21)]
    for line in found:
        assert line.keys() == wanted
        assert all(np.isfinite(value) for value in line.values())
        assert 0 <= line["sampler_mismatch/mean"] <= line["sampler_mismatch/max"] <= 1e-4
        assert line["prompts/dropped"] == 0
        assert line["learning_rate"] == pytest.approx(1e-2)
    if "kl_coef" not in fields:  # on-policy: nothing to clip
        assert all(line["clip_ratio/region_mean"] == 0 for line in found)


@METHODS
def test_the_completions_are_those_that_the_metrics_sum_up(fields, twenty):
    groups = toys.lines(twenty, "completions.jsonl")
    task, position, tokens = tasks.MaxOfThree(), 0, 0
    for line in toys.lines(twenty, "metrics.jsonl"):
        of_step = [group for group in groups if group["step"] == line["step"]]
        assert len(of_step) == 4
        rewards = np.array([[row["reward"] for row in g["completions"]] for g in of_step])
        advantages = np.array([[row["advantage"] for row in g["completions"]] for g in of_step])
        assert rewards.shape == (4, 4)
        np.testing.assert_array_equal(
            advantages.astype(np.float32),
            group_normalize(jnp.asarray(rewards, jnp.float32)),
        )
        assert line["reward"] == pytest.approx(rewards.mean(), abs=1e-7)
        assert line["reward_std"] == pytest.approx(rewards.std(axis=1).mean(), abs=1e-7)
        dead = (rewards == rewards[:, :1]).all(axis=1)
        assert line["frac_reward_zero_std"] == dead.mean()
        assert (advantages[dead] == 0).all()
        rows = [row for group in of_step for row in group["completions"]]
        lengths = [row["num_tokens"] for row in rows]
        assert line["completions/mean_length"] == pytest.approx(np.mean(lengths))
        assert line["completions/max_length"] == max(lengths)
        assert line["completions/clipped_ratio"] == pytest.approx(
            np.mean([row["truncated"] for row in rows])
        )
        tokens += sum(lengths) + 4 * len("123=")
        assert line["tokens/seen"] == tokens
        for group in of_step:
            question = task.train(0, position)
            position += 1
            assert (group["question"], group["prompt"], group["answer"]) == (
                question.number,
                question.prompt,
                question.answer,
            )
            for row in group["completions"]:
                assert row["rewards"] == {"max_of_three": row["reward"]}
                assert row["num_tokens"] == len(row["text"]) + (not row["truncated"])
    assert position * 4 == len(groups) * 4 == 20 * 4 * 4


@METHODS
def test_the_run_directory_is_complete(fields, twenty):
    assert {path.name for path in twenty.iterdir()} == {
        *("config.json", "metrics.jsonl", "completions.jsonl", "summary.json", "report.html"),
        "checkpoints",
    }
    saved = json.loads((twenty / "config.json").read_text())
    assert saved["experiment"] == toys.EXPERIMENT
    config = dataclasses.asdict(toys.config(twenty, steps=20, **fields))
    assert saved["config"] == json.loads(json.dumps(config))
    assert saved["versions"]["jax"] == jax.__version__
    summary = json.loads((twenty / "summary.json").read_text())
    assert summary.keys() >= {"held_out_before", "held_out_after", "seconds", "peak_rss_bytes"}
    assert summary["run_dir"] == str(twenty)
    assert summary["steps"] == 20
    assert summary["peak_rss_bytes"] > 2**26
    times = [line["step_time"] for line in toys.lines(twenty, "metrics.jsonl")]
    assert summary["seconds"] == pytest.approx(sum(times), abs=0.01)
    assert "</html>" in (twenty / "report.html").read_text()
