"""One optimizer step: group-shared gradients, micro-batches, what is not applied."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from grpo_jax.algorithm import grpo_step
from grpo_jax.objectives import dr_grpo, grpo, prepare
from grpo_jax.policy import completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import TrainState
from grpo_jax.update import minibatches, update

SAMPLING = Sampling(max_new_tokens=6, stop_ids=(3, 4, 5, 6, 7, 8), pad_id=3)
# Plain gradient descent: the change of a parameter is its gradient.
OPTIMIZER = optax.sgd(1.0)


def rollout_of(lengths):
    prompts = networks.prompts(lengths)
    keys = prompt_keys(jax.random.key(1), 0, len(lengths))
    return sample_groups(
        networks.POLICY,
        networks.params(),
        prompts,
        keys,
        group_size=4,
        sampling=SAMPLING,
    )


def batch_of(objective, lengths=(5, 1, 3, 2, 4)):
    rollout = rollout_of(lengths)
    rewards = jax.random.normal(jax.random.key(2), rollout.truncated.shape)
    ref = old = None
    if objective.kl_coef:
        old = completion_log_probs(networks.POLICY, networks.params(1), rollout).log_probs
        old = rollout.sampler_log_probs + 0.05 * (old - rollout.sampler_log_probs)
        ref = completion_log_probs(networks.POLICY, networks.params(2), rollout).log_probs
    return prepare(objective, rollout, rewards, old, ref)


def new_state():
    params = jax.tree.map(jnp.copy, networks.params())
    return TrainState(params, OPTIMIZER.init(params), jnp.int32(0), jax.random.key(0))


def step(objective, batch, **settings):
    return update(networks.POLICY, objective, OPTIMIZER, new_state(), batch, **settings)


OBJECTIVES = {"grpo": grpo(kl_coef=0.1), "dr_grpo": dr_grpo(max_new_tokens=6)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_group_shared_gradient_is_that_of_repeated_prompts(name):
    """Each completion alone behind its own copy of the prompt, as a group of one."""
    objective, batch = OBJECTIVES[name], batch_of(OBJECTIVES[name], lengths=(5, 1, 3))
    state, metrics = step(objective, batch)
    weights = objective.weights(batch.rollout.completion_mask)

    @jax.jit
    def repeated_loss(params):
        weighed = dataclasses.replace(batch, weights=weights)

        def alone(x):  # [P, G, ...] -> [P * G, 1, ...]
            return x.reshape(-1, 1, *x.shape[2:])

        def repeated(x):  # [P, L] -> [P * G, L]
            return jnp.repeat(x, 4, axis=0)

        own = jax.tree.map(alone, dataclasses.replace(weighed, rollout=None))
        fields = dataclasses.asdict(batch.rollout)
        prompt = {key: repeated(fields.pop(key)) for key in ("prompt", "prompt_mask")}
        alone_fields = {k: alone(v) for k, v in fields.items() if v is not None}
        rollout = type(batch.rollout)(**prompt, **alone_fields)
        log_probs = completion_log_probs(networks.POLICY, params, rollout).log_probs
        return objective.loss(log_probs, dataclasses.replace(own, rollout=rollout))

    loss, grads = jax.value_and_grad(repeated_loss)(networks.params())
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5, atol=1e-6)
    changes = jax.tree.map(jnp.subtract, networks.params(), state.params)
    for ours, wanted in zip(jax.tree.leaves(changes), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_are_the_whole(size):
    """Of 5 prompts: parts of 2 and 3 leave a last one that groups without weight fill up."""
    objective = OBJECTIVES["grpo"]
    batch = batch_of(objective)
    whole, metrics = step(objective, batch)
    tokens = batch.rollout.prompt.shape[1] + 4 * batch.rollout.completion.shape[2]
    parts, same = step(objective, batch, micro_batch_tokens=size * tokens + 1)
    for ours, wanted in zip(
        jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, atol=2e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_gradient_by_finite_differences():
    objective = OBJECTIVES["grpo"]
    batch = batch_of(objective, lengths=(5, 1))
    state, _ = step(objective, batch)

    @jax.jit
    def loss(params):
        return objective.loss(
            completion_log_probs(networks.POLICY, params, batch.rollout).log_probs, batch
        )

    params = networks.params()
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    along = sum(
        jax.tree.leaves(
            jax.tree.map(lambda a, b, d: ((a - b) * d).sum(), params, state.params, direction)
        )
    )

    def slope(size):
        up, down = (
            loss(jax.tree.map(lambda p, d: p + sign * size * d, params, direction))  # noqa: B023
            for sign in (1, -1)
        )
        return (up - down) / (2 * size)

    # The error falls with the square of the step: two of them take its first term away.
    found = (4 * slope(1.25e-4) - slope(2.5e-4)) / 3
    np.testing.assert_allclose(along, found, rtol=3e-3)


def test_metrics_of_a_first_update():
    batch = batch_of(OBJECTIVES["dr_grpo"])
    _, metrics = step(OBJECTIVES["dr_grpo"], batch)
    assert metrics["finite"]
    assert metrics["sampler_mismatch/max"] <= 1e-4
    assert metrics["clip_ratio/region_mean"] == 0  # the ratio is 1
    assert "kl" not in metrics
    entropies = completion_log_probs(
        networks.POLICY, networks.params(), batch.rollout, with_entropy=True
    ).entropy
    mask = batch.rollout.completion_mask
    np.testing.assert_allclose(metrics["entropy"], entropies.sum() / mask.sum(), rtol=1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_non_finite_gradient_is_not_applied(bad):
    batch = batch_of(OBJECTIVES["dr_grpo"])
    batch = dataclasses.replace(batch, advantages=batch.advantages.at[0, 0].set(bad))
    state, metrics = step(OBJECTIVES["dr_grpo"], batch)
    assert not metrics["finite"]
    for now, before in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(networks.params()), strict=True
    ):
        np.testing.assert_array_equal(now, before)


def test_minibatches_are_whole_groups_each_once_an_epoch():
    batch = batch_of(OBJECTIVES["dr_grpo"], lengths=(5, 1, 3, 2))
    parts = list(minibatches(batch, 2, num_epochs=3))
    assert len(parts) == 6
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
        for ours, wanted in zip(jax.tree.leaves(joined), jax.tree.leaves(batch), strict=True):
            np.testing.assert_array_equal(ours, wanted)
    with pytest.raises(ValueError, match="4 prompts do not divide into 3"):
        list(minibatches(batch, 3))


def test_the_state_is_donated():
    state = new_state()
    batch = batch_of(OBJECTIVES["dr_grpo"])
    update(networks.POLICY, OBJECTIVES["dr_grpo"], OPTIMIZER, state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_weights_that_the_caller_gives_are_kept():
    """A shard of a larger step brings its own: the batch's mask does not say what they are."""
    objective = OBJECTIVES["dr_grpo"]
    batch = batch_of(objective)
    weights = objective.weights(batch.rollout.completion_mask)
    _, half = step(objective, dataclasses.replace(batch, weights=weights / 2))
    _, whole = step(objective, batch)
    np.testing.assert_allclose(half["loss"], whole["loss"] / 2, rtol=1e-5)


