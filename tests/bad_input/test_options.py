"""Bad input gets one clear error, early, and nothing written: options and experiments."""

import re

import pytest
from refused_runs import command

import grpo_jax
from grpo_jax import launch
from grpo_jax.rewards import RewardError
from grpo_jax.run_directory import RunStopped


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
