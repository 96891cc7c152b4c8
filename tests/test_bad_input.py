"""Bad input gets one clear error: the value, the rule, the way out. Early, and nothing written."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from safetensors.numpy import load_file, save_file

import grpo_jax
from grpo_jax import algorithm, anchors, cli, evaluate, launch, metrics, runner, tasks
from grpo_jax.data import train_questions
from grpo_jax.models import hf
from grpo_jax.models.network import pretrained
from grpo_jax.rewards import RewardError
from grpo_jax.run_directory import RunStopped
from grpo_jax.tokenizer import CharTokenizer

FIELDS = {"learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def shared_optimizer(monkeypatch):
    monkeypatch.setattr(runner, "make_optimizer", toys.make_optimizer)


@pytest.fixture
def early(monkeypatch):
    """Fails the test if anything is sampled, scored or trained, which is what is compiled."""

    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(algorithm, "sample_continuously", compiled)
    monkeypatch.setattr(anchors, "completion_log_probs", compiled)
    monkeypatch.setattr(algorithm, "update", compiled)
    monkeypatch.setattr(evaluate, "sample_continuously", compiled)


def refused(tmp_path, *parts, error=ValueError, **kwargs):
    """The message of a run that is refused; nothing may have been written."""
    before, existed = toys.contents(tmp_path), (tmp_path / "run").exists()
    with pytest.raises(error) as caught:
        toys.run(tmp_path / "run", **(FIELDS | kwargs))
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert toys.contents(tmp_path) == before
    assert (tmp_path / "run").exists() == existed
    return message


def command(capsys, *args):
    """Runs `grpo-jax`, expects it to be refused; its words in one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grpo-jax", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert "Traceback" not in out + err
    return " ".join(re.sub(r"[│─╭╮╰╯•]", " ", out + err).split())


# -- options and experiments ---------------------------------------------------------------------


@pytest.fixture
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("in_empty_directory", "early")
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["run", "toy", "--group-siz", "4"], ["--group-siz", "--group-size"]),
        (["run", "toy", "--learning_rat", "1"], ["--learning-rate"]),
        (["run", "quickstart", "--kl_coeff", "1"], ["--kl-coef"]),
        (["run", "to"], ["'to'", "did you mean toy?", "quickstart"]),
        (["run", "quickstrat"], ["'quickstrat'", "did you mean quickstart?"]),
        (["run", "there/is/no.py"], ["there/is/no.py"]),
        (["score", "toi", "file"], ["'toi'", "did you mean toy?"]),
        (["eval", "smollm2-135m-instruct", "--experiment", "qickstart"], ["mean quickstart?"]),
        (["run", "toy", "--group-size", "1"], ["group_size is 1", "2 or more"]),
        (["run", "toy", "--group-size", "two"], ["--group-size", "'two'"]),
        (["run", "toy", "--lr-schedule", "cosin"], ["--lr-schedule", "cosin", "cosine"]),
        (["run", "toy", "--resume"], ["resume", "--run-dir"]),
        (["run", "toy", "--kl-coef", "-1"], ["kl_coef is -1", "0 or more"]),
        (["run"], ["experiment"]),
        (["report", "nowhere"], ["nowhere holds no run"]),
        (["export", "nowhere", "there"], ["nowhere"]),
        (["eval", "nowhere"], ["'nowhere'", "smollm2-135m-instruct", "local directory"]),
        (["sample", "nowhere", "--prompt", "1"], ["'nowhere'"]),
        (["score", "toy", "nowhere"], ["cannot read nowhere"]),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_answered(args, parts, capsys):
    message = command(capsys, *args)
    for part in parts:
        assert part in message


