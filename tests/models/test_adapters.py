"""Networks of somebody's own: a function, a Flax NNX model, a module that is a pytree."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.models.adapters import causal_policy, from_module, from_nnx
from grpo_jax.policy import completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups

VOCAB = networks.CONFIG.vocab_size


def mixed(weights, tokens):
    """A causal network: means of embeddings so far, a matrix, logits."""
    x = weights["embedding"][tokens]
    so_far = jnp.cumsum(x, axis=1) / jnp.arange(1, tokens.shape[1] + 1)[None, :, None]
    return jnp.tanh(so_far @ weights["kernel"] + x)


def weights():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "embedding": jax.random.normal(keys[0], (VOCAB, 16)),
        "kernel": jax.random.normal(keys[1], (16, 16)),
    }


def head(weights, hidden):
    return 2 * hidden @ weights["embedding"].T


POLICY = causal_policy(mixed, head)
SAMPLING = Sampling(max_new_tokens=7, stop_ids=tuple(range(9)))


def sampled(policy, params, sample=sample_groups, **how):
    prompts = networks.prompts((5, 1, 3))
    keys = prompt_keys(jax.random.key(2), 0, 3)
    return sample(policy, params, prompts, keys, group_size=4, sampling=SAMPLING, **how)


def test_log_probabilities_are_those_of_one_pass_over_each_sequence():
    rollout = sampled(POLICY, weights())
    found = completion_log_probs(POLICY, weights(), rollout).log_probs
    np.testing.assert_allclose(found, rollout.sampler_log_probs, atol=1e-5)
    for p, g in np.ndindex(3, 4):
        prompt = np.asarray(rollout.prompt[p])[np.asarray(rollout.prompt_mask[p])]
        completion = np.asarray(rollout.completion[p, g])[np.asarray(rollout.completion_mask[p, g])]
        row = jnp.array(np.concatenate([prompt, completion]))[None]
        says = jax.nn.log_softmax(head(weights(), mixed(weights(), row)))[0]
        at = np.arange(len(prompt) - 1, row.shape[1] - 1)
        np.testing.assert_allclose(found[p, g, : len(completion)], says[at, completion], atol=1e-5)


def test_rows_that_change_places_draw_the_same_tokens():
    plain = sampled(POLICY, weights())
    moved = sampled(POLICY, weights(), sample_continuously, rows_at_once=4)
    np.testing.assert_array_equal(plain.completion, moved.completion)
    assert 0 < float(plain.completion_mask.mean()) < 1  # some ended early


def test_an_nnx_model():
    nnx = pytest.importorskip("flax.nnx", reason="flax.nnx does not import with this jax")

    class Model(nnx.Module):
        def __init__(self):
            self.embedding = nnx.Param(weights()["embedding"])
            self.kernel = nnx.Param(weights()["kernel"])

        def __call__(self, tokens):
            values = {"embedding": self.embedding[...], "kernel": self.kernel[...]}
            return head(values, mixed(values, tokens))

    same_as_the_function(*from_nnx(Model()))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("weights", "count"), meta_fields=("act",)
)
@dataclasses.dataclass(frozen=True)
class Module:
    """As Equinox has them: a pytree of arrays, functions and numbers that can be called."""

    weights: Any
    count: jax.Array
    act: Any

    def __call__(self, tokens):
        return self.act(self.weights, mixed(self.weights, tokens)) + 0 * self.count


def test_a_module_that_is_a_pytree():
    policy, params = from_module(Module(weights(), jnp.int32(3), head))
    assert sorted(params) == [".weights['embedding']", ".weights['kernel']"]
    same_as_the_function(policy, params)


def same_as_the_function(policy, params):
    rollout, wanted = sampled(policy, params), sampled(POLICY, weights())
    np.testing.assert_array_equal(rollout.completion, wanted.completion)

    def total(policy, params):
        return completion_log_probs(policy, params, wanted).log_probs.sum()

    value, gradient = jax.value_and_grad(functools.partial(total, policy))(params)
    expected, by_function = jax.value_and_grad(functools.partial(total, POLICY))(weights())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(by_function), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
