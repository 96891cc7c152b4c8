"""bfloat16 compute over float32 parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from grpo_jax.models.decoder import decoder_policy
from grpo_jax.models.layers import Compute
from grpo_jax.policy import completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups

HALF = decoder_policy(networks.CONFIG, Compute("bfloat16"))
# bfloat16 keeps 8 bits: 2^-8 a rounding, and some tens of them from the embedding to a logit.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def rollout():
    return sample_groups(
        HALF,
        networks.params(),
        networks.prompts((5, 2)),
        prompt_keys(jax.random.key(0), 0, 2),
        group_size=3,
        sampling=Sampling(max_new_tokens=6),
    )


def test_cache_and_prefix_are_of_the_compute_type():
    prompts = networks.prompts((5, 2))
    prefix, hidden = HALF.prefill(networks.params(), prompts.tokens, prompts.mask)
    cache = HALF.init_cache(prefix, 3, 4)
    assert {x.dtype for x in (*prefix.keys, *prefix.values, *cache.keys, *cache.values)} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert hidden.dtype == jnp.bfloat16
    assert HALF.unembed(networks.params(), hidden).dtype == jnp.float32


def test_weights_cast_once_are_those_cast_at_each_product(rollout):
    each_time = sample_groups(
        dataclasses.replace(HALF, cast=None),
        networks.params(),
        networks.prompts((5, 2)),
        prompt_keys(jax.random.key(0), 0, 2),
        group_size=3,
        sampling=Sampling(max_new_tokens=6),
    )
    for ours, other in zip(*map(jax.tree.leaves, (rollout, each_time)), strict=True):
        np.testing.assert_array_equal(ours, other)
    types = {x.dtype for x in jax.tree.leaves(HALF.cast(networks.params())) if x.ndim == 2}
    assert types == {jnp.dtype(jnp.bfloat16)}
    params = networks.params()
    assert networks.POLICY.read_often(params) is params  # read as they are


def test_sampler_and_scorer_agree(rollout):
    scored = completion_log_probs(HALF, networks.params(), rollout).log_probs
    assert scored.dtype == jnp.float32
    np.testing.assert_allclose(scored, rollout.sampler_log_probs, atol=TOLERANCE)


def test_half_is_near_whole_in_value_and_gradient(rollout):
    def loss(params, policy):
        return completion_log_probs(policy, params, rollout).log_probs.mean()

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    whole, grads = value_and_grad(networks.params(), networks.POLICY)
    half, half_grads = value_and_grad(networks.params(), HALF)
    assert half != whole  # or nothing was computed in bfloat16
    np.testing.assert_allclose(half, whole, atol=TOLERANCE)
    for ours, wanted in zip(jax.tree.leaves(half_grads), jax.tree.leaves(grads), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, wanted, atol=0.05 * float(jnp.abs(wanted).max()) + 1e-5)


def test_the_policy_of_a_shape_and_type_is_one_object():
    assert decoder_policy(dataclasses.replace(networks.CONFIG), Compute("bfloat16")) is HALF
    assert HALF is not networks.POLICY
