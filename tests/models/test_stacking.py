"""One loop over stacked layers, and recomputed layers: the same numbers."""

import dataclasses

import jax
import networks
import numpy as np
import pytest

from grpo_jax.models.config import Layer
from grpo_jax.models.decoder import decoder_policy
from grpo_jax.models.layers import Compute
from grpo_jax.models.lora import Lora, adapted_policy, init_adapters
from grpo_jax.models.rotary import Rotary
from grpo_jax.models.stacking import check_alike, separated, stacked
from grpo_jax.policy import completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups

ROLLOUT = sample_groups(
    networks.POLICY,
    networks.params(),
    networks.prompts((7, 2)),
    prompt_keys(jax.random.key(0), 0, 2),
    group_size=3,
    sampling=Sampling(max_new_tokens=6, stop_ids=(1, 2, 3)),
)


def copied(params):
    """The same arrays in dictionaries of their own, which `stacked` empties."""
    return jax.tree.map(lambda x: x, params)


def said(policy, params):
    return completion_log_probs(policy, params, ROLLOUT).log_probs


def gradient(policy, params):
    return jax.grad(lambda params: (said(policy, params) ** 2).mean())(params)


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_stacked_and_separated_are_inverses_bit_for_bit():
    params = networks.params()
    there = stacked(copied(params), 2)
    assert {name for name in there if name.startswith("layers")} == {"layers"}
    jax.tree.map(np.testing.assert_array_equal, separated(there), params)


def test_a_loop_over_layers_says_the_same():
    params = networks.params()
    there = stacked(copied(params), 2)
    close(said(networks.POLICY, there), said(networks.POLICY, params))
    close(separated(gradient(networks.POLICY, there)), gradient(networks.POLICY, params))


def test_sampling_from_stacked_parameters():
    again = sample_groups(
        networks.POLICY,
        stacked(copied(networks.params()), 2),
        networks.prompts((7, 2)),
        prompt_keys(jax.random.key(0), 0, 2),
        group_size=3,
        sampling=Sampling(max_new_tokens=6, stop_ids=(1, 2, 3)),
    )
    np.testing.assert_array_equal(again.completion, ROLLOUT.completion)


def test_stacked_adapters():
    lora = Lora(rank=2)
    policy = adapted_policy(networks.CONFIG, lora)
    adapters = init_adapters(networks.params(), lora, jax.random.key(1))
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    params = {"trained": adapters, "frozen": networks.params()}
    there = {name: stacked(copied(tree), 2) for name, tree in params.items()}
    close(said(policy, there), said(policy, params))


def test_adapters_of_some_layers_cannot_be_stacked():
    lora = Lora(targets=("layers_0/*",))
    adapters = init_adapters(networks.params(), lora, jax.random.key(1))
    with pytest.raises(ValueError, match="only some of them"):
        stacked(copied(adapters), 2)
    uneven = adapters | {"layers_1": {"mlp": adapters["layers_0"]["mlp"]}}
    with pytest.raises(ValueError, match="only some of them"):
        stacked(copied(uneven), 2)


def test_layers_that_differ_are_no_loop():
    layers = (Layer(Rotary(8)), Layer(Rotary(8), window=4))
    with pytest.raises(ValueError, match="those of this model differ"):
        check_alike(dataclasses.replace(networks.CONFIG, layers=layers))
    check_alike(networks.CONFIG)


@pytest.mark.parametrize("remat", ["all but products", "all"])
@pytest.mark.parametrize("loop", [False, True], ids=["separate", "stacked"])
def test_layers_computed_again_in_the_backward_pass(remat, loop):
    policy = decoder_policy(networks.CONFIG, Compute(remat=remat))
    params = networks.params()
    there = stacked(copied(params), 2) if loop else params
    found = separated(gradient(policy, there))
    close(found, gradient(networks.POLICY, params))
