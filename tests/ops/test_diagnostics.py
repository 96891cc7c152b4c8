import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import diagnostics as oracles

from grpo_jax.ops import diagnostics

P, G, T = 2, 3, 5
PAIRS = ("kl_means", "mismatch")
RATIOS = ("effective_sample_size", "log_ratio_extremes")
LARGEST = float(np.exp(80.0))


def inputs(seed, dtype=np.float32):
    """Two sets of log-probabilities with junk outside of a mask with holes."""
    rng = np.random.default_rng(seed)
    mask = rng.random((P, G, T)) < 0.7
    mask[0, 1] = False
    pair = np.where(mask, -np.abs(rng.normal(size=(2, P, G, T))), np.nan)
    return (*pair.astype(dtype), mask)


@functools.cache
def compiled(name):
    return jax.jit(getattr(diagnostics, name))


def extremes(log_ratio, mask):
    ratios = [np.exp(x) for (x,) in oracles.counted(mask, log_ratio)]
    return min(ratios), max(ratios)


def wanted(name, log_probs, other, mask):
    if name in PAIRS:
        return getattr(oracles, name)(log_probs, other, mask)
    rule = extremes if name == "log_ratio_extremes" else oracles.effective_sample_size
    return rule(log_probs - other, mask)


def arguments(name, log_probs, other, mask):
    return (log_probs, other, mask) if name in PAIRS else (log_probs - other, mask)


def compare(found, theirs, tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(theirs)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PAIRS + RATIOS)
def test_equals_a_loop(name, transform):
    f = transform(getattr(diagnostics, name))
    for seed in range(2):
        arrays = inputs(seed)
        found = f(*map(jnp.array, arguments(name, *arrays)))
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
        compare(found, wanted(name, *np.float64(arrays[:2]), arrays[2]), 1e-5)


@pytest.mark.parametrize("name", PAIRS + RATIOS)
def test_float64_padding_and_order(name):
    with jax.enable_x64(True):
        log_probs, other, mask = inputs(2, np.float64)
        found = jax.device_get(compiled(name)(*arguments(name, log_probs, other, mask)))
        assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float64)}
        compare(found, wanted(name, log_probs, other, mask), 1e-10)
        flipped = [x[::-1, ::-1, ::-1] for x in (log_probs, other, mask)]
        compare(compiled(name)(*arguments(name, *flipped)), found, 1e-12)
        wide = [(0, 0), (0, 0), (0, 2)]
        wider = [np.pad(x, wide, constant_values=np.nan) for x in (log_probs, other)]
        compare(compiled(name)(*arguments(name, *wider, np.pad(mask, wide))), found, 1e-12)


@pytest.mark.parametrize("name", PAIRS + RATIOS)
def test_nothing_that_counts(name):
    log_probs, other, mask = inputs(3)
    found = compiled(name)(*arguments(name, log_probs, other, np.zeros_like(mask)))
    values = [float(x) for x in jax.tree.leaves(found)]
    assert set(values) == ({1.0} if name == "effective_sample_size" else {0.0})


@pytest.mark.parametrize(
    ("log_probs", "other"),
    [
        ([-1e4, -1.0], [-1.0, -1.0]),
        ([-1.0, -1.0], [-1e4, -1.0]),
        ([-1e4, -1.0], [-1.0, -1e4]),
        ([-np.inf, -1.0], [-1.0, -1.0]),
        ([-1.0, -1.0], [-np.inf, -1.0]),
        ([-np.inf, -1.0], [-1.0, -np.inf]),
        ([-np.inf, -np.inf], [-np.inf, -np.inf]),
    ],
)
def test_absurd_log_probs_give_numbers(log_probs, other):
    pair, mask = np.float32([log_probs, other]), np.ones(2, bool)
    for name in PAIRS:
        for value in jax.tree.leaves(compiled(name)(*pair, mask)):
            assert np.isfinite(value)
    with np.errstate(invalid="ignore"):
        log_ratio = np.where(np.isneginf(pair).all(axis=0), 0.0, pair[0] - pair[1])
    for name in RATIOS:
        for value in jax.tree.leaves(compiled(name)(np.float32(log_ratio), mask)):
            assert np.isfinite(value)


