"""Experts on record: from the sampler to training; and their balance in a step."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

import grpo_jax
from grpo_jax.algorithm import grpo_step
from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.lengths import concatenated, cut
from grpo_jax.models.config import Experts
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.models.layers import Compute
from grpo_jax.policy import completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import TrainState

EXPERTS = Experts(count=5, taken=2, width=12)
plain, *_ = networks.CONFIG.layers
mixed = dataclasses.replace(plain, experts=EXPERTS)
CONFIG = dataclasses.replace(networks.CONFIG, layers=(mixed, plain, mixed))
POLICY, KEEPING = decoder_policy(CONFIG), decoder_policy(CONFIG, Compute(keep_routing=True))
SAMPLING = Sampling(max_new_tokens=7, stop_ids=tuple(range(6)))


def params(seed=0):
    found = init_params(CONFIG, jax.random.key(seed))
    return found | {"head": 3 * found["head"]}


def sampled(policy=KEEPING, sample=sample_groups, **how):
    prompts, keys = networks.prompts((5, 1, 3)), prompt_keys(jax.random.key(2), 0, 3)
    return sample(policy, params(), prompts, keys, group_size=4, sampling=SAMPLING, **how)


def test_what_is_kept_is_what_scoring_would_choose():
    rollout = sampled()
    assert rollout.routing is not None
    assert rollout.prompt_routing is not None
    assert rollout.routing.shape == (3, 4, 7, 2, 2)
    assert rollout.prompt_routing.shape == (3, 5, 2, 2)
    prefix, _ = KEEPING.prefill(params(), rollout.prompt, rollout.prompt_mask)
    real = np.asarray(rollout.prompt_mask)
    np.testing.assert_array_equal(rollout.prompt_routing[real], prefix.routing[real])
    _, routed = KEEPING.extend(params(), prefix, rollout.completion)
    followed = np.asarray(rollout.completion_mask)[:, :, 1:]
    for layer in (0, 1):
        kept, chosen = rollout.routing[:, :, :-1, layer], routed.chosen[layer][:, :, :-1]
        np.testing.assert_array_equal(np.asarray(kept)[followed], np.asarray(chosen)[followed])


def test_keeping_changes_no_token():
    with_routing, without = sampled(), sampled(POLICY)
    assert without.routing is None
    np.testing.assert_array_equal(with_routing.completion, without.completion)


def test_rows_that_change_places_keep_the_same():
    plain, moved = sampled(), sampled(sample=sample_continuously, rows_at_once=4)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_training_takes_the_experts_on_record():
    rollout = sampled()
    other = params(1)  # a policy that has moved far
    replayed = completion_log_probs(KEEPING, other, rollout).log_probs
    free = completion_log_probs(
        KEEPING, other, dataclasses.replace(rollout, routing=None, prompt_routing=None)
    ).log_probs
    assert float(jnp.abs(replayed - free).max()) > 1e-3
    # On record is what the policy that sampled would choose: for it nothing changes.
    again = completion_log_probs(KEEPING, params(), rollout).log_probs
    np.testing.assert_allclose(again, rollout.sampler_log_probs, atol=1e-5)


def test_rollouts_that_are_cut_and_joined():
    rollout = sampled()
    narrow = cut(rollout)
    assert narrow.routing is not None
    assert narrow.routing.shape[2] == narrow.completion.shape[2]
    wide = dataclasses.replace(
        rollout,
        prompt=jnp.pad(rollout.prompt, [(0, 0), (0, 2)]),
        prompt_mask=jnp.pad(rollout.prompt_mask, [(0, 0), (0, 2)]),
        prompt_routing=jnp.pad(rollout.prompt_routing, [(0, 0), (0, 2), (0, 0), (0, 0)]),
    )
    both = concatenated([rollout, wide])
    assert both.prompt_routing is not None
    assert both.prompt_routing.shape == (6, 7, 2, 2)


def step(policy=KEEPING, micro_batch_tokens=0, **more):
    optimizer = optax.sgd(0.1)
    start = params()
    state = TrainState(start, optimizer.init(start), jnp.zeros([], jnp.int32), jax.random.key(3))
    return grpo_step(
        policy,
        grpo_jax.grpo(kl_coef=0.1),
        optimizer,
        state,
        params(1),
        lambda _: networks.prompts((4, 3, 5)),
        lambda rollout: (rollout.completion % 7 == 0).sum(axis=-1).astype(float),
        group_size=4,
        sampling=SAMPLING,
        micro_batch_tokens=micro_batch_tokens,
        **more,
    )


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_micro_batches_add_up(coef):
    whole, parts = step(balance_coef=coef), step(balance_coef=coef, micro_batch_tokens=1)
    for one, other in zip(
        jax.tree.leaves(whole.state.params), jax.tree.leaves(parts.state.params), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_balance_is_measured_and_trained():
    found = step(balance_coef=0.5)
    assert 0.5 < float(found.metrics[0]["router/balance"]) <= 5 / 2
    assert "router/balance" not in step().metrics[0]
    router = [
        result.state.params["layers_2"]["mlp"]["router"]["kernel"] for result in (found, step())
    ]
    assert float(jnp.abs(router[0] - router[1]).max()) > 1e-6


def test_tokens_that_none_follows_have_no_part_in_the_balance():
    """Their experts are not on record: what stands there must not matter."""
    rollout = sampled()
    assert rollout.routing is not None
    mask = np.asarray(rollout.completion_mask)
    followed = np.pad(mask[:, :, 1:], [(0, 0), (0, 0), (0, 1)])[..., None, None]
    other = dataclasses.replace(rollout, routing=jnp.where(followed, rollout.routing, 4))
    one, again = (
        completion_log_probs(KEEPING, params(1), x, with_balance=True) for x in (rollout, other)
    )
    np.testing.assert_array_equal(one.balance, again.balance)
    np.testing.assert_array_equal(one.log_probs, again.log_probs)
    # While those of a token that is followed do.
    moved = dataclasses.replace(rollout, routing=(rollout.routing + 1) % 5)
    found = completion_log_probs(KEEPING, params(1), moved, with_balance=True)
    assert float(jnp.abs(found.log_probs - one.log_probs).max()) > 1e-3


def test_a_balance_of_a_network_without_experts():
    with pytest.raises(ValueError, match="has no experts"):
        completion_log_probs(
            networks.POLICY,
            networks.params(),
            sample_groups(
                networks.POLICY,
                networks.params(),
                networks.prompts((2,)),
                prompt_keys(jax.random.key(0), 0, 1),
                group_size=2,
                sampling=Sampling(max_new_tokens=3),
            ),
            with_balance=True,
        )