@pytest.mark.usefixtures("in_empty_directory")
def test_a_mistyped_command_is_answered_with_the_right_ones(capsys):
    message = command(capsys, "reprot", "x")
    assert "reprot" in message
    assert "report" in message


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("group_size", 0, "at least 1"),
        ("steps", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("num_prompts", 0, "at least 1"),
        ("max_prompt_tokens", 0, "at least 1"),
        ("max_new_tokens", 0, "at least 1"),
        ("temperature", 0.0, "above 0"),
        ("temperature", float("nan"), "above 0"),
        ("temperature", float("inf"), "above 0"),
        ("top_k", -1, "at least 0"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.5, "above 0 and at most 1"),
        ("min_p", 1.0, "below 1"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("clip_norm", float("nan"), "at least 0"),
        ("num_minibatches", 3, "must divide num_prompts = 4"),
        ("eval_samples", 0, "at least 1"),
        ("checkpoint_every", -1, "at least 0"),
        ("reward_timeout_seconds", 0.0, "above 0"),
    ],
)
def test_a_value_that_breaks_its_rule_is_named_with_the_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"^{field} is {re.escape(str(value))}; .*{rule}"):
        grpo_jax.Config(**{field: value})


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a"),
        RewardError("a"),
        RunStopped("a"),
        ImportError("a"),
        FileNotFoundError("a"),
        NotADirectoryError("a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_program_ends_with_a_message_and_not_a_traceback(error, capsys, monkeypatch):
    with pytest.raises(SystemExit) as caught, launch.plain_errors():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: a\n")
    monkeypatch.setenv("GRPO_JAX_TRACEBACK", "1")
    with pytest.raises(type(error)), launch.plain_errors():
        raise error


EXPERIMENT = '''
import dataclasses
import grpo_jax
from grpo_jax import tasks

@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """Problems from a file."""
    train_file: str = "train.jsonl"

def task(config):
    return tasks.GSM8K(config.train_file)

def main(config):
    grpo_jax.run(config, task=task(config), objective=grpo_jax.grpo())
'''


def test_a_task_whose_file_is_not_there_ends_with_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "problems.py").write_text(EXPERIMENT)
    message = command(capsys, "run", "problems.py", "--train-file", "not_there.jsonl")
    assert "not_there.jsonl is not a file" in message
    (tmp_path / "empty.jsonl").write_text("")
    message = command(capsys, "run", "problems.py", "--train-file", "empty.jsonl")
    assert "0 training and 0 held-out questions" in message
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["empty.jsonl", "problems.py"]


# -- questions -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SometimesLong(tasks.MaxOfThree):
    """Training questions of these numbers, and such held-out ones, are too long."""

    long: tuple[int, ...] = ()
    long_held_out: tuple[int, ...] = ()

    def train(self, seed, number):
        question = super().train(seed, number)
        return self._longer(question) if number in self.long else question

    def held_out(self, number):
        question = super().held_out(number)
        return self._longer(question) if number in self.long_held_out else question

    def _longer(self, question):
        return dataclasses.replace(question, prompt="0" + question.prompt)


@pytest.mark.usefixtures("early")
def test_a_long_prompt_is_an_error_that_names_its_question(tmp_path):
    refused(
        tmp_path,
        "question 2 has 5 tokens, more than max_prompt_tokens = 4",
        "raise it, or set --drop-long-prompts",
        repr(SometimesLong(long=(2,)).train(0, 2).prompt),
        task=SometimesLong(long=(2,)),
        steps=1,
    )


@pytest.mark.usefixtures("early")
def test_a_long_prompt_that_comes_later_is_found_before_anything_is_compiled(tmp_path):
    refused(tmp_path, "question 9 has 5 tokens", task=SometimesLong(long=(9,)), steps=3)


@pytest.mark.usefixtures("early")
def test_a_long_held_out_prompt_is_found_before_anything_is_written(tmp_path):
    task = SometimesLong(long_held_out=(1,))
    refused(tmp_path, "question 1 has 5 tokens", task=task, steps=1, eval_questions=4)