def test_infinite_log_ratios_by_hand():
    mask = np.ones(4, bool)
    ess = compiled("effective_sample_size")
    assert ess(np.float32([np.inf, 0.0, 0.0, 0.0]), mask) == 0.25  # all the weight on one
    assert ess(np.float32([-np.inf, 0.0, 0.0, 0.0]), mask) == 0.75
    assert ess(np.full(4, -np.inf, np.float32), mask) == 1.0
    low, high = compiled("log_ratio_extremes")(np.float32([-np.inf, 0, 0, np.inf]), mask)
    assert low == 0.0
    np.testing.assert_allclose(high, LARGEST, rtol=1e-5)


# -- where the trust region acts -----------------------------------------------------------------


@pytest.mark.parametrize("by_token", [True, False])
def test_clip_shares_by_hand(by_token, transform):
    low = jnp.array([[True, False, False, True], [False, True, False, True]])
    high = jnp.array([[False, True, False, True], [False, False, True, True]])
    mask = jnp.array([[True, True, True, False], [True, True, True, False]])
    advantages = jnp.array([[1.0], [-1.0]])
    if by_token:
        junk = np.where(mask, np.broadcast_to(advantages, (2, 4)), np.nan)
        advantages = jnp.array(junk, jnp.float32)
    found = transform(diagnostics.split_by_sign)(low, high, advantages, mask)
    sixths = {
        "low": 2,
        "high": 2,
        "region": 4,
        "low_positive": 1,
        "low_negative": 1,
        "high_positive": 1,
        "high_negative": 1,
    }
    assert found.keys() == {f"clip_ratio/{name}_mean" for name in sixths}
    for name, count in sixths.items():
        np.testing.assert_allclose(found[f"clip_ratio/{name}_mean"], count / 6, rtol=1e-6)
    nothing = transform(diagnostics.split_by_sign)(low, high, advantages, mask & False)
    assert not any(float(x) for x in nothing.values())


def test_advantages_of_zero_are_on_neither_side():
    acts = jnp.ones(3, bool)
    found = compiled("split_by_sign")(acts, acts, jnp.zeros(3), acts)
    shares = {name.removeprefix("clip_ratio/"): float(x) for name, x in found.items()}
    assert shares.pop("low_mean") == shares.pop("high_mean") == shares.pop("region_mean") == 1.0
    assert not any(shares.values())


# -- ratios, KL, mismatch ------------------------------------------------------------------------


def test_effective_sample_size_by_hand():
    ess = compiled("effective_sample_size")
    log_ratio, mask = np.log(np.float32([1.0, 3.0, 9.0, 9.0])), np.array([True, True, False, False])
    np.testing.assert_allclose(ess(log_ratio, mask), 16 / 20, rtol=1e-6)
    for shift in (0.0, 50.0, -1e4, 1e4):  # the scale of the weights does not matter
        constant = np.full(4, shift, np.float32)
        assert ess(constant, np.ones(4, bool)) == 1.0


def test_identical_policies():
    log_probs, _, mask = inputs(4)
    assert set(map(float, compiled("kl_means")(log_probs, log_probs, mask))) == {0.0}
    found = compiled("mismatch")(log_probs, log_probs, mask)
    assert set(map(float, found.values())) == {0.0}


def test_small_mismatches_do_not_drown_in_rounding():
    """ρ = 1 ± 1e-5 in float32: χ² and k3 are of the order of 1e-10."""
    sampler = np.zeros([2], np.float32)
    old = np.float32([1e-5, -1e-5])
    found = compiled("mismatch")(old, sampler, np.ones(2, bool))
    exact = oracles.mismatch(np.float64(old), sampler, np.ones(2, bool))
    np.testing.assert_allclose(
        found["sampler_mismatch/chi2"], exact["sampler_mismatch/chi2"], rtol=0.3
    )
    assert 0 <= found["sampler_mismatch/k3"] < 1e-9


def test_expectations_by_enumeration():
    """Over draws of the sampler, k3 is KL(sampler || old) and ρ² - 1 the chi-square divergence;
    over those of the policy, k1 and k3 are KL(policy || reference)."""
    one, two = np.random.default_rng(5).dirichlet(np.ones(4), size=2)
    divergence = (one * np.log(one / two)).sum()
    with jax.enable_x64(True):
        drawn = np.log(np.stack([one, two]))
        rows = []
        for token in range(4):
            pair = drawn[:, token : token + 1]
            k1, k3 = compiled("kl_means")(*pair, np.ones(1, bool))
            found = compiled("mismatch")(pair[1], pair[0], np.ones(1, bool))
            rows.append([k1, k3, found["sampler_mismatch/k3"], found["sampler_mismatch/chi2"]])
    expected = one @ np.array(rows, np.float64)
    np.testing.assert_allclose(expected[:3], divergence, rtol=1e-10)
    np.testing.assert_allclose(expected[3], ((two - one) ** 2 / one).sum(), rtol=1e-10)


