import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import corrections as oracles

from grpo_jax.ops import corrections

RULES = {
    "truncated": {"max_ratio": 1.5},
    "masked": {"min_ratio": 0.6, "max_ratio": 1.7},
    "sequence_truncated": {"max_ratio": 1.3},
    "sequence_masked": {"min_ratio": 0.4, "max_ratio": 2.5},
    "geometric_masked": {"min_ratio": 0.8, "max_ratio": 1.25},
}
every_rule = pytest.mark.parametrize("name", RULES)
INF = np.inf
opsm = jax.jit(corrections.off_policy_sequences)


def rule(name, **settings):
    return functools.partial(getattr(corrections, name), **(settings or RULES[name]))


def random_batch(seed, count=12, tokens=6):
    """Log-probabilities a little apart, and a mask with holes and empty completions."""
    rng = np.random.default_rng(seed)
    sampler = -rng.exponential(size=(count, tokens))
    old = sampler + rng.normal(size=(count, tokens)) * 0.5
    mask = rng.random((count, tokens)) < rng.random((count, 1))
    mask[0], mask[1] = True, False
    return old, sampler, mask


def ones(*shape):
    return np.ones(shape, bool)


def floats(*rows):
    return np.array(rows, np.float32)


@every_rule
def test_factors_equal_a_loop(name, transform):
    factors = transform(rule(name))
    for seed in range(3):
        old, sampler, mask = random_batch(seed)
        old, sampler = np.float32(old), np.float32(sampler)
        found = factors(jnp.array(old), jnp.array(sampler), jnp.array(mask))
        wanted = getattr(oracles, name)(np.float64(old), np.float64(sampler), mask, **RULES[name])
        assert found.dtype == jnp.float32
        assert len(np.unique(wanted)) > 1
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0)


@every_rule
def test_factors_keep_float64(name):
    old, sampler, mask = random_batch(3)
    with jax.enable_x64(True):
        found = jax.jit(rule(name))(old, sampler, mask)
        assert found.dtype == jnp.float64
        mixed = jax.eval_shape(rule(name), old, np.float32(sampler), mask)
        assert mixed.dtype == jnp.float64
    wanted = getattr(oracles, name)(old, sampler, mask, **RULES[name])
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=0)


@every_rule
def test_factors_are_constants(name, transform):
    """The gradient of factor · log π is the factor: none flows through the factor."""
    old, sampler, mask = (jnp.array(x) for x in random_batch(4))

    def loss(log_probs, sampler):
        return (rule(name)(log_probs, sampler, mask) * jnp.where(mask, log_probs, 0.0)).sum()

    now, other = transform(jax.grad(loss, (0, 1)))(old, sampler)
    factors = transform(rule(name))(old, sampler, mask)
    np.testing.assert_allclose(now, np.where(mask, factors, 0.0), rtol=1e-6)
    assert not np.any(other)


@every_rule
def test_junk_padding_order_and_leading_axes_change_nothing(name):
    old, sampler, mask = random_batch(5)
    old, sampler, factors = np.float32(old), np.float32(sampler), jax.jit(rule(name))
    found = np.asarray(factors(old, sampler, mask))
    for junk in (np.nan, np.inf, -np.inf):
        hidden = np.where(mask, old, np.float32(junk)), np.where(mask, sampler, np.float32(-junk))
        np.testing.assert_array_equal(factors(*hidden, mask), found)
    wide = [(0, 0), (0, 3)]
    wider = factors(np.pad(old, wide), np.pad(sampler, wide), np.pad(mask, wide))
    np.testing.assert_allclose(wider[:, : found.shape[1]], found, rtol=1e-6)
    turned = factors(old[::-1, ::-1], sampler[::-1, ::-1], mask[::-1, ::-1])
    np.testing.assert_allclose(turned[::-1, ::-1], found, rtol=1e-6)
    shift = factors(old - 2, sampler - 2, mask)
    np.testing.assert_allclose(shift, found, rtol=1e-5)
    apart = factors(*(x.reshape(3, 4, -1) for x in (old, sampler, mask)))
    np.testing.assert_array_equal(apart.reshape(found.shape), found)
    mapped = jax.jit(jax.vmap(rule(name)))(old, sampler, mask)
    np.testing.assert_array_equal(mapped, found)


@every_rule
def test_equal_policies_and_empty_completions_have_factor_one(name):
    log_probs, factors = floats([-1.0, -0.3, -INF]), jax.jit(rule(name))
    assert np.all(factors(log_probs, log_probs, ones(1, 3)) == 1)
    other = floats([2.0, np.nan, -INF])
    assert np.all(factors(log_probs, other, ~ones(1, 3)) == 1)


HALF, TWO = np.log(0.5), np.log(2.0)