def test_long_prompts_are_dropped_and_counted_where_that_is_asked(tmp_path):
    task = SometimesLong(long=(0, 2, 3, 9))
    toys.run(tmp_path / "run", task=task, steps=3, drop_long_prompts=True, **FIELDS)
    counts = [line["prompts/dropped"] for line in toys.lines(tmp_path / "run", "metrics.jsonl")]
    assert counts == [3, 4, 4]
    asked = [group["question"] for group in toys.lines(tmp_path / "run", "completions.jsonl")]
    assert asked == [n for n in range(16) if n not in task.long]
    # The count and the place in the data go on where they were.
    toys.run(tmp_path / "other", task=task, steps=1, drop_long_prompts=True, **FIELDS)
    toys.run(tmp_path / "other", task=task, steps=3, drop_long_prompts=True, resume=True, **FIELDS)
    toys.assert_same_run(tmp_path / "other", tmp_path / "run", **FIELDS)


def test_long_held_out_prompts_are_dropped_where_that_is_asked(tmp_path):
    task = SometimesLong(long_held_out=(1, 3))
    fields = {"eval_questions": 4, "eval_samples": 4, "drop_long_prompts": True}
    toys.run(tmp_path / "run", task=task, steps=1, **FIELDS | fields)
    first, last = toys.lines(tmp_path / "run", "evaluations.jsonl")
    assert first["eval/num_questions"] == last["eval/num_questions"] <= 4


@pytest.mark.usefixtures("early")
def test_nothing_but_long_prompts_is_an_error_even_where_they_are_dropped(tmp_path):
    refused(
        tmp_path,
        "max_prompt_tokens = 3",
        "4 tokens",
        "raise it",
        steps=1,
        max_prompt_tokens=3,
        drop_long_prompts=True,
    )


def test_many_long_prompts_between_short_ones_are_no_error():
    class FourInFive(tasks.MaxOfThree):
        def train(self, seed, number):
            question = super().train(seed, number)
            return dataclasses.replace(question, prompt="00=" if number % 5 == 0 else "0000=")

    batch = train_questions(
        FourInFive(),
        CharTokenizer(toys.ALPHABET),
        seed=0,
        position=0,
        num_prompts=300,
        max_prompt_tokens=3,
        drop_long_prompts=True,
    )
    assert batch.num_dropped == 4 * 299
    assert len(batch.questions) == len(batch.ids) == 300


@pytest.mark.usefixtures("early")
def test_an_empty_prompt_is_an_error_that_names_its_question(tmp_path):
    class Silent(tasks.MaxOfThree):
        def train(self, seed, number):
            return dataclasses.replace(super().train(seed, number), prompt="")

    refused(tmp_path, "question 0 has an empty prompt", task=Silent(), steps=1)


class Nothing(tasks.base.FiniteTask):
    """No dataclass, so that nobody looks at its questions until they are asked for."""

    name = "nothing"

    def split(self):
        return [], []

    def parse(self, completion):
        return None

    def reward(self, question, completions):
        return [0.0] * len(completions)


