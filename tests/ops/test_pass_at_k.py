"""That the gradient is the one that is claimed; loops and invariances are in test_advantages.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.ops import advantages, pass_at_k

SIZE = 5


@jax.jit
def for_all_k(rewards):
    """[SIZE, ..., SIZE]: the advantages for k = 1, 2, ..., and last those of the best alone."""
    rules = [pass_at_k.pass_at_k(rewards, k=k) for k in range(1, SIZE + 1)]
    return jnp.stack(rules), pass_at_k.max_minus_second(rewards), advantages.leave_one_out(rewards)


def in_float64(rewards):
    with jax.enable_x64(True):
        return [np.asarray(x) for x in for_all_k(jnp.array(rewards, float))]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_expected_gradient_is_that_of_pass_at_k(p):
    """R6 over all 2^G groups of a coin with success rate p: d/dp (1 - (1 - p)^k)."""
    rewards = np.array(list(itertools.product([0.0, 1.0], repeat=SIZE)))
    probability = np.prod(np.where(rewards == 1, p, 1 - p), axis=1)
    score = np.where(rewards == 1, 1 / p, -1 / (1 - p))  # d/dp log π
    credit, _, _ = in_float64(rewards)
    for k in range(1, SIZE + 1):
        found = (probability * (credit[k - 1] * score).mean(axis=1)).sum()
        np.testing.assert_allclose(found, k * (1 - p) ** (k - 1), rtol=0, atol=1e-8)
        # And it is so for each completion by itself, not for their mean alone.
        each = (probability[:, None] * credit[k - 1] * score).sum(axis=0)
        np.testing.assert_allclose(each, np.full(SIZE, found), rtol=0, atol=1e-8)


def test_expected_gradient_is_that_of_the_best_of_k_real_rewards():
    """Three outcomes of rewards -0.7, 0.2 and 1.5: d/dp of Σ over k-tuples p(tuple) max."""
    values, p = np.array([-0.7, 0.2, 1.5]), np.array([0.5, 0.3, 0.2])
    outcomes = np.array(list(itertools.product(range(3), repeat=SIZE)))
    probability = p[outcomes].prod(axis=1)
    # Scores of a softmax in its logits: one-hot minus p.
    score = np.eye(3)[outcomes] - p
    credit, _, _ = in_float64(values[outcomes])
    for k in range(1, SIZE + 1):
        per_group = (credit[k - 1][..., None] * score).mean(axis=1)
        found = (probability[:, None] * per_group).sum(axis=0)
        best = np.zeros(3)
        for drawn in itertools.product(range(3), repeat=k):
            scores = (np.eye(3)[list(drawn)] - p).sum(axis=0)
            best += p[list(drawn)].prod() * values[list(drawn)].max() * scores
        np.testing.assert_allclose(found, best, rtol=0, atol=1e-8)


def test_the_two_ends():
    rewards = np.random.default_rng(0).normal(size=[4, SIZE])
    rewards[1, 2], rewards[3] = np.nan, [1, 1, 0, 0, 1]
    credit, best_alone, one_out = in_float64(rewards)
    np.testing.assert_array_equal(credit[0], one_out)
    whole = ~np.isnan(rewards).any(axis=1)
    np.testing.assert_allclose(credit[-1][whole], SIZE * best_alone[whole], rtol=1e-12)
    assert not np.any(credit[-1][~whole])  # four rewards are fewer than k
    np.testing.assert_array_equal(credit[-1][3], np.zeros(SIZE))  # two that are best
    assert (credit[1:] >= 0).all()


def test_the_order_of_equals_gives_nobody_more():
    rewards = np.array([[2.0, 1.0, 2.0, 1.0, 0.0], [1.0, 0.0, 1.0, 2.0, 2.0]])
    credit, _, _ = in_float64(rewards)
    np.testing.assert_array_equal(credit[:, 0, 0], credit[:, 0, 2])
    np.testing.assert_array_equal(credit[:, 0, 1], credit[:, 0, 3])
    np.testing.assert_allclose(credit[:, 0, :2], credit[:, 1, [3, 0]], rtol=1e-12)


def test_a_lone_success_in_a_large_group():
    # C(256, 128) is beyond float32 and nearly so beyond float64.
    rewards = jnp.zeros(256).at[77].set(1.0)
    found = jax.jit(lambda r: pass_at_k.pass_at_k(r, k=128))(rewards)
    np.testing.assert_allclose(found[77], 128.0, rtol=1e-4)
    assert np.count_nonzero(found) == 1


def test_groups_of_one():
    assert pass_at_k.max_minus_second(jnp.array([[3.0]])).tolist() == [[0.0]]
    assert pass_at_k.pass_at_k(jnp.array([[3.0]]), k=1).tolist() == [[0.0]]


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_outside_the_group_is_refused(k):
    with pytest.raises(ValueError, match=rf"k is {k}; it must be in 1\.\.5"):
        pass_at_k.pass_at_k(jnp.ones([2, SIZE]), k=k)
