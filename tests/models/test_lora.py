"""Adapters: what they add, what is trained, what is written."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

import grpo_jax
from grpo_jax.algorithm import grpo_step
from grpo_jax.models.decoder import decoder_policy
from grpo_jax.models.layers import Compute
from grpo_jax.models.lora import (
    Lora,
    adapted_policy,
    adapter_shapes,
    init_adapters,
    merged,
    targets,
)
from grpo_jax.objectives import prepare
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import TrainState
from grpo_jax.update import update

LORA = Lora(rank=3, alpha=5.0)
PLAIN, ADAPTED = decoder_policy(networks.CONFIG), adapted_policy(networks.CONFIG, LORA)


def adapters(lora=LORA, seed=1):
    """Adapters that add something."""
    found = init_adapters(networks.params(), lora, jax.random.key(seed))
    key = jax.random.key(seed + 1)
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(key, x.shape), found)


def logits(policy, params):
    prompts = networks.prompts((7, 2))
    prefix, last = policy.prefill(params, prompts.tokens, prompts.mask)
    tokens = jnp.arange(2 * 3 * 5, dtype=jnp.int32).reshape(2, 3, 5)
    hidden, _ = policy.extend(params, prefix, tokens)
    return jnp.concatenate([policy.unembed(params, x).reshape(-1, 53) for x in (last, hidden)])


def whole(trained):
    return {"trained": trained, "frozen": networks.params()}


def test_new_adapters_add_nothing():
    fresh = init_adapters(networks.params(), LORA, jax.random.key(0))
    np.testing.assert_array_equal(logits(ADAPTED, whole(fresh)), logits(PLAIN, networks.params()))
    assert not all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(fresh))


def test_without_adapters_it_is_the_policy_that_training_began_with():
    np.testing.assert_array_equal(
        logits(ADAPTED, {"frozen": networks.params()}), logits(PLAIN, networks.params())
    )


def test_merged_is_adapters_on():
    trained = adapters()
    found = logits(PLAIN, merged(networks.params(), trained, LORA))
    np.testing.assert_allclose(found, logits(ADAPTED, whole(trained)), atol=1e-4)
    assert float(jnp.abs(found - logits(PLAIN, networks.params())).max()) > 0.1


def test_a_product_by_hand():
    lora = Lora(rank=2, alpha=7.0, targets=("layers_1/mlp/down",))
    trained = adapters(lora)
    beside = trained["layers_1"]["mlp"]["down"]
    kernel = networks.params()["layers_1"]["mlp"]["down"]["kernel"]
    found = merged(networks.params(), trained, lora)["layers_1"]["mlp"]["down"]["kernel"]
    added = 3.5 * np.asarray(beside["up"]) @ np.asarray(beside["down"])
    np.testing.assert_allclose(found, kernel + added, atol=1e-6)
    assert list(targets(networks.params(), lora)) == [("layers_1", "mlp", "down")]


@pytest.mark.parametrize("pattern", ["layers_9/*", "attention", "*/query/kernel"])
def test_a_pattern_that_names_nothing(pattern):
    with pytest.raises(ValueError, match="names no kernel"):
        init_adapters(networks.params(), Lora(targets=(pattern,)), jax.random.key(0))


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_adapters_of_no_kind(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lora(**wrong)


def step(state, policy=ADAPTED, kl_coef=0.1):
    return grpo_step(
        policy,
        grpo_jax.grpo(kl_coef=kl_coef),
        optax.adam(1e-2),
        state,
        None,
        lambda _: networks.prompts((4, 3)),
        lambda rollout: (rollout.completion % 7 == 0).sum(axis=-1).astype(float),
        group_size=4,
        sampling=Sampling(max_new_tokens=6),
    )


def begun(trained):
    return TrainState(
        trained,
        optax.adam(1e-2).init(trained),
        jnp.zeros([], jnp.int32),
        jax.random.key(3),
        frozen=jax.tree.map(jnp.array, networks.params()),
    )


def test_only_adapters_are_trained_and_the_reference_is_the_same_weights():
    trained = init_adapters(networks.params(), LORA, jax.random.key(0))
    before = jax.tree.map(np.array, networks.params())
    result = step(begun(trained))
    jax.tree.map(np.testing.assert_array_equal, result.state.frozen, before)
    shapes = adapter_shapes(networks.CONFIG, LORA)
    assert jax.tree.map(jnp.shape, result.state.params) == jax.tree.map(jnp.shape, shapes)
    moments = [x for x in jax.tree.leaves(result.state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(shapes))
    # At the first step the policy is its reference, at the second no longer.
    assert float(result.metrics[0]["kl"]) == pytest.approx(0, abs=1e-6)
    assert float(step(result.state).metrics[0]["kl"]) > 1e-5


def test_the_gradient_is_that_of_the_merged_weights():
    """By the chain rule: d/dB = scale · G Aᵀ and d/dA = scale · Bᵀ G, with G that of the kernel."""
    trained = adapters()

    def by_kernels(params):
        return (logits(PLAIN, params) ** 2).mean()

    def by_adapters(trained):
        return (logits(ADAPTED, whole(trained)) ** 2).mean()

    kernels = jax.grad(by_kernels)(merged(networks.params(), trained, LORA))
    found = jax.grad(by_adapters)(trained)["layers_0"]["attention"]["value"]
    gradient = kernels["layers_0"]["attention"]["value"]["kernel"]
    beside = trained["layers_0"]["attention"]["value"]
    scale = LORA.scale
    np.testing.assert_allclose(found["up"], scale * gradient @ beside["down"].T, atol=1e-5)
    np.testing.assert_allclose(found["down"], scale * beside["up"].T @ gradient, atol=1e-5)


def test_dropout_is_for_training_alone():
    lora = dataclasses.replace(LORA, dropout=0.5)
    policy = adapted_policy(networks.CONFIG, lora)
    params = whole(adapters())
    np.testing.assert_array_equal(logits(policy, params), logits(ADAPTED, params))
    assert policy.with_noise is not None
    assert ADAPTED.with_noise is None
    first, again, other = (
        logits(policy, policy.with_noise(params, jax.random.key(seed))) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 0.01
    assert float(jnp.abs(first - logits(policy, params)).max()) > 0.01


def test_each_micro_batch_drops_other_inputs():
    """Two groups that are equal, one a micro-batch: with one mask for both their gradients would
    be the same, and the update as large as that of one of them."""
    lora = dataclasses.replace(LORA, dropout=0.5)
    policy, objective = adapted_policy(networks.CONFIG, lora), grpo_jax.grpo(kl_coef=0.0)
    prompts = networks.prompts((4,))
    rollout = sample_groups(
        policy,
        whole(adapters()),
        prompts,
        prompt_keys(jax.random.key(0), 0, 1),
        group_size=4,
        sampling=Sampling(max_new_tokens=5),
    )
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), rollout)
    rewards = jnp.array([[0.0, 1.0, 0.0, 2.0]])
    optimizer = optax.sgd(1.0)

    def change(rollout):
        batch = prepare(objective, rollout, jnp.tile(rewards, (len(rollout.prompt), 1)))
        start = adapters()
        state = TrainState(
            start,
            optimizer.init(start),
            jnp.zeros([], jnp.int32),
            jax.random.key(0),
            frozen=jax.tree.map(jnp.array, networks.params()),
        )
        state, _ = update(
            policy,
            objective,
            optimizer,
            state,
            batch,
            key=jax.random.key(0),
            micro_batch_tokens=1,
        )
        return (
            state.params["layers_0"]["mlp"]["up"]["up"] - adapters()["layers_0"]["mlp"]["up"]["up"]
        )

    both, one = change(twice), change(rollout)
    assert float(jnp.abs(both - one).max()) > 1e-3 * float(jnp.abs(one).max())


def test_adapters_in_half_precision():
    half = adapted_policy(networks.CONFIG, LORA, Compute("bfloat16"))
    params = whole(adapters())
    cast = half.read_often(params)
    assert cast["trained"]["layers_0"]["mlp"]["up"]["down"].dtype == jnp.bfloat16
    wanted = logits(ADAPTED, params)
    added = np.abs(wanted - logits(PLAIN, networks.params()))
    off = np.abs(logits(half, cast) - wanted)
    assert off.mean() < added.mean() / 20
    assert off.max() < added.max() / 5
