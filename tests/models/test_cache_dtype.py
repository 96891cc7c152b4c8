"""Keys and values kept in another type than the one computed in."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from models import families

from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.models.layers import Compute
from grpo_jax.policy import completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups

CONFIGS = {
    "grouped": networks.CONFIG,
    "latent": families.open_directory(families.FAMILIES / "deepseek_v3").config,
}


@functools.cache
def params_of(kind):
    return init_params(CONFIGS[kind], jax.random.key(0))


def policy_of(kind, cache_dtype):
    return decoder_policy(CONFIGS[kind], Compute(cache_dtype=cache_dtype))


def sampled(kind, cache_dtype):
    return sample_groups(
        policy_of(kind, cache_dtype),
        params_of(kind),
        networks.prompts((5, 2)),
        prompt_keys(jax.random.key(0), 0, 2),
        group_size=3,
        sampling=Sampling(max_new_tokens=6),
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_kept_and_what_is_computed(kind):
    policy, prompts = policy_of(kind, "bfloat16"), networks.prompts((5, 2))
    prefix, hidden = policy.prefill(params_of(kind), prompts.tokens, prompts.mask)
    cache = policy.init_cache(prefix, 3, 4)
    kept = {x.dtype for x in (*prefix.keys, *prefix.values, *cache.keys, *cache.values)}
    assert kept == {jnp.dtype(jnp.bfloat16)}
    tokens = jnp.ones([2, 3, 1], jnp.int32)
    after, cache = policy.extend(params_of(kind), prefix, tokens, cache)
    assert {x.dtype for x in (*cache.keys, *cache.values)} == {jnp.dtype(jnp.bfloat16)}
    assert hidden.dtype == after.dtype == jnp.float32


@pytest.mark.parametrize("kind", CONFIGS)
def test_scoring_says_what_sampling_said(kind):
    rollout = sampled(kind, "bfloat16")
    score = functools.partial(completion_log_probs, rollout=rollout, params=params_of(kind))
    said = score(policy_of(kind, "bfloat16")).log_probs
    off = np.abs(np.asarray(said - rollout.sampler_log_probs))
    # Where rounding of products puts a key on the other side of a step of bfloat16, it moves by
    # 2^-8 of itself; elsewhere nothing is rounded twice.
    assert np.median(off) < 2e-6
    assert off.max() < 2e-3
    unrounded = np.abs(np.asarray(score(policy_of(kind, "")).log_probs - said))
    assert np.median(unrounded) > 2e-5
    assert unrounded.max() < 0.05


def test_gradients_pass_as_they_are():
    rollout = sampled("grouped", "")

    def loss(params, policy):
        return completion_log_probs(policy, params, rollout).log_probs.mean()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    plain, rounded = (grad(params_of("grouped"), policy_of("grouped", x)) for x in ("", "bfloat16"))
    for ours, wanted in zip(jax.tree.leaves(rounded), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=0.02 * float(jnp.abs(wanted).max()) + 1e-7)
    assert not np.array_equal(
        *(g["layers_0"]["attention"]["key"]["kernel"] for g in (plain, rounded))
    )