@pytest.mark.parametrize(
    ("name", "settings", "log_ratios", "wanted"),
    [
        ("truncated", {}, [HALF, 0.0, TWO, 2 * TWO], [0.5, 1, 2, 2]),
        ("truncated", {"max_ratio": float("inf")}, [HALF, 2 * TWO], [0.5, 4]),
        ("truncated", {"max_ratio": 1.0}, [HALF, TWO], [0.5, 1]),
        ("masked", {}, [2 * HALF, 0.0, TWO, 3 * TWO], [0, 1, 2, 0]),
        ("masked", {"min_ratio": 0.0}, [2 * HALF, TWO], [0.25, 2]),
        ("sequence_truncated", {}, [TWO, TWO], [2]),
        ("sequence_truncated", {"max_ratio": float("inf")}, [TWO, TWO], [4]),
        ("sequence_truncated", {}, [TWO, HALF, HALF], [0.5]),
        ("sequence_masked", {}, [TWO, TWO], [0]),
        ("sequence_masked", {}, [TWO, HALF, HALF], [0.5]),
        ("sequence_masked", {"min_ratio": 0.6}, [HALF], [0]),
        ("geometric_masked", {"min_ratio": 0.6, "max_ratio": 1.5}, [TWO, TWO, HALF, HALF], [1]),
        ("geometric_masked", {"min_ratio": 0.6, "max_ratio": 1.5}, [TWO, TWO], [0]),
        ("geometric_masked", {"min_ratio": 0.6, "max_ratio": 1.5}, [HALF], [0]),
        ("geometric_masked", {"min_ratio": 0.6, "max_ratio": 1.5}, [HALF, 0.0], [1]),
    ],
)
def test_factors_by_hand(name, settings, log_ratios, wanted):
    sampler = np.full(len(log_ratios), -3, np.float32)
    factors = jax.jit(functools.partial(getattr(corrections, name), **settings))
    found = factors(sampler + np.float32(log_ratios), sampler, np.ones(len(log_ratios), bool))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "old", "sampler", "wanted"),
    [
        ("truncated", [-INF, -1.0, -1e4, 1e4], [-1.0, -INF, 1e4, -1e4], [0, 2, 0, 2]),
        ("masked", [-INF, -1.0, -1e4, 1e4], [-1.0, -INF, 1e4, -1e4], [0, 0, 0, 0]),
        ("sequence_truncated", [-1.0, -1.0], [-INF, -1.0], [2]),
        ("sequence_truncated", [-INF, -1.0], [-1.0, -INF], [0]),  # 0 · ∞
        ("sequence_masked", [-INF, -1.0], [-1.0, -INF], [0]),
        ("sequence_masked", [-1.0, -1.0], [-INF, -1.0], [0]),
        ("geometric_masked", [-INF, -1.0], [-1.0, -INF], [0]),
        ("geometric_masked", [-1.0, -1.0], [-INF, -1.0], [0]),
        ("geometric_masked", [-1e4, -1.0], [1e4, -1.0], [0]),
    ],
)
def test_impossible_tokens_and_absurd_ratios(name, old, sampler, wanted):
    settings = RULES[name] if name == "geometric_masked" else {}
    factors = jax.jit(functools.partial(getattr(corrections, name), **settings))
    found = factors(floats(*old), floats(*sampler), ones(len(old)))
    assert found.tolist() == wanted


def test_an_uncapped_ratio_is_still_finite():
    for name in ("truncated", "sequence_truncated"):
        found = jax.jit(rule(name, max_ratio=INF))(floats(0.0), floats(-1e4), ones(1))
        np.testing.assert_allclose(found, np.exp(80.0), rtol=1e-5)


def drifts(seed):
    """Current policy, sampler, advantages of both signs and one of 0, mask."""
    now, sampler, mask = random_batch(seed, count=30)
    advantages = np.random.default_rng(seed + 100).normal(size=(len(mask), 1))
    advantages[2] = 0.0
    return now, sampler, advantages, mask


def test_off_policy_sequences_equal_a_loop(transform):
    masked_out = transform(functools.partial(corrections.off_policy_sequences, max_drift=0.1))
    for seed in range(3):
        arrays = drifts(seed)
        found = masked_out(*(jnp.array(x) for x in arrays))
        wanted = oracles.off_policy_sequences(*arrays, max_drift=0.1)
        assert 0 < wanted.mean() < 1
        np.testing.assert_array_equal(found, wanted)
    with jax.enable_x64(True):
        found = masked_out(*(jnp.array(x) for x in arrays))
        assert found.dtype == jnp.float64
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("drift", "advantage", "wanted"),
    [(0.51, -1.0, 0.0), (0.51, 1.0, 1.0), (0.51, 0.0, 1.0), (0.5, -1.0, 1.0), (-9.0, -1.0, 1.0)],
)
def test_the_cases_of_off_policy_sequences(drift, advantage, wanted):
    """The mean over the tokens counts: here the drift is all in one token of two."""
    found = opsm(floats(-2.0 * drift, 0.0), floats(0.0, 0.0), floats(advantage), ones(2))
    assert found.tolist() == [wanted]


