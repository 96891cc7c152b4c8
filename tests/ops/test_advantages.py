"""What all rules of credit share, those of whole batches too; then each rule of a group."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import credit as oracles
from oracles import numeric

from grpo_jax.ops import advantages, batch_advantages, pass_at_k, whitening


@dataclasses.dataclass
class Rule:
    """rewards -> advantages, the loop it is held to, and what leaves it alone."""

    ours: Callable
    oracle: Callable
    shift: bool = True  # a constant added to all rewards changes nothing
    degree: int | None = 1  # all rewards times s: advantages times s^degree
    batch: bool = False  # looks beyond the group


def both(ours, oracle, *, shift=True, degree: int | None = 1, batch=False, **settings):
    return Rule(partial(ours, **settings), partial(oracle, **settings), shift, degree, batch)


RULES = {
    "center": both(advantages.group_center, oracles.group_center),
    "normalize": both(advantages.group_normalize, oracles.group_normalize, degree=None),
    "normalize_1": both(
        advantages.group_normalize, oracles.group_normalize, degree=0, eps=0.0, ddof=1
    ),
    "loo": both(advantages.leave_one_out, oracles.leave_one_out),
    "loo_normalize": both(
        advantages.leave_one_out_normalize, oracles.leave_one_out_normalize, degree=None
    ),
    "max_rl": both(advantages.max_rl, oracles.max_rl, shift=False, degree=0),
    "batch_scaled": both(
        batch_advantages.batch_scaled, oracles.batch_scaled, degree=None, batch=True
    ),
    "batch_scaled_centred": both(
        batch_advantages.batch_scaled,
        oracles.batch_scaled,
        degree=0,
        batch=True,
        eps=0.0,
        ddof=0,
        centred=True,
    ),
    "beta_normalize": both(
        batch_advantages.beta_normalize,
        oracles.beta_normalize,
        shift=False,
        degree=None,
        batch=True,
        min_reward=-1.0,
        max_reward=4.0,
    ),
    "gpg": both(batch_advantages.gpg, oracles.gpg, batch=True),
    "gpg_verl": both(
        batch_advantages.gpg, oracles.gpg, shift=False, batch=True, count_nonzero=True
    ),
    "max_minus_second": both(pass_at_k.max_minus_second, oracles.max_minus_second),
    "pass_at_2": both(pass_at_k.pass_at_k, oracles.pass_at_k, k=2),
    "pass_at_4": both(pass_at_k.pass_at_k, oracles.pass_at_k, k=4),
    "batch_whiten": both(
        whitening.batch_whiten, oracles.batch_whiten, degree=0, batch=True, eps=0.0
    ),
}
ALL = pytest.mark.parametrize("name", RULES)
SHAPE = (5, 8)  # of all tests, and all rules in one function: so little is compiled


@jax.jit
def jitted(rewards):
    """With one more leading axis than in eager mode."""
    return {name: rule.ours(rewards[:, None])[:, 0] for name, rule in RULES.items()}


@jax.jit
def values_and_slopes(rewards, cotangent):
    """Of each rule the advantages, and the slopes of their sum times `cotangent`.

    Under `vmap`, as the first of two batches that have nothing to do with each other.
    """

    def of(rule, rewards):
        found, pull_back = jax.vjp(rule.ours, rewards)
        return found, pull_back(cotangent)[0]

    batches = jnp.stack([rewards, jnp.square(rewards[::-1]) + 1])
    found = {name: jax.vmap(partial(of, rule))(batches) for name, rule in RULES.items()}
    return jax.tree.map(lambda x: x[0], found)


def in_float64(name, rewards, cotangent):
    with jax.enable_x64(True):
        found = values_and_slopes(jnp.array(rewards), jnp.array(cotangent))[name]
    return [np.asarray(x) for x in found]


def rewards_with_gaps(seed=0):
    rewards = np.abs(np.random.default_rng(seed).normal(size=SHAPE))
    rewards[1, 3] = np.nan  # no reward for this one
    rewards[2, 1:] = np.nan  # one reward in the group
    rewards[3] = np.nan  # none at all
    rewards[4] = [1, 0, 0, 1, 0, 0, np.nan, 1]
    return rewards


@ALL
def test_equals_a_plain_loop(name, transform):
    rewards, rule = rewards_with_gaps().astype(np.float32), RULES[name]
    given = jnp.array(rewards)
    found = jitted(given)[name] if transform is jax.jit else rule.ours(given)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rule.oracle(rewards), rtol=1e-5, atol=1e-6)
    assert not np.any(np.where(np.isnan(rewards), found, 0.0))


@ALL
def test_value_and_gradient_in_float64(name):
    oracle = RULES[name].oracle
    rewards, cotangent = np.abs(np.random.default_rng(1).normal(size=(2, *SHAPE)))
    rewards[1, 2] = np.nan
    found, slopes = in_float64(name, rewards, cotangent)
    assert found.dtype == slopes.dtype == np.float64
    np.testing.assert_allclose(found, oracle(rewards), rtol=1e-10, atol=1e-12)
    for index in [(0, 0), (0, 6), (1, 1), (1, 2), (3, 5), (4, 3)]:
        wanted = numeric.slope(lambda r: (oracle(r) * cotangent).sum(), rewards, index)
        wanted = 0.0 if np.isnan(rewards[index]) else wanted
        np.testing.assert_allclose(slopes[index], wanted, rtol=1e-6, atol=1e-7)


def test_a_rounded_mean_would_show():
    equal = jnp.full(SHAPE, 0.1, jnp.float32)
    assert np.any(equal - equal.mean(axis=1, keepdims=True))


@ALL
def test_equal_rewards_give_exact_zeros(name):
    # The mean of eight float32 0.1 is not 0.1; divided by a tiny deviation that would be 0.1.
    for value in [1.1, 0.1, -3.3, 1e6, 1e-6]:
        assert not np.any(np.asarray(jitted(jnp.full(SHAPE, value, jnp.float32))[name])), value


@pytest.mark.parametrize("name", [name for name in RULES if name != "batch_whiten"])
def test_a_group_of_equal_rewards_gives_exact_zeros_among_others(name):
    rewards = np.full(SHAPE, 0.1, np.float32)
    rewards[1], rewards[2, 0], rewards[0, 5] = 0.7, 2.0, np.nan
    found = np.asarray(jitted(jnp.array(rewards))[name])
    assert not np.any(found[[0, 1, 3, 4]])
    assert np.any(found[2])


@ALL
def test_neither_value_nor_gradient_is_nan_where_there_is_no_deviation(name):
    some = np.zeros(SHAPE)
    some[0], some[1, 0], some[2, :3], some[3, :6] = 1.0, 1.0, np.nan, np.nan
    for rewards in (some, np.zeros(SHAPE), np.ones(SHAPE), np.full(SHAPE, np.nan)):
        found, slopes = in_float64(name, rewards, np.arange(40.0).reshape(SHAPE))
        assert np.isfinite(found).all()
        assert np.isfinite(slopes).all()


@ALL
def test_order(name):
    rewards = np.float32(rewards_with_gaps(2))
    found = np.asarray(jitted(rewards)[name])
    order = [3, 1, 0, 5, 4, 7, 2, 6]
    np.testing.assert_allclose(jitted(rewards[:, order])[name], found[:, order], atol=1e-5)
    np.testing.assert_allclose(jitted(rewards[::-1])[name], found[::-1], atol=1e-5)


@ALL
def test_missing_is_absent(name):
    rewards = np.random.default_rng(4).uniform(size=SHAPE).astype(np.float32)
    rewards[-1], rewards[:, -2:] = np.nan, np.nan
    found = jitted(rewards)[name]
    wanted = RULES[name].oracle(rewards[:-1, :-2])
    np.testing.assert_allclose(found[:-1, :-2], wanted, rtol=1e-5, atol=1e-6)
    assert not np.any(found[-1])
    assert not np.any(found[:, -2:])


@ALL
def test_shift_and_scale(name):
    rule, rewards = RULES[name], np.abs(np.random.default_rng(5).normal(size=SHAPE))
    found, _ = in_float64(name, rewards, rewards)
    if rule.shift:
        shifted, _ = in_float64(name, rewards + 7, rewards)
        np.testing.assert_allclose(shifted, found, rtol=1e-10, atol=1e-12)
    if rule.degree is not None:
        larger, _ = in_float64(name, 100 * rewards, rewards)
        np.testing.assert_allclose(larger, 100**rule.degree * found, rtol=1e-10, atol=1e-12)


@ALL
def test_narrow_floats_are_widened_and_integers_refused(name):
    ours = RULES[name].ours
    narrow = jax.eval_shape(ours, jnp.ones(8, jnp.bfloat16))
    assert (narrow.shape, narrow.dtype) == ((8,), jnp.float32)
    with jax.enable_x64(True):
        assert jax.eval_shape(ours, jnp.ones(8, jnp.float32)).dtype == jnp.float32
    for bad in (jnp.ones(SHAPE, int), jnp.ones(SHAPE, bool), jnp.array(1.0)):
        with pytest.raises(AssertionError):
            jax.eval_shape(ours, bad)


@pytest.mark.parametrize("name", ["center", "normalize", "loo", "batch_scaled", "gpg"])
def test_a_group_adds_up_to_nothing(name):
    found = jitted(np.float32(rewards_with_gaps(6)))[name]
    np.testing.assert_allclose(found.sum(axis=-1), np.zeros(5), atol=1e-5)


def of_one_group(name, group):
    """Advantages in float64 of one group, in a batch that holds no other."""
    rewards = np.full(SHAPE, np.nan)
    rewards[0, : len(group)] = group
    return in_float64(name, rewards, np.zeros(SHAPE))[0][0, : len(group)]


@pytest.mark.parametrize(
    ("name", "success", "failure"),
    [
        ("center", 7 / 8, -1 / 8),
        ("normalize", 7**0.5, -(7**-0.5)),  # 2.646, population std
        ("normalize_1", 7 / 8**0.5, -(8**-0.5)),  # 2.475, sample std
        ("loo", 1, -1 / 7),
        ("loo_normalize", 1, -(7**-0.5)),  # undivided; others of mean 1/7 and variance 1/7
        ("max_rl", 7, -1),
        ("batch_scaled", 7 / 8**0.5, -(8**-0.5)),
        ("gpg", 7 / 8, -1 / 8),
        ("gpg_verl", 7, -1),
        ("max_minus_second", 1, 0),
        ("pass_at_2", 2, 0),
        ("pass_at_4", 4, 0),
    ],
)
def test_one_success_in_eight_by_hand(name, success, failure):
    found = of_one_group(name, [0, 1] + [0] * 6)
    wanted = [failure, success] + [failure] * 6
    np.testing.assert_allclose(found, wanted, rtol=2e-5)  # eps is 1e-6 of a third
    assert len(set(found.tolist())) == 2


def test_no_deviation_is_read_out_of_rounding():
    # Seven times 0.1 has a rounded mean; the others of the first must still have deviation 0.
    rewards = np.full(SHAPE, 0.1, np.float32)
    rewards[:, 0] = 1.1
    found = jitted(rewards)["loo_normalize"]
    np.testing.assert_allclose(found[:, 0], np.ones(5), rtol=1e-6)


def test_one_other_reward_has_no_deviation():
    assert of_one_group("loo_normalize", [3, 1]).tolist() == [2, -2]


def test_max_rl_needs_a_positive_mean():
    for group, wanted in [([-1, 0, 0.5], [0] * 3), ([1, -1], [0] * 2), ([-1, 2, 2], [-2, 1, 1])]:
        np.testing.assert_allclose(of_one_group("max_rl", group), wanted, rtol=1e-12)


LENGTHS = np.array([[3, 1, 4, 1, 5, 9, 2, 0]] * 4 + [[0] * 8])


@pytest.mark.parametrize("integers", [True, False])
def test_opo_is_the_loop(integers, transform):
    rewards = np.float32(rewards_with_gaps())
    lengths = jnp.array(LENGTHS) if integers else jnp.array(LENGTHS, jnp.float32)
    found = transform(advantages.opo)(jnp.array(rewards), lengths)
    np.testing.assert_allclose(found, oracles.opo(rewards, LENGTHS), rtol=1e-5, atol=1e-6)
    assert not np.any(found[2:])
    weighted = np.where(np.isnan(rewards), 0, found) * LENGTHS
    np.testing.assert_allclose(weighted.sum(axis=1), np.zeros(5), atol=1e-5)


def test_opo_in_float64():
    rewards, cotangent = np.random.default_rng(7).normal(size=(2, *SHAPE))

    @jax.jit
    def both(rewards, lengths):
        found, pull_back = jax.vjp(lambda r: advantages.opo(r, lengths), rewards)
        return found, pull_back(jnp.array(cotangent))[0]

    with jax.enable_x64(True):
        found, slopes = both(jnp.array(rewards), jnp.array(LENGTHS))
        same, _ = both(jnp.array(rewards), jnp.full_like(LENGTHS, 7))
        equal, _ = both(jnp.full(SHAPE, 0.1), jnp.array(LENGTHS))
    np.testing.assert_allclose(found, oracles.opo(rewards, LENGTHS), rtol=1e-10, atol=1e-12)
    # A is linear in the rewards: the slope of r[i] is c[i] - L[i] Σ c / Σ L.
    share = LENGTHS[:4] / LENGTHS[:4].sum(axis=1, keepdims=True)
    wanted = cotangent[:4] - share * cotangent[:4].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(slopes[:4], wanted, rtol=1e-10, atol=1e-12)
    assert not np.any(slopes[4])
    # Equal lengths: the mean. Equal rewards: nothing.
    np.testing.assert_allclose(same, oracles.group_center(rewards), rtol=1e-10, atol=1e-12)
    assert not np.any(equal)


GREEDY = np.float32([0.5, 1.0, 0.0, 1.0, np.nan])


def test_greedy_baseline_is_the_loop(transform):
    rewards = np.float32(rewards_with_gaps())
    found = transform(advantages.greedy_baseline)(jnp.array(rewards), jnp.array(GREEDY))
    np.testing.assert_allclose(found, oracles.greedy_baseline(rewards, GREEDY), rtol=1e-6)
    assert not np.any(found[4])


def test_greedy_baseline_in_float64():
    rewards = rewards_with_gaps()
    with jax.enable_x64(True):
        given = jnp.array(rewards, jnp.float32), jnp.array(GREEDY, jnp.float64)
        found, pull_back = jax.vjp(advantages.greedy_baseline, *given)
        slopes = pull_back(jnp.ones(SHAPE))
    assert found.dtype == jnp.float64
    wanted = oracles.greedy_baseline(np.float32(rewards), GREEDY)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    # One for each reward that has something to be compared with.
    compared = ~np.isnan(rewards) & ~np.isnan(GREEDY)[:, None]
    np.testing.assert_array_equal(slopes[0], compared)
    np.testing.assert_array_equal(slopes[1], -compared.sum(axis=1))


def rewards_by_function():
    rewards = np.random.default_rng(6).normal(size=[*SHAPE, 2])
    rewards[0, 1, 0] = rewards[1, 2] = rewards[2, :, 1] = np.nan
    return rewards


@pytest.mark.parametrize("weights", [None, [0.5, -2.0]])
def test_weighted_sum_is_the_loop(weights, transform):
    rewards = np.float32(rewards_by_function())
    given = () if weights is None else (jnp.array(weights),)
    found = transform(advantages.weighted_sum)(jnp.array(rewards), *given)
    wanted = oracles.weighted_sum(rewards, weights or [1.0, 1.0])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.isnan(found[1, 2])


def test_weighted_sum_in_float64():
    rewards = rewards_by_function()
    with jax.enable_x64(True):
        given = jnp.array(rewards, jnp.float32), jnp.array([0.3, 0.7])
        found, pull_back = jax.vjp(advantages.weighted_sum, *given)
        slopes, _ = pull_back(jnp.ones(SHAPE))
    wanted = oracles.weighted_sum(np.float32(rewards), [0.3, 0.7])
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    weights = np.where(np.isnan(rewards), 0, np.float32([0.3, 0.7]))
    np.testing.assert_allclose(slopes, weights, rtol=1e-6)


F32, INT, BOOL = jnp.float32, jnp.int32, jnp.bool_


@pytest.mark.parametrize(
    ("rule", "shapes"),
    [
        (advantages.opo, [([2, 3], F32), ([2, 3], BOOL)]),
        (advantages.opo, [([2, 3], F32), ([3], INT)]),
        (advantages.greedy_baseline, [([2, 3], F32), ([2, 1], F32)]),
        (advantages.greedy_baseline, [([2, 3], F32), ([2], INT)]),
        (advantages.weighted_sum, [([4, 2], F32), ([3], F32)]),
        (advantages.weighted_sum, [([4, 2], F32), ([1, 2], F32)]),
        (advantages.weighted_sum, [([4, 2], F32), ([2], INT)]),
        (advantages.weighted_sum, [([4, 2], INT)]),
        (batch_advantages.gdpo, [([4, 2], INT)]),
        (batch_advantages.gdpo, [([4, 2], F32), ([4], F32)]),
        (whitening.token_whiten, [([2, 3], F32), ([2, 3], INT)]),
        (whitening.token_whiten, [([2, 3], INT), ([2, 3], BOOL)]),
        (whitening.token_whiten, [([3], F32), ([2, 3], BOOL)]),
    ],
)
def test_other_types_and_shapes_are_refused(rule, shapes):
    with pytest.raises(AssertionError):
        jax.eval_shape(rule, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))


@pytest.mark.parametrize(
    ("setting", "message"), [({"ddof": 2}, "ddof is 2"), ({"eps": -1e-6}, "eps is -1e-06")]
)
@pytest.mark.parametrize(
    "rule",
    [
        advantages.group_normalize,
        batch_advantages.batch_scaled,
        whitening.batch_whiten,
        lambda r, **s: whitening.token_whiten(r, r > 0, **s),
        lambda r, **s: batch_advantages.gdpo(r[..., None], **s),
    ],
    ids=["group_normalize", "batch_scaled", "batch_whiten", "token_whiten", "gdpo"],
)
def test_settings_that_break_their_rule_are_refused(rule, setting, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(rule, **setting), jax.ShapeDtypeStruct(SHAPE, F32))


@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_rewards_of_any_size_are_normalized(eps):
    """Squares of the largest and the smallest of these leave the range of float32."""
    for size in (1e20, 3e38, 1.0) + ((1e-30,) if eps == 0 else ()):
        found = advantages.group_normalize(jnp.array([size, 0.0, 0.0]), eps=eps)
        np.testing.assert_allclose(found, [2**0.5, -(0.5**0.5), -(0.5**0.5)], rtol=1e-5)
    assert np.isfinite(advantages.group_normalize(jnp.array([3e38, -3e38, 0.0]), eps=eps)).all()
