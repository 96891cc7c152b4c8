"""Rules of a whole batch, by hand; their loops and invariances are in test_advantages.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import credit as oracles
from oracles import numeric

from grpo_jax.ops import advantages, batch_advantages

SIZE = (32, 8)


@jax.jit
def rules(rewards):
    return {
        "center": advantages.group_center(rewards),
        "raw": batch_advantages.batch_scaled(rewards, eps=0.0),
        "centred": batch_advantages.batch_scaled(rewards, eps=0.0, centred=True, ddof=0),
        "beta": batch_advantages.beta_normalize(rewards),
        "beta_from_-1": batch_advantages.beta_normalize(rewards, min_reward=-1.0),
        "beta_to_5": batch_advantages.beta_normalize(rewards, max_weight=5.0),
        "gpg": batch_advantages.gpg(rewards),
        "gpg_verl": batch_advantages.gpg(rewards, count_nonzero=True),
    }


def of(groups):
    """Advantages of a few small groups by each rule, float64: the others have no rewards."""
    groups = np.array(groups)
    rewards = np.full(SIZE, np.nan)
    rewards[: groups.shape[0], : groups.shape[1]] = groups
    with jax.enable_x64(True):
        found = rules(jnp.array(rewards))
    return {k: np.asarray(x)[: groups.shape[0], : groups.shape[1]] for k, x in found.items()}


def test_batch_scaled_takes_the_rewards_as_they_are():
    # Between groups they differ more than within.
    found = of([[10.0, 12.0], [0.0, 2.0]])
    unit = 1 / (104 / 3) ** 0.5
    np.testing.assert_allclose(found["raw"], [[-unit, unit]] * 2, rtol=1e-10)
    np.testing.assert_allclose(found["centred"], [[-1, 1]] * 2, rtol=1e-10)


def test_beta_normalize_divides_by_the_density():
    # Rates 1/4, 1/2 and 3/4: m = 1/2, v = 1/16, a = b = 3/2, so that α = β = 3/2, whose density is
    # 8/π √(p (1 - p)).
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    p = np.array([[0.25], [0.5], [0.75]])
    wanted = (rewards - p) / (8 / np.pi * np.sqrt(p * (1 - p)))
    np.testing.assert_allclose(of(rewards)["beta"], wanted, rtol=1e-10)
    np.testing.assert_allclose(of(2 * rewards - 1)["beta_from_-1"], wanted, rtol=1e-10)


@pytest.mark.parametrize(
    "rewards",
    [
        [[1.0, 0, 0], [np.nan, np.nan, np.nan]],  # one group
        [[1.0, 0, 0], [0, 0, 1]],  # equal rates
        [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]],  # equal but for the rounding of their sums
        [[0.0, 0, 0], [1, 1, 1]],  # no group with a signal; v is larger than m (1 - m)
        [[np.nan] * 3] * 2,
    ],
)
def test_beta_normalize_has_density_1_where_nothing_can_be_fitted(rewards):
    found = of(rewards)
    np.testing.assert_array_equal(found["beta"], found["center"])
    assert np.isfinite(found["beta"]).all()


def test_equal_rates_may_differ_by_rounding():
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1


def test_beta_normalize_bounds_the_weight():
    # All but one of the rates are close to 1, so that the density at 1/8 is small.
    rewards = np.ones(SIZE)
    rewards[:, 0], rewards[::2, 1], rewards[0] = 0.0, 0.0, [1] + [0] * 7
    found = of(rewards)
    assert found["beta"][0, 0] > 5
    np.testing.assert_allclose(found["beta"], oracles.beta_normalize(rewards), rtol=1e-10)
    np.testing.assert_allclose(found["beta_to_5"][0, 0], 5 * 7 / 8, rtol=1e-10)
    np.testing.assert_allclose(found["beta_to_5"][1:], found["beta"][1:], rtol=1e-10)


def test_rewards_outside_their_bounds_are_centred():
    # The last group's rate is 1.05, of which no Beta distribution has a density.
    found = of([[1.0, 1.0, 1.0, 0.0]] * 20 + [[1.0, 1.1, np.nan, np.nan]])
    np.testing.assert_array_equal(found["beta"][-1], found["center"][-1])
    assert (np.abs(found["beta"][:-1]) < np.abs(found["center"][:-1])).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_reward": 1.0}, "max_reward is 1.0; it must be above min_reward, 1.0"),
        ({"max_weight": 0.0}, "max_weight is 0.0"),
    ],
)
def test_beta_normalize_refuses_bounds_that_bound_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        batch_advantages.beta_normalize(jnp.ones([2, 2]), **settings)


def test_gpg_counts_completions_of_groups_with_signal():
    # 7 rewards, of which 3 in the one group that has a signal; not 0 are 4 of them.
    found = of([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, np.nan, np.nan]])
    centred = np.array([[2 / 3, -1 / 3, -1 / 3], [0] * 3, [0] * 3])
    np.testing.assert_allclose(found["gpg"], centred * 7 / 3, rtol=1e-10)
    np.testing.assert_allclose(found["gpg_verl"], centred * 7 / 4, rtol=1e-10)
    assert not np.any(of([[0.0, 0.0]])["gpg_verl"])


SHAPE = (3, 4, 2)
WEIGHTS = [0.5, 2.0]


def rewards_by_function():
    rewards = np.random.default_rng(0).normal(size=SHAPE)
    rewards[0, 1, 0] = rewards[1, 2] = rewards[2, :, 1] = np.nan
    return rewards


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_gdpo_is_the_loop(weights, transform):
    rewards = np.float32(rewards_by_function())
    given = () if weights is None else (jnp.array(weights),)
    found = transform(batch_advantages.gdpo)(jnp.array(rewards), *given)
    wanted = oracles.gdpo(rewards, weights or [1.0, 1.0])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert found[1, 2] == 0


@jax.jit
def gdpo(rewards, weights, cotangent):
    """Advantages, and the slopes of their sum times `cotangent` in the rewards."""

    def ours(rewards):
        return batch_advantages.gdpo(rewards, weights, eps=0.0, ddof=0)

    found, pull_back = jax.vjp(ours, rewards)
    return found, pull_back(cotangent)[0]


def in_float64(rewards, weights):
    with jax.enable_x64(True):
        cotangent = jnp.arange(12.0).reshape(3, 4)
        found = gdpo(jnp.array(rewards), jnp.array(weights, float), cotangent)
    return [np.asarray(x) for x in found]


def test_gdpo_in_float64():
    def oracle(rewards):
        return oracles.gdpo(rewards, WEIGHTS, eps=0.0, ddof=0)

    rewards, cotangent = rewards_by_function(), np.arange(12.0).reshape(3, 4)
    found, slopes = in_float64(rewards, WEIGHTS)
    np.testing.assert_allclose(found, oracle(rewards), rtol=1e-10, atol=1e-12)
    for index in [(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 3, 1), (2, 2, 0), (2, 2, 1)]:
        wanted = numeric.slope(lambda r: (oracle(r) * cotangent).sum(), rewards, index)
        wanted = 0.0 if np.isnan(rewards[index]) else wanted
        np.testing.assert_allclose(slopes[index], wanted, rtol=1e-6, atol=1e-6)


def test_gdpo_of_equal_rewards_is_nothing():
    rewards = rewards_by_function()
    one = np.full(SHAPE, 0.1)
    one[0], one[1, :, 1] = rewards[0], [1, 0, 0, 1]
    found, _ = in_float64(one, WEIGHTS)
    assert not np.any(found[2])  # exactly, though other groups have a signal
    assert np.all(found[:2])
    for equal in (np.broadcast_to(rewards[:, :1], SHAPE), np.full(SHAPE, 0.1), rewards * np.nan):
        found, slopes = in_float64(equal, WEIGHTS)
        assert not np.any(found)
        assert np.isfinite(slopes).all()


def test_gdpo_does_not_see_scale_shift_or_order():
    rewards = rewards_by_function()
    found, _ = in_float64(rewards, WEIGHTS)
    moved, _ = in_float64(rewards * [100, 0.1] + [7, -3], WEIGHTS)
    np.testing.assert_allclose(moved, found, rtol=1e-10, atol=1e-12)
    turned, _ = in_float64(rewards[::-1, [2, 0, 1, 3]], WEIGHTS)
    np.testing.assert_allclose(turned, found[::-1, [2, 0, 1, 3]], rtol=1e-10, atol=1e-12)
    swapped, _ = in_float64(rewards[..., ::-1], WEIGHTS[::-1])
    np.testing.assert_allclose(swapped, found, rtol=1e-10, atol=1e-12)


def test_gdpo_tells_apart_what_a_sum_does_not():
    # The same total throughout, made up otherwise: once by the one function, thrice by the other.
    rewards = np.full(SHAPE, np.nan)
    rewards[0] = [[1, 0], [0, 1], [0, 1], [0, 1]]
    root = 3**0.5
    found, _ = in_float64(rewards, [2.0, 1.0])
    np.testing.assert_allclose(found[0], [root, -1 / root, -1 / root, -1 / root], rtol=1e-10)
    # A function that is given twice is as if it were given once.
    found, _ = in_float64(rewards[:, :, :1] * [1.0, 1.0], [1.0, 1.0])
    np.testing.assert_allclose(found[0], [root, -1 / root, -1 / root, -1 / root], rtol=1e-10)


def test_gdpo_of_one_function_is_normalised_twice():
    rewards = rewards_by_function()
    rewards[..., 1] = np.nan
    found, _ = in_float64(rewards, [1.0, 1.0])
    alone = oracles.group_normalize(rewards[..., 0], eps=0.0)
    wanted = oracles.batch_whiten(np.where(np.isnan(rewards[..., 0]), np.nan, alone), 0.0, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