@pytest.mark.usefixtures("early")
def test_an_empty_task_is_refused(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Checked(Nothing):
        pass

    with pytest.raises(ValueError, match="nothing: 0 training and 0 held-out questions"):
        Checked()
    refused(tmp_path, "nothing", "question", task=Nothing(), steps=1)


@pytest.mark.usefixtures("early")
def test_a_task_with_nothing_held_out_is_refused_where_that_is_to_be_asked(tmp_path):
    class AllTrained(tasks.MaxOfThree):
        num_held_out = 0

    refused(tmp_path, "max_of_three", "held-out", task=AllTrained(), steps=1, eval_questions=4)


# -- model directories ---------------------------------------------------------------------------


@pytest.fixture
def llama(tmp_path_factory):
    return toys.llama_directory(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def unusable(llama, tmp_path, early):
    """Expects a run of the edited model to be refused with these words."""

    def check(*parts):
        return refused(tmp_path, *parts, network=None, model=str(llama), steps=1)

    return check


def edit_tensors(directory, edit):
    path = directory / hf.WEIGHTS
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_unedited_directory_is_usable(llama):
    network = pretrained(str(llama))
    assert network.tokenizer.stop_ids == (2,)
    shapes = jax.tree.map(lambda leaf: leaf.shape, network.shapes)
    assert jax.tree.map(lambda leaf: leaf.shape, network.load()) == shapes


@pytest.mark.parametrize("other", [None, "pytorch_model.bin", "model-00001-of-00002.safetensors"])
def test_a_directory_without_weights(other, llama, unusable):
    (llama / hf.WEIGHTS).unlink()
    if other:
        (llama / other).write_bytes(b"\x80")
    unusable(str(llama), hf.WEIGHTS, *([other] if other else []))


def test_every_tensor_that_does_not_fit_is_listed_at_once(llama, unusable):
    def edit(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros([2], np.float32)
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros([48], np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].copy()
        query = "model.layers.2.self_attn.q_proj.weight"  # 48 by 48, so turned it would fit
        tensors["model.layers.0.self_attn.k_proj.weight"] = tensors[query]

    edit_tensors(llama, edit)
    message = unusable(
        "missing: model.norm.weight",
        "missing: model.layers.1.mlp.up_proj.weight",
        "unexpected: model.layers.7.mlp.up_proj.weight",
        "unexpected: model.layers.0.self_attn.q_proj.bias",
        "shape of lm_head.weight: [97, 47], config.json asks [97, 48]",
        "shape of model.layers.0.self_attn.k_proj.weight: [48, 48], config.json asks [16, 48]",
        str(llama),
    )
    assert len(message.splitlines()) == 7


@pytest.mark.parametrize("size", [0, 4, 1000, 50_000])
def test_weights_that_were_cut_off(size, llama, unusable):
    os.truncate(llama / hf.WEIGHTS, size)
    unusable(str(llama / hf.WEIGHTS), "not a whole safetensors file")


def test_every_field_that_is_not_understood_is_listed_at_once(llama, unusable):
    toys.edit_json(
        llama / "config.json",
        model_type="qwen3",
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        attention_bias=True,
        hidden_act="gelu",
        num_hidden_layers=0,
    )
    message = unusable(
        "config.json", "'qwen3'", "'llama'", "rope_scaling", "attention_bias is True"
    )
    assert "hidden_act is 'gelu'; understood: 'silu'" in message
    assert "num_hidden_layers is 0; it must be a positive integer" in message


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "llama3", "factor": 8.0}, {"type": "linear", "factor": 2.0}],
    ids=["rope_type", "type"],
)
def test_rotary_positions_of_another_kind(rope, llama, unusable):
    toys.edit_json(llama / "config.json", rope_parameters={"rope_theta": 1e4} | rope)
    unusable("config.json", "rope", "'default'")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_file_that_is_not_json_or_no_object(name, text, llama, unusable):
    (llama / name).write_text(text)
    unusable(str(llama))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 4},
        {"head_dim": 7},
        {"num_key_value_heads": "2"},
        {"eos_token_id": "x"},
    ],
    ids=str,
)
def test_a_config_that_describes_no_model(fields, llama, unusable):
    toys.edit_json(llama / "config.json", **fields)
    unusable(str(next(iter(fields.values()))))


def test_a_directory_without_config(llama, unusable):
    (llama / "config.json").unlink()
    unusable(str(llama), "no config.json", "tokenizer.json", hf.WEIGHTS)


def test_a_directory_without_tokenizer(llama, unusable):
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer_config.json").unlink()
    unusable(str(llama), "no tokenizer", "tokenizer.json")


def test_a_tokenizer_without_an_end_token(llama, unusable):
    toys.write_tokenizer(llama, eos=None)
    for name in ("config.json", "generation_config.json"):
        toys.edit_json(llama / name, eos_token_id=None)
    unusable("no end token", str(llama), "eos_token", "tokenizer_config.json")


def test_a_padding_token_equal_to_the_end_token_is_no_error(llama):
    toys.edit_json(llama / "tokenizer_config.json", pad_token="</s>")
    tokenizer = pretrained(str(llama)).tokenizer
    assert tokenizer.stop_ids == (tokenizer.pad_id,) == (2,)