def test_a_kl_term_needs_a_reference():
    with pytest.raises(ValueError, match=r"kl_coef is 0.1, but there are no ref_params"):
        grpo_step(
            networks.POLICY,
            OBJECTIVES["grpo"],
            OPTIMIZER,
            new_state(),
            None,
            lambda phase: networks.prompts(),
            score=lambda rollout: rollout.truncated.astype(jnp.float32),
            group_size=2,
            sampling=SAMPLING,
        )


@pytest.mark.parametrize("groups_at_once", [1, 2, 3, 7])
def test_scoring_in_parts_is_scoring_the_whole(groups_at_once):
    prompts = networks.prompts((5, 1, 3, 2, 4))
    keys = prompt_keys(jax.random.key(1), 0, 5)
    sampling = Sampling(max_new_tokens=6, stop_ids=(3, 4, 5), top_k=9, keep_support=True)
    args = networks.POLICY, networks.params()
    rollout = sample_groups(*args, prompts, keys, group_size=3, sampling=sampling)
    asked = {"with_entropy": True, "with_sum_sq_probs": True, "temperature": 0.7}
    whole = completion_log_probs(*args, rollout, **asked)
    parts = completion_log_probs(*args, rollout, groups_at_once=groups_at_once, **asked)
    found = {name: x for name, x in whole._asdict().items() if x is not None}
    assert len(found) == 4
    for name, expected in found.items():
        np.testing.assert_allclose(getattr(parts, name), expected, atol=1e-5, err_msg=name)


def test_what_fills_the_last_part_up_is_a_prompt_that_a_network_can_divide_by():
    def mean(params, tokens, mask):
        prefix, _ = networks.POLICY.prefill(params, tokens, mask)
        states = params["embedding"][tokens] * mask[..., None]
        return prefix, states.sum(axis=1) / mask.sum(axis=1)[:, None]

    policy = dataclasses.replace(networks.POLICY, prefill=mean)
    rollout = rollout_of((5, 1, 3))

    def total(params, groups_at_once):
        said = completion_log_probs(policy, params, rollout, groups_at_once=groups_at_once)
        return said.log_probs.sum()

    gradients = jax.jit(jax.grad(total), static_argnums=1)
    whole, parts = (gradients(networks.params(), groups) for groups in (0, 2))
    for ours, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_a_negative_number_of_groups_is_refused():
    with pytest.raises(ValueError, match="groups_at_once is -1"):
        completion_log_probs(
            networks.POLICY, networks.params(), rollout_of((2,)), groups_at_once=-1
        )
