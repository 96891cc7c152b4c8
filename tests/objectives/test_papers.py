"""GRPO and Dr. GRPO against plain double loops, and the invariances that every objective has."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import credit as credit_loops
from oracles import losses, numeric

from grpo_jax import objectives
from grpo_jax.ops import kl
from grpo_jax.types import Batch, Rollout

BUDGET = 9


def random_batch(seed, *, shape=(3, 4, 7), kl_coef=0.04):
    """Log-probabilities and a batch of ragged completions, NaN wherever nothing may be read."""
    rng = np.random.default_rng(seed)
    prompts, _, num_tokens = shape
    lengths = rng.integers(1, num_tokens + 1, size=shape[:2])
    mask = np.arange(num_tokens) < lengths[..., None]
    mask[0, 0, 0] = lengths[0, 0] == 1  # tokens in the middle may be the environment's

    def log_probs():
        return np.where(mask, -np.abs(rng.normal(size=shape)), np.nan).astype(np.float32)

    rollout = Rollout(
        prompt=jnp.zeros([prompts, 2], jnp.int32),
        prompt_mask=jnp.ones([prompts, 2], bool),
        completion=jnp.zeros(shape, jnp.int32),
        completion_mask=jnp.array(mask),
        sampler_log_probs=jnp.zeros(shape),
        support_log_mass=jnp.zeros(shape),
        truncated=jnp.zeros(shape[:2], bool),
    )
    rewards = jnp.array(rng.normal(size=shape[:2]), jnp.float32)
    old, ref = jnp.array(log_probs()), jnp.array(log_probs())
    return jnp.array(log_probs()), rollout, rewards, old, ref


def oracle(name, log_probs, rollout, rewards, old, ref):
    mask = np.asarray(rollout.completion_mask)
    log_probs, old, ref = (np.asarray(x, np.float64) for x in (log_probs, old, ref))
    if name == "grpo":
        credit = credit_loops.group_normalize(np.asarray(rewards))
        return lambda x: losses.grpo_loss(x, old, ref, mask, credit)
    credit = credit_loops.group_center(np.asarray(rewards))
    return lambda x: losses.dr_grpo_loss(x, old, mask, credit, budget=BUDGET)


PAPERS = {"grpo": objectives.grpo(), "dr_grpo": objectives.dr_grpo(max_new_tokens=BUDGET)}
EACH_PAPER = pytest.mark.parametrize("name", PAPERS)


@EACH_PAPER
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_the_papers_double_sum(name, seed, transform):
    log_probs, *rest = random_batch(seed)
    batch = objectives.prepare(PAPERS[name], *rest)
    loss, gradient = transform(jax.value_and_grad(PAPERS[name].loss))(log_probs, batch)
    plain = oracle(name, log_probs, *rest)
    point = np.asarray(log_probs, np.float64)
    np.testing.assert_allclose(loss, plain(point), rtol=1e-5, atol=1e-6)
    mask = np.asarray(rest[0].completion_mask)
    for index in np.ndindex(mask.shape):
        wanted = numeric.slope(plain, point, index) if mask[index] else 0.0
        np.testing.assert_allclose(gradient[index], wanted, rtol=1e-4, atol=1e-5)


@EACH_PAPER
def test_on_policy_the_gradient_is_the_policy_gradient(name):
    """At a ratio of 1 the gradient of the policy term is -w A, whatever the trust region."""
    log_probs, rollout, rewards, _, _ = random_batch(4)
    objective = dataclasses.replace(PAPERS[name], kl=None, kl_coef=0.0)
    batch = objectives.prepare(objective, rollout, rewards)  # no old: this policy sampled
    gradient = jax.grad(objective.loss)(log_probs, batch)
    weights = objective.weights(rollout.completion_mask)
    np.testing.assert_allclose(gradient, -weights * batch.advantages, rtol=1e-5, atol=1e-8)


@EACH_PAPER
def test_masked_is_deleted(name):
    """Padding, with whatever in it, appended or cut off, changes neither loss nor gradient."""
    log_probs, rollout, rewards, old, ref = random_batch(1)
    mask = rollout.completion_mask

    def loss_and_gradient(log_probs, rollout, old, ref):
        batch = objectives.prepare(PAPERS[name], rollout, rewards, old, ref)
        return jax.value_and_grad(PAPERS[name].loss)(log_probs, batch)

    loss, gradient = loss_and_gradient(log_probs, rollout, old, ref)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    for junk in (0.0, 1e30, -jnp.inf, jnp.inf):
        filled = [jnp.where(mask, x, junk) for x in (log_probs, old, ref)]
        again, slopes = loss_and_gradient(filled[0], rollout, *filled[1:])
        np.testing.assert_array_equal(again, loss)
        np.testing.assert_array_equal(slopes, gradient)

    def pad(x):
        return jnp.pad(x, [(0, 0), (0, 0), (0, 5)])

    wide_rollout = dataclasses.replace(rollout, completion_mask=pad(mask))
    again, slopes = loss_and_gradient(*map(pad, (log_probs,)), wide_rollout, pad(old), pad(ref))
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    np.testing.assert_allclose(slopes[..., :7], gradient, rtol=1e-5, atol=1e-8)


@EACH_PAPER
def test_micro_batches_of_unequal_size_add_up(name):
    log_probs, *rest = random_batch(2, shape=(5, 4, 7))
    batch = objectives.prepare(PAPERS[name], *rest)
    whole, gradient = jax.value_and_grad(PAPERS[name].loss)(log_probs, batch)
    weights = PAPERS[name].weights(rest[0].completion_mask)
    weighed = dataclasses.replace(batch, weights=weights)
    total, slopes = 0.0, []
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
        cut = jax.tree.map(lambda x: x[part], weighed)  # noqa: B023
        loss, slope = jax.value_and_grad(PAPERS[name].loss)(log_probs[part], cut)
        total += loss
        slopes.append(slope)
    np.testing.assert_allclose(total, whole, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jnp.concatenate(slopes), gradient, rtol=1e-5, atol=1e-8)


@EACH_PAPER
def test_order_within_a_group_does_not_matter(name):
    log_probs, rollout, rewards, old, ref = random_batch(3)
    order = jnp.array([2, 0, 3, 1])
    batch = objectives.prepare(PAPERS[name], rollout, rewards, old, ref)
    loss = PAPERS[name].loss(log_probs, batch)
    moved = dataclasses.replace(rollout, completion_mask=rollout.completion_mask[:, order])
    moved = objectives.prepare(
        PAPERS[name],
        dataclasses.replace(moved, truncated=rollout.truncated[:, order]),
        *(x[:, order] for x in (rewards, old, ref)),
    )
    np.testing.assert_allclose(
        PAPERS[name].loss(log_probs[:, order], moved), loss, rtol=1e-5, atol=1e-7
    )


@EACH_PAPER
def test_equal_rewards_give_an_exactly_zero_policy_gradient(name):
    log_probs, rollout, _, old, ref = random_batch(0, shape=(2, 16, 7))
    objective = dataclasses.replace(PAPERS[name], kl=None, kl_coef=0.0)
    batch = objectives.prepare(objective, rollout, jnp.full([2, 16], 1.1), old, ref)
    loss, gradient = jax.value_and_grad(objective.loss)(log_probs, batch)
    assert loss == 0
    assert not np.any(gradient)


def test_a_completion_without_reward_gives_no_policy_gradient():
    log_probs, rollout, rewards, old, ref = random_batch(0)
    objective = objectives.grpo(kl_coef=0.0)
    batch = objectives.prepare(objective, rollout, rewards.at[1, 2].set(jnp.nan), old, ref)
    gradient = jax.grad(objective.loss)(log_probs, batch)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[1, 2])
    assert np.any(gradient[1, 1])


def test_diagnostics_are_sums_over_counting_tokens():
    log_probs, rollout, rewards, old, ref = random_batch(0)
    objective = objectives.grpo()
    batch = objectives.prepare(objective, rollout, rewards, old, ref)
    _, sums = objective.loss_and_sums(log_probs, batch)
    mask = np.asarray(rollout.completion_mask)
    assert sums["tokens"] == mask.sum()
    np.testing.assert_allclose(sums["kl"], np.asarray(kl.k3(log_probs, ref))[mask].sum(), rtol=1e-5)
    ratio = np.exp(np.asarray(log_probs) - np.asarray(old))
    credit = np.broadcast_to(batch.advantages, mask.shape)
    assert sums["clip_ratio/low_mean"] == (mask & (ratio < 0.8) & (credit < 0)).sum()
    assert sums["clip_ratio/high_mean"] == (mask & (ratio > 1.2) & (credit > 0)).sum()


def test_refusals():
    _, rollout, rewards, old, _ = random_batch(0)
    with pytest.raises(ValueError, match=r"rewards have shape \(3, 5\).*\(3, 4\)"):
        objectives.prepare(objectives.grpo(), rollout, jnp.zeros([3, 5]))
    with pytest.raises(ValueError, match=r"kl_coef is -0.1"):
        objectives.grpo(kl_coef=-0.1)
    with pytest.raises(ValueError, match="without an estimate"):
        dataclasses.replace(PAPERS["dr_grpo"], kl_coef=0.1)
    batch = objectives.prepare(objectives.grpo(), rollout, rewards, old, None)
    with pytest.raises(ValueError, match="holds no ref_log_probs"):
        objectives.grpo().loss(old, batch)


def test_batch_is_a_pytree_of_whole_groups():
    _, rollout, rewards, _, _ = random_batch(0)
    batch = objectives.prepare(objectives.grpo(), rollout, rewards)
    assert isinstance(jax.tree.map(lambda x: x, batch), Batch)
    chex.assert_equal_shape_prefix(jax.tree.leaves(batch), 1)
