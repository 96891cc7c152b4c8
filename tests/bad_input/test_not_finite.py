"""Bad input gets one clear error, early, and nothing written: losses that are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from refused_runs import FIELDS

from grpo_jax import tasks, training_loop
from grpo_jax.run_directory import RunStopped


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
        params["norm"]["scale"] = params["norm"]["scale"].at[0].set(jnp.nan)
        return params

    network = dataclasses.replace(made, load=load)
    batch = stopped(tmp_path / "run", 1, steps=2, network=network, **FIELDS)
    assert batch["advantages"].shape == (4, 4, 1)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_update_that_is_not_finite_returns_the_state_as_it_was(tmp_path, monkeypatch):
    states, step = [], training_loop.grpo_step

    def recorded(policy, objective, optimizer, state, *args, **kwargs):
        before = jax.tree.map(np.array, (state.params, state.opt_state))
        result = step(policy, objective, optimizer, state, *args, **kwargs)
        states.append((before, jax.tree.map(np.array, (result[0].params, result[0].opt_state))))
        return result

    monkeypatch.setattr(training_loop, "grpo_step", recorded)
    made = toys.network()

    def load():
        params = made.load()
        return params | {"norm": jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), params["norm"])}

    network = dataclasses.replace(made, load=load)
    stopped(tmp_path / "run", 1, steps=2, network=network, **FIELDS)
    ((before, after),) = states
    jax.tree.map(np.testing.assert_array_equal, before, after)