def test_all_end_tokens_of_the_model_end_a_completion(llama):
    toys.edit_json(llama / "generation_config.json", eos_token_id=[2, 7])
    toys.edit_json(llama / "config.json", eos_token_id=[9])
    tokenizer = pretrained(str(llama)).tokenizer
    assert tokenizer.stop_ids == (2, 7, 9)
    assert tokenizer.decode([3, 4, 7, 3]) == "01"


def test_a_tokenizer_of_another_model(llama, unusable):
    toys.edit_json(llama / "config.json", vocab_size=20)
    unusable("44 ids", "20 rows", "different models")


@pytest.mark.parametrize("model", ["no-such", "./no-such", "/no/such", "a/b/c", "~/no-such"])
def test_a_model_that_is_neither_a_directory_nor_a_hub_id(model, tmp_path, early):
    refused(
        tmp_path,
        repr(model),
        "smollm2-135m-instruct",
        "a local directory",
        "a hub id",
        network=None,
        model=model,
        steps=1,
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1"),
    ],
    ids=["offline", "unreachable"],
)
def test_a_hub_that_cannot_be_reached_is_given_up_at_once(environment, reason, tmp_path):
    code = (
        "import time; from grpo_jax.models.network import pretrained\n"
        "started = time.monotonic()\n"
        "try: pretrained('owner/name')\n"
        "except ValueError as error: print(error)\n"
        "print(time.monotonic() - started)"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | {"HF_HOME": str(tmp_path)} | environment,
    )
    assert done.returncode == 0, done.stderr
    message, seconds = done.stdout.splitlines()  # one line says so
    assert float(seconds) < 5
    for part in ("'owner/name'", reason, "smollm2-135m-instruct", "a local directory"):
        assert part in message


# -- reward functions ----------------------------------------------------------------------------


def rewards_that(behave, *, at=(2, 1)):
    """The task's reward, but for one group: of this step and this place in the step."""
    task, calls = tasks.MaxOfThree(), []

    def reward(question, completions):
        calls.append(question.number)
        step, place = at
        if len(calls) > (step - 1) * toys.SMALL["num_prompts"] + place:
            return behave(question, completions)
        return task.reward(question, completions)

    return {"judge": reward}


def failed(tmp_path, behave, *parts, **fields):
    """A run that fails at step 2, in its second group; what was there before stays."""
    with pytest.raises(RewardError) as caught:
        toys.run(tmp_path / "run", steps=3, rewards=rewards_that(behave), **FIELDS | fields)
    message = str(caught.value)
    for part in ("'judge'", "step 2", "question 5", *parts):
        assert part in message, message
    assert [line["step"] for line in toys.lines(tmp_path / "run", "metrics.jsonl")] == [1]
    return message


def test_a_reward_that_raises_is_named_with_the_completion(tmp_path):
    def behave(question, completions):
        if any(row is completions[-1] or row.text == completions[-1].text for row in completions):
            raise ZeroDivisionError("no judge")
        return [0.0] * len(completions)

    message = failed(tmp_path, behave, "ZeroDivisionError", "no judge", "completion")
    assert re.search(r"completion \d of the group, text '", message)
    assert "NaN" in message


def test_a_reward_of_the_wrong_number(tmp_path):
    failed(tmp_path, lambda question, completions: [1.0], "1 values", "expected 4")


def test_a_reward_that_is_no_number(tmp_path):
    failed(tmp_path, lambda question, completions: ["good"] * 4, "'good'", "completion 0")


def test_a_reward_that_is_infinite(tmp_path):
    failed(tmp_path, lambda question, completions: [0, 0, float("inf"), 0], "inf", "completion 2")


def test_a_reward_that_takes_too_long(tmp_path):
    given_up = threading.Event()

    def behave(question, completions):
        given_up.wait()
        return [0.0] * len(completions)

    try:
        failed(tmp_path, behave, "0.5 s", "reward_timeout_seconds", reward_timeout_seconds=0.5)
    finally:
        given_up.set()


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(
    ("rewards", "weights", "parts"),
    [
        (None, {"max_of_thre": 1.0}, ["max_of_thre", "max_of_three"]),
        ({}, None, ["reward function"]),
        (None, {"max_of_three": float("nan")}, ["nan", "finite"]),
    ],
    ids=["unknown", "none", "not finite"],
)
def test_reward_weights_that_cannot_be_used(rewards, weights, parts, tmp_path):
    message = refused(tmp_path, *parts, rewards=rewards, reward_weights=weights, steps=1)
    assert "weights for []" not in message


