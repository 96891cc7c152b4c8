import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import credit as oracles

from grpo_jax.ops.advantages import group_center, group_normalize

BOTH = pytest.mark.parametrize(
    ("ours", "oracle"),
    [(group_normalize, oracles.group_normalize), (group_center, oracles.group_center)],
    ids=["normalize", "center"],
)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_loop(ours, oracle, seed, transform):
    rewards = np.random.default_rng(seed).normal(size=[5, 8]).astype(np.float32)
    rewards[1, 3] = np.nan  # no reward for this one
    rewards[2, 1:] = np.nan  # one reward in the group
    rewards[3] = np.nan  # none at all
    np.testing.assert_allclose(
        transform(ours)(jnp.array(rewards)), oracle(rewards), rtol=1e-5, atol=1e-6
    )


@BOTH
@pytest.mark.parametrize("value", [1.1, 0.1, -3.3, 1e6, 1e-6])
def test_equal_rewards_give_exact_zeros(ours, oracle, value, transform):
    # The mean of sixteen float32 1.1 is not 1.1; divided by a tiny deviation that would be 0.1.
    assert not np.any(np.asarray(transform(ours)(jnp.full([3, 16], value, jnp.float32))))


def test_one_success_in_eight_by_hand():
    advantages = group_normalize(jnp.array([[1.0] + [0.0] * 7]))
    np.testing.assert_allclose(advantages[0, 0], np.sqrt(7), rtol=1e-5)  # 2.646, population std
    np.testing.assert_allclose(advantages[0, 1:], -1 / np.sqrt(7), rtol=1e-5)


@BOTH
def test_order_shift_and_leading_axes(ours, oracle):
    rewards = jax.random.normal(jax.random.key(0), [4, 6])
    found = ours(rewards)
    order = jnp.array([3, 1, 0, 5, 4, 2])
    np.testing.assert_allclose(ours(rewards[:, order]), found[:, order], atol=1e-6)
    np.testing.assert_allclose(ours(rewards + 7.0), found, atol=1e-5)
    np.testing.assert_array_equal(ours(rewards[0]), found[0])
    np.testing.assert_array_equal(ours(rewards.reshape(2, 2, 6)), found.reshape(2, 2, 6))
    np.testing.assert_allclose(found.sum(axis=1), np.zeros(4), atol=1e-5)


def test_normalized_is_blind_to_scale():
    rewards = jax.random.normal(jax.random.key(1), [4, 6])
    np.testing.assert_allclose(
        group_normalize(100 * rewards, eps=0.0), group_normalize(rewards, eps=0.0), rtol=1e-5
    )


@BOTH
def test_integers_are_refused(ours, oracle):
    with pytest.raises(AssertionError):
        ours(jnp.array([[1, 0]]))
