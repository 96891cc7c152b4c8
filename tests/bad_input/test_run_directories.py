"""Bad input gets one clear error, early, and nothing written: run directories."""

import dataclasses
import json
import os

import pytest
import toys
from refused_runs import FIELDS, refused

import grpo_jax
from grpo_jax import metrics
from grpo_jax.models.loading import WEIGHTS


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
    weights = (llama / WEIGHTS).read_bytes()
    os.truncate(llama / WEIGHTS, 100)
    with pytest.raises(ValueError, match="safetensors"):
        toys.run(tmp_path / "run", network=None, model=str(llama), steps=1, **FIELDS)
    (llama / WEIGHTS).write_bytes(weights)
    with pytest.raises(AssertionError, match="something was compiled"):
        toys.run(tmp_path / "run", network=None, model=str(llama), steps=1, **FIELDS)


def test_a_resume_with_other_values_lists_each_of_them(finished, early):
    other = {"group_size": 8, "learning_rate": 1e-3, "seed": 3, "kl_coef": 0.1, "steps": 3}
    message = refused(finished, "--run-dir", "same values", resume=True, **other)
    found = {line.split(":")[0].strip(): line for line in message.splitlines()[1:-1]}
    assert found.keys() == {"group_size", "learning_rate", "seed", "kl_coef"}
    assert "4 there, 8 here" in found["group_size"]
    assert "0.01 there, 0.001 here" in found["learning_rate"]


def test_a_resume_with_another_objective(finished, early):
    other = grpo_jax.dr_grpo(max_new_tokens=3)
    refused(finished, "objective", "--run-dir", paper=other, steps=3, resume=True)


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