# -- losses that are not finite ------------------------------------------------------------------


def stopped(directory, step, **fields):
    """A run that stops at this step; its saved batch."""
    with pytest.raises(RunStopped) as caught:
        toys.run(directory, **fields)
    path = directory / f"not_finite_step_{step}.npz"
    message = str(caught.value)
    for part in (f"step {step}:", "nan", "not applied", str(path), "--learning-rate"):
        assert part in message
    with np.load(path, allow_pickle=False) as saved:
        return dict(saved)


def test_a_step_that_left_the_numbers_stops_the_run_and_its_batch_is_saved(tmp_path):
    directory = tmp_path / "run"
    fields = {"learning_rate": 1e30, "clip_norm": 0.0, "checkpoint_every": 1}
    batch = stopped(directory, 2, steps=4, **fields)
    assert {name: array.shape for name, array in batch.items()} == {
        "rollout_prompt": (4, 4),
        "rollout_prompt_mask": (4, 4),
        "rollout_completion": (4, 4, 3),
        "rollout_completion_mask": (4, 4, 3),
        "rollout_sampler_log_probs": (4, 4, 3),
        "rollout_support_log_mass": (4, 4, 3),
        "rollout_truncated": (4, 4),
        "advantages": (4, 4, 1),
    }
    tokenizer, task = toys.network().tokenizer, tasks.MaxOfThree()
    asked = [tokenizer.encode(task.train(0, n).prompt) for n in range(4, 8)]
    np.testing.assert_array_equal(batch["rollout_prompt"], asked)
    assert [line["step"] for line in toys.lines(directory, "metrics.jsonl")] == [1]
    # The state before it is what the checkpoint of step 1 holds.
    toys.run(tmp_path / "one", steps=1, **fields)
    toys.assert_same_run(directory, tmp_path / "one", **fields)


def test_parameters_that_are_not_numbers_stop_the_run(tmp_path):
    made = toys.network()

    def load():
        params = made.load()
        params["norm"] = params["norm"].at[0].set(jnp.nan)
        return params

    network = dataclasses.replace(made, load=load)
    batch = stopped(tmp_path / "run", 1, steps=2, network=network, **FIELDS)
    assert batch["advantages"].shape == (4, 4, 1)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_update_that_is_not_finite_returns_the_state_as_it_was(tmp_path, monkeypatch):
    states, step = [], runner.grpo_step

    def recorded(policy, objective, optimizer, state, *args, **kwargs):
        before = jax.tree.map(np.array, (state.params, state.opt_state))
        result = step(policy, objective, optimizer, state, *args, **kwargs)
        states.append((before, jax.tree.map(np.array, (result[0].params, result[0].opt_state))))
        return result

    monkeypatch.setattr(runner, "grpo_step", recorded)
    made = toys.network()
    network = dataclasses.replace(
        made, load=lambda: made.load() | {"norm": jnp.full_like(made.load()["norm"], jnp.inf)}
    )
    stopped(tmp_path / "run", 1, steps=2, network=network, **FIELDS)
    ((before, after),) = states
    jax.tree.map(np.testing.assert_array_equal, before, after)


# -- run directories -----------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """A run of two steps."""
    toys.run(tmp_path / "run", steps=2, **FIELDS)
    return tmp_path


def test_a_directory_that_holds_another_run_is_left_alone(finished, early):
    refused(finished, str(finished / "run"), "another run", "--run-dir", "--resume", steps=2)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "checkpoints/1/x"])