# -- groups --------------------------------------------------------------------------------------


def test_pass_rate_by_hand(transform):
    rewards = jnp.array([[1.0, 0.0, jnp.nan, 0.0], [0.5, 0.5, 1.0, 0.0], [jnp.nan] * 4])
    np.testing.assert_allclose(transform(diagnostics.pass_rate)(rewards), [1 / 3, 0.5, 0.0])
    half = functools.partial(diagnostics.pass_rate, threshold=0.5)
    np.testing.assert_allclose(transform(half)(rewards), [1 / 3, 0.75, 0.0], rtol=1e-6)
    np.testing.assert_allclose(transform(half)(rewards[1]), 0.75)


@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_expected_zero_signal_by_enumeration(group_size, transform):
    rates = np.array([0.0, 0.1, 0.5, 1.0])
    wanted = []
    for rate in rates:
        total = 0.0
        for outcome in itertools.product([0, 1], repeat=group_size):
            chance = np.prod([rate if passed else 1 - rate for passed in outcome])
            total += chance if len(set(outcome)) == 1 else 0.0
        wanted.append(total)
    f = functools.partial(diagnostics.expected_zero_signal, group_size=group_size)
    np.testing.assert_allclose(transform(f)(jnp.array(rates, jnp.float32)), wanted, rtol=1e-6)


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_zero_signal_estimate_is_the_share_of_groups(group_size, transform):
    sampled = 5
    passed = np.arange(sampled + 1)
    f = functools.partial(diagnostics.zero_signal_estimate, group_size=group_size)
    found = transform(f)(jnp.array(passed), jnp.full(passed.shape, sampled))
    wanted = [oracles.zero_signal_share([1] * k + [0] * (sampled - k), group_size) for k in passed]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.any(f(jnp.array([0]), jnp.array([group_size - 1])))  # too few for one group


def test_zero_signal_estimate_is_unbiased():
    """Its mean over the outcomes of n draws is p^G + (1 - p)^G; the plain rule's is above that."""
    rate, sampled, group_size = 0.3, 6, 4
    chances = [
        math.comb(sampled, k) * rate**k * (1 - rate) ** (sampled - k) for k in range(sampled + 1)
    ]
    with jax.enable_x64(True):
        passed = np.arange(sampled + 1)
        found = diagnostics.zero_signal_estimate(
            passed, np.full_like(passed, sampled), group_size=group_size
        )
        exact = diagnostics.expected_zero_signal(np.array([rate]), group_size=group_size)[0]
        plain = diagnostics.expected_zero_signal(passed / sampled, group_size=group_size)
        np.testing.assert_allclose(np.dot(chances, found), exact, rtol=1e-12)
        assert np.dot(chances, plain) > exact + 0.05


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_gradient_of_the_expected_zero_signal(rate):
    gradient = jax.grad(lambda p: diagnostics.expected_zero_signal(p, group_size=4))(rate)
    np.testing.assert_allclose(gradient, 4 * rate**3 - 4 * (1 - rate) ** 3, rtol=1e-6)


def test_refusals():
    mask, zeros = np.ones([2, 3], bool), np.zeros([2, 3], np.float32)
    with pytest.raises(ValueError, match="group_size is 0"):
        diagnostics.expected_zero_signal(zeros, group_size=0)
    with pytest.raises(ValueError, match="group_size is 0"):
        diagnostics.zero_signal_estimate(zeros.astype(int), zeros.astype(int), group_size=0)
    for name in PAIRS:
        with pytest.raises(AssertionError):
            getattr(diagnostics, name)(zeros, zeros[:, 1:], mask)
    for name in RATIOS:
        with pytest.raises(AssertionError):
            getattr(diagnostics, name)(zeros[:, :1], mask)
    with pytest.raises(AssertionError):
        diagnostics.pass_rate(zeros.astype(int))
    with pytest.raises(AssertionError):
        diagnostics.split_by_sign(mask, mask, zeros[0], mask)
