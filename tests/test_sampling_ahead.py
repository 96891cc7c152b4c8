"""One step off-policy: what the next step trains on is sampled before the update."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
import toys

from grpo_jax import algorithm, objectives, training_loop
from grpo_jax.algorithm import grpo_step
from grpo_jax.rewards import RewardError
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import TrainState

SAMPLING = Sampling(max_new_tokens=5, stop_ids=(3, 4, 5, 6, 7, 8), pad_id=3)
OPTIMIZER = optax.sgd(0.5)
FIRST, SECOND = networks.prompts((5, 1, 3, 2)), networks.prompts((2, 4, 1, 3), seed=1)
CORRECTED = objectives.tis()


def new_state():
    params = jax.tree.map(jnp.copy, networks.params())
    return TrainState(params, OPTIMIZER.init(params), jnp.int32(0), jax.random.key(0))


def odd_tokens(rollout):
    odd = jnp.where(rollout.completion_mask, rollout.completion % 2, 0).sum(axis=-1)
    return odd / rollout.completion_mask.sum(axis=-1)


def step(state, prompts=FIRST, score=odd_tokens, objective=CORRECTED, **settings):
    return grpo_step(
        networks.POLICY,
        objective,
        OPTIMIZER,
        state,
        None,
        lambda phase: prompts,
        score,
        group_size=4,
        sampling=SAMPLING,
        **settings,
    )


def second_rollout(params):
    keys = prompt_keys(jax.random.key(0), len(FIRST.tokens), len(SECOND.tokens))
    return sample_groups(networks.POLICY, params, SECOND, keys, group_size=4, sampling=SAMPLING)


def test_the_next_rollout_is_that_of_the_policy_before_the_update():
    before = new_state()
    result = step(before, draw_ahead=lambda _: SECOND)
    wanted = second_rollout(networks.params())
    found = result.ahead
    np.testing.assert_array_equal(found.completion, wanted.completion)
    np.testing.assert_allclose(found.sampler_log_probs, wanted.sampler_log_probs, atol=2e-5)
    after = second_rollout(result.state.params)  # which would have drawn others, or as likely
    assert not np.allclose(after.sampler_log_probs, wanted.sampler_log_probs, atol=1e-3)


def test_the_step_itself_is_the_same():
    plain, ahead = step(new_state()), step(new_state(), draw_ahead=lambda _: SECOND)
    for ours, other in zip(*map(jax.tree.leaves, (plain.state, ahead.state)), strict=True):
        np.testing.assert_array_equal(*map(_bits, (ours, other)))
    assert plain.ahead is None


def _bits(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_what_was_sampled_is_trained_on_and_corrected():
    first = step(new_state(), draw_ahead=lambda _: SECOND)
    second = step(first.state, None, sampled=first.ahead)  # there are no prompts to draw
    trained_on = second.batch.rollout
    np.testing.assert_array_equal(trained_on.completion, first.ahead.completion)
    # The policy has moved since: the factor is no longer 1, as it is for a step by itself.
    assert abs(float(first.metrics[0]["sampler_mismatch/mean"])) < 1e-5
    assert abs(float(second.metrics[0]["sampler_mismatch/mean"])) > 1e-3


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (objectives.grpo(kl_coef=0), "no correction for that; take one that has .tis"),
        (objectives.dr_grpo(max_new_tokens=5), "no correction"),
        (
            dataclasses.replace(objectives.dapo(), corrections=CORRECTED.corrections),
            "samples again by the rewards",
        ),
        (
            dataclasses.replace(
                objectives.remax(kl_coef=0), corrections=objectives.tis().corrections
            ),
            "samples again by the rewards",
        ),
    ],
    ids=["grpo", "dr_grpo", "dapo", "remax"],
)
def test_what_cannot_be_sampled_ahead_is_refused(objective, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        step(new_state(), objective=objective, draw_ahead=lambda _: SECOND)
    with pytest.raises(ValueError, match=message):
        toys.run(tmp_path / "run", paper=objective, sample_ahead=True)
    assert not (tmp_path / "run").exists()


FIELDS = {"sample_ahead": True, "paper": CORRECTED}


@pytest.fixture(autouse=True)
def shared_optimizer(monkeypatch):
    monkeypatch.setattr(training_loop, "make_optimizer", toys.make_optimizer)


def test_a_resumed_run_trains_on_what_was_sampled_ahead(tmp_path, caplog):
    toys.run(tmp_path / "whole", steps=8, **FIELDS)
    toys.run(tmp_path / "run", steps=3, **FIELDS)
    toys.run(tmp_path / "run", steps=8, resume=True, **FIELDS)
    assert "could not be restored" not in caplog.text
    toys.assert_same_run(tmp_path / "run", tmp_path / "whole", **FIELDS)
    toys.run(tmp_path / "plain", steps=8, paper=CORRECTED)
    mismatch = [
        [line["sampler_mismatch/mean"] for line in toys.metrics(tmp_path / name)]
        for name in ("whole", "plain")
    ]
    assert max(map(abs, mismatch[1])) < 1e-5 < max(map(abs, mismatch[0]))


def test_a_run_cut_off_between_checkpoints_has_what_was_sampled_ahead(tmp_path):
    fields = FIELDS | {"eval_questions": 4, "eval_every": 2, "checkpoint_every": 2}
    task, calls = toys.tasks.MaxOfThree(), []

    def failing(question, completions):
        calls.append(question)
        if len(calls) == 60:
            raise OSError("the disk of the judge is full")
        return task.reward(question, completions)

    toys.run(tmp_path / "whole", steps=6, **fields)
    with pytest.raises(RewardError, match="judge is full"):
        toys.run(tmp_path / "run", steps=6, rewards={task.name: failing}, **fields)
    toys.run(tmp_path / "run", steps=6, resume=True, **fields)
    toys.assert_same_run(tmp_path / "run", tmp_path / "whole", **fields)
    evaluations = [
        [{k: v for k, v in line.items() if k != "eval_time"} for line in lines]
        for lines in (toys.lines(tmp_path / name, "evaluations.jsonl") for name in ("run", "whole"))
    ]
    assert evaluations[0] == evaluations[1]
    assert [line["step"] for line in evaluations[0]] == [0, 2, 4, 6]


def test_completions_are_scored_when_the_update_has_been_asked_for(monkeypatch, tmp_path):
    events, update, task = [], algorithm.update, toys.tasks.MaxOfThree()

    def noted(*args, **kwargs):
        events.append("update")
        return update(*args, **kwargs)

    def reward(question, completions):
        events.append("score")
        return task.reward(question, completions)

    monkeypatch.setattr(algorithm, "update", noted)
    toys.run(tmp_path / "run", steps=2, num_prompts=1, rewards={"counted": reward}, **FIELDS)
    assert events == ["score", "update", "score", "update", "score"]


def test_a_step_is_not_lost_with_the_scores_of_the_next(tmp_path):
    """A judge that fails while it scores ahead; mended, the run goes on as if it had not."""
    task, calls = toys.tasks.MaxOfThree(), []

    def failing(question, completions):
        calls.append(question)
        if len(calls) > 3 * toys.SMALL["num_prompts"]:
            raise OSError("the disk of the judge is full")
        return task.reward(question, completions)

    with pytest.raises(RewardError, match="judge is full"):
        toys.run(tmp_path / "run", steps=6, rewards={task.name: failing}, **FIELDS)
    assert [line["step"] for line in toys.metrics(tmp_path / "run")] == [1, 2, 3]
    toys.run(tmp_path / "run", steps=6, resume=True, **FIELDS)
    toys.run(tmp_path / "whole", steps=6, **FIELDS)
    toys.assert_same_run(tmp_path / "run", tmp_path / "whole", **FIELDS)