def test_a_directory_that_holds_something_else_is_left_alone(name, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    message = refused(tmp_path, "something else", "--run-dir", steps=1)
    assert "--resume" not in message
    assert path.read_text() == "mine"


@pytest.mark.usefixtures("early")
def test_a_run_directory_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    refused(tmp_path, str(tmp_path / "run"), "--run-dir", steps=1)


@pytest.mark.usefixtures("early")
def test_a_run_directory_below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((ValueError, OSError), match="file"):
        toys.run(tmp_path / "file" / "run", steps=1, **FIELDS)
    assert toys.contents(tmp_path) == {"file": b"mine"}


def test_an_empty_directory_may_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    toys.run(tmp_path / "run", steps=1, **FIELDS)
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.usefixtures("early")
def test_a_run_that_was_refused_can_be_tried_again_in_its_directory(tmp_path, llama):
    weights = (llama / hf.WEIGHTS).read_bytes()
    os.truncate(llama / hf.WEIGHTS, 100)
    with pytest.raises(ValueError, match="safetensors"):
        toys.run(tmp_path / "run", network=None, model=str(llama), steps=1, **FIELDS)
    (llama / hf.WEIGHTS).write_bytes(weights)
    with pytest.raises(AssertionError, match="something was compiled"):
        toys.run(tmp_path / "run", network=None, model=str(llama), steps=1, **FIELDS)


def test_a_resume_with_other_values_lists_each_of_them(finished, early):
    other = {"group_size": 8, "learning_rate": 1e-3, "seed": 3, "kl_coef": 0.1, "steps": 3}
    message = refused(finished, "--run-dir", "same values", resume=True, **other)
    found = {line.split(":")[0].strip(): line for line in message.splitlines()[1:-1]}
    assert found.keys() == {"group_size", "learning_rate", "seed", "kl_coef"}
    assert "4 there, 8 here" in found["group_size"]
    assert "0.01 there, 0.001 here" in found["learning_rate"]


def test_the_number_of_steps_belongs_to_a_schedule(tmp_path, early):
    directory = tmp_path / "run"
    directory.mkdir()
    saved = toys.config(directory, steps=5, lr_schedule="cosine")
    (directory / "config.json").write_text(
        json.dumps({"experiment": toys.EXPERIMENT, "config": dataclasses.asdict(saved)})
    )
    fields = {"learning_rate": saved.learning_rate, "lr_schedule": "cosine", "resume": True}
    refused(tmp_path, "steps: 5 there, 6 here", steps=6, **fields)


def test_a_resume_of_another_experiment(finished, early):
    toys.edit_json(finished / "run" / "config.json", experiment="experiments.quickstart")
    refused(finished, "experiments.quickstart", toys.EXPERIMENT, "--run-dir", steps=3, resume=True)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("text", [None, "", "{", "[]", '"x"', '{"model_type": "llama"}'], ids=repr)
def test_a_resume_where_there_is_no_run(text, tmp_path):
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run" / "config.json").write_text(text)
    refused(tmp_path, str(tmp_path / "run"), "holds no run", steps=3, resume=True)


@pytest.mark.usefixtures("early")
def test_a_resume_in_a_directory_that_is_not_there(tmp_path):
    refused(tmp_path, str(tmp_path / "run"), "holds no run", steps=3, resume=True)


def test_a_resume_of_a_run_that_never_saved(finished, early):
    run = finished / "run"
    for path in sorted((run / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    refused(finished, "no finished checkpoint", "another directory", steps=3, resume=True)


def test_a_resume_to_fewer_steps_than_were_made(finished, early):
    refused(finished, "2 steps already", "--steps 1", steps=1, resume=True)


def test_a_checkpoint_that_was_not_finished_is_not_taken(finished):
    checkpoints = finished / "run" / "checkpoints"
    (whole,) = [path for path in checkpoints.iterdir() if path.name == "2"]
    unfinished = checkpoints / "3.orbax-checkpoint-tmp-1234"
    unfinished.mkdir()
    (unfinished / "params").write_text("half")
    toys.run(finished / "run", steps=3, resume=True, **FIELDS)
    toys.run(finished / "three", steps=3, **FIELDS)
    assert whole.name == "2"
    toys.assert_same_run(finished / "run", finished / "three", **FIELDS)


def test_advice_needs_a_step():
    assert metrics.advice([]) == []