def test_advantages_by_token_go_by_the_sign_of_their_mean():
    now, sampler = np.full([3, 3], -2, np.float32), np.zeros([3, 3], np.float32)
    mask = np.array([[True, True, False]] * 3)
    advantages = floats([-3.0, 1.0, 9.0], [3.0, -1.0, -9.0], [-1.0, -1.0, np.nan])
    found = opsm(now, sampler, advantages, mask)
    assert found.tolist() == [[0.0], [1.0], [0.0]]


def test_off_policy_sequences_at_the_edges():
    bad = np.full([5, 1], -1, np.float32)
    now = floats([-INF, -INF], [-1.0, -INF], [-1.0, -1.0], [-INF, -1.0], [-1e4, 1.0])
    sampler = floats([-INF, -INF], [-1.0, -1.0], [-INF, -1.0], [-1.0, -INF], [1e4, 1.0])
    found = opsm(now, sampler, bad, ones(5, 2))
    assert found.tolist() == [[1.0], [0.0], [1.0], [0.0], [0.0]]
    empty = opsm(now, sampler, bad, ~ones(5, 2))
    assert np.all(empty == 1)
    wide = [(0, 0), (0, 1)]
    wider = opsm(
        np.pad(now, wide, constant_values=np.nan),
        np.pad(sampler, wide, constant_values=np.inf),
        bad,
        np.pad(ones(5, 2), wide),
    )
    np.testing.assert_array_equal(wider, found)


def test_off_policy_sequences_have_no_gradient():
    now, sampler, advantages, mask = (jnp.array(x) for x in drifts(6))

    def total(now, sampler, advantages):
        found = opsm(now, sampler, advantages, mask)
        return (found * jnp.where(mask, now, 0.0)).sum()

    slopes = jax.jit(jax.grad(total, (0, 1, 2)))(now, sampler, advantages)
    factors = opsm(now, sampler, advantages, mask)
    assert 0 < factors.sum() < len(mask)
    np.testing.assert_allclose(slopes[0], np.where(mask, factors, 0.0), rtol=1e-6)
    assert not np.any(slopes[1])
    assert not np.any(slopes[2])


@pytest.mark.parametrize("name", ["truncated", "sequence_truncated"])
@pytest.mark.parametrize("max_ratio", [0.9, 0.0, -1.0, float("nan")])
def test_a_cap_below_one_is_refused(name, max_ratio):
    with pytest.raises(ValueError, match=f"max_ratio is {max_ratio}; it must be 1 or more"):
        rule(name, max_ratio=max_ratio)(np.zeros(2), np.zeros(2), ones(2))


@pytest.mark.parametrize("name", ["masked", "sequence_masked", "geometric_masked"])
@pytest.mark.parametrize(
    ("low", "high"), [(2.0, 1.0), (1.1, 2.0), (0.5, 0.9), (-0.1, 2.0), (0.5, float("nan"))]
)
def test_an_interval_without_one_is_refused(name, low, high):
    with pytest.raises(ValueError, match=f"min_ratio is {low} and max_ratio {high}; they must"):
        rule(name, min_ratio=low, max_ratio=high)(np.zeros(2), np.zeros(2), ones(2))


@pytest.mark.parametrize("max_drift", [-0.1, float("nan")])
def test_a_negative_drift_is_refused(max_drift):
    with pytest.raises(ValueError, match=f"max_drift is {max_drift}; it must be 0 or more"):
        corrections.off_policy_sequences(
            np.zeros(2), np.zeros(2), np.zeros(1), ones(2), max_drift=max_drift
        )


def test_shapes_and_types_are_checked():
    for call in (
        lambda: corrections.truncated(np.zeros(2), np.zeros(3), ones(2)),
        lambda: corrections.masked(np.zeros(2), np.zeros(2), np.ones(2)),
        lambda: corrections.sequence_truncated(np.zeros(2, int), np.zeros(2), ones(2)),
        lambda: corrections.off_policy_sequences(
            np.zeros([2, 3]), np.zeros([2, 3]), np.zeros([2]), ones(2, 3)
        ),
        lambda: corrections.off_policy_sequences(
            np.zeros([2, 3]), np.zeros([2, 3]), np.zeros([2, 2]), ones(2, 3)
        ),
    ):
        with pytest.raises(AssertionError):
            call()
