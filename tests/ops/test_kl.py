import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numeric
from oracles import trust_regions as oracles
from token_batches import value_and_slopes

from grpo_jax.ops import kl

PLAIN = [kl.k1, kl.k2, kl.k3, kl.straight_through]
ESTIMATES = pytest.mark.parametrize("name", ["k1", "k2", "k3"])


def random_pair(seed, dtype="float32", shape=(2, 4, 5)):
    rng = np.random.default_rng(seed)
    return [jnp.array(-np.abs(rng.normal(size=shape)).astype(np.float32), dtype) for _ in range(2)]


def loop(function, *arrays):
    found = np.vectorize(lambda *x: function(*x))(*(np.asarray(x, np.float64) for x in arrays))
    return found


@ESTIMATES
def test_kl_estimates_equal_their_formulas(name, precision):
    dtype, close, transform = precision
    log_probs, ref = random_pair(0, dtype)
    found, slopes = transform(lambda x: value_and_slopes(lambda y: getattr(kl, name)(y, ref), x))(
        log_probs
    )
    assert found.dtype == slopes.dtype == dtype
    u = np.asarray(log_probs, np.float64) - np.asarray(ref, np.float64)
    wanted, wanted_slopes = loop(getattr(oracles, name), u)
    np.testing.assert_allclose(found, wanted, rtol=close, atol=close)
    np.testing.assert_allclose(slopes, wanted_slopes, rtol=close, atol=close)


def test_straight_through_is_one_in_value_and_the_other_in_gradient(precision):
    dtype, close, transform = precision
    log_probs, ref = random_pair(1, dtype)
    u = np.asarray(log_probs, np.float64) - np.asarray(ref, np.float64)
    for settings, value, gradient in [
        ({}, oracles.k3, oracles.k2),
        ({"value": kl.k1, "gradient": kl.k3}, oracles.k1, oracles.k3),
    ]:
        run = functools.partial(kl.straight_through, **settings)
        found, slopes = transform(lambda x, f=run: value_and_slopes(lambda y: f(y, ref), x))(
            log_probs
        )
        assert found.dtype == slopes.dtype == dtype
        np.testing.assert_allclose(found, loop(value, u)[0], rtol=close, atol=close)
        np.testing.assert_allclose(slopes, loop(gradient, u)[1], rtol=close, atol=close)


@ESTIMATES
def test_ratio_corrected_has_the_gradient_of_both_factors(name, precision):
    dtype, close, transform = precision
    (log_probs, ref), (old, _) = random_pair(2, dtype), random_pair(3, dtype)
    run = functools.partial(kl.ratio_corrected, estimate=getattr(kl, name))
    found, slopes = transform(lambda x: value_and_slopes(lambda y: run(y, ref, y - old), x))(
        log_probs
    )
    assert found.dtype == slopes.dtype == dtype
    x, r, o = (np.asarray(y, np.float64) for y in (log_probs, ref, old))
    wanted, wanted_slopes = loop(
        lambda u, delta: oracles.ratio_corrected(u, delta, getattr(oracles, name)), x - r, x - o
    )
    np.testing.assert_allclose(found, wanted, rtol=close, atol=close)
    np.testing.assert_allclose(slopes, wanted_slopes, rtol=close, atol=close)
    u = np.array([0.7])
    product = numeric.slope(
        lambda x: oracles.ratio_corrected(x[0], x[0] + 0.4, getattr(oracles, name))[0], u, 0
    )
    np.testing.assert_allclose(
        oracles.ratio_corrected(0.7, 1.1, getattr(oracles, name))[1], product, atol=1e-8
    )


def test_k3_is_zero_at_the_reference_and_never_negative():
    log_probs, ref = random_pair(5)
    assert not np.any(kl.k3(log_probs, log_probs))
    assert (kl.k3(log_probs, ref) >= 0).all()
    assert (kl.k3(log_probs, log_probs + 1e-4) >= 0).all()


def test_kl_values_and_gradients_by_enumeration():
    """R1: over three tokens, k1 and k3 are unbiased values. As losses on-policy k2 and k3 have the
    gradients of KL(policy || reference) and KL(reference || policy), k1 has none. Through the
    ratio, k1 and k3 are unbiased in both, under another policy's draws and under its own."""

    def distributions(logits):
        return jax.nn.log_softmax(logits), jax.nn.log_softmax(jnp.array([-0.1, 0.4, 0.0]))

    def expected(estimate, draws=None):
        """E over draws, which no gradient flows through: the policy's own, or those given."""

        def loss(logits):
            log_probs, ref = distributions(logits)
            if draws is None:
                return (jax.lax.stop_gradient(jnp.exp(log_probs)) * estimate(log_probs, ref)).sum()
            log_draws = jax.lax.stop_gradient(jax.nn.log_softmax(draws))
            corrected = kl.ratio_corrected(log_probs, ref, log_probs - log_draws, estimate=estimate)
            return (jnp.exp(log_draws) * corrected).sum()

        return jax.value_and_grad(loss)

    def divergence(logits):
        log_probs, ref = distributions(logits)
        return (jnp.exp(log_probs) * (log_probs - ref)).sum()

    def reverse(logits):
        log_probs, ref = distributions(logits)
        return (jnp.exp(ref) * (ref - log_probs)).sum()

    @jax.jit
    def run(logits, old):
        own = [expected(f)(logits) for f in PLAIN]
        through = [expected(f, x)(logits) for f in (kl.k1, kl.k3) for x in (logits, old)]
        return own, through, jax.value_and_grad(divergence)(logits), jax.grad(reverse)(logits)

    with jax.enable_x64(True):
        found = run(jnp.array([0.3, -0.7, 0.2]), jnp.array([0.9, 0.1, -0.3]))
    own, through, (value, gradient), of_reverse = found
    own = dict(zip(PLAIN, own, strict=True))
    for estimate in (kl.k1, kl.k3, kl.straight_through):
        np.testing.assert_allclose(own[estimate][0], value, atol=1e-12)
    np.testing.assert_allclose(own[kl.k1][1], np.zeros(3), atol=1e-12)
    np.testing.assert_allclose(own[kl.k2][1], gradient, atol=1e-12)
    np.testing.assert_allclose(own[kl.straight_through][1], gradient, atol=1e-12)
    np.testing.assert_allclose(own[kl.k3][1], of_reverse, atol=1e-12)
    for corrected_value, corrected_gradient in through:
        np.testing.assert_allclose(corrected_value, value, atol=1e-12)
        np.testing.assert_allclose(corrected_gradient, gradient, atol=1e-12)


def test_far_from_the_reference_all_stays_finite():
    log_probs, ref = np.float32([0.0, -1e4, -79.0, 0.0]), np.float32([-1e4, 0.0, 0.0, 0.0])
    huge = np.float32([-1e4, 1e4, 79.0, 1e4])

    @jax.jit
    def run(x, ref, huge):
        found = [value_and_slopes(lambda y, f=f: f(y, ref), x) for f in PLAIN]
        for estimate in PLAIN[:3]:
            for delta in (huge, -huge):
                run = functools.partial(kl.ratio_corrected, estimate=estimate)
                found += [value_and_slopes(lambda y, f=run, d=delta: f(y, ref, d + (y - x)), x)]
        return found

    found = run(log_probs, ref, huge)
    for values, slopes in found:
        assert np.isfinite(values).all()
        assert np.isfinite(slopes).all()
    # Held at its value at u = -80, and not turned around: no gradient.
    values, slopes = found[2]
    np.testing.assert_allclose(values, [9999.0, np.exp(80), np.exp(79), 0], rtol=1e-5)
    np.testing.assert_allclose(slopes, [1.0, 0.0, -np.exp(79), 0.0], rtol=1e-5)


def test_impossible_tokens():
    """Of both policies: no divergence. Of the reference alone: infinite. Never NaN."""
    inf = np.inf
    log_probs, ref = np.float32([-inf, -1.0, -inf]), np.float32([-inf, -inf, -1.0])

    @jax.jit
    def run(x, ref):
        plain = [value_and_slopes(lambda y, f=f: f(y, ref), x) for f in PLAIN]
        by_ratio = {delta: [] for delta in (0.0, -inf, inf)}
        for delta, found in by_ratio.items():
            for estimate in PLAIN[:3]:
                run = functools.partial(kl.ratio_corrected, estimate=estimate)
                fixed = jnp.full([3], delta)
                found += [value_and_slopes(lambda y, f=run, d=fixed: f(y, ref, d), x)]
        return plain, by_ratio

    plain, by_ratio = run(log_probs, ref)
    far = np.exp(80)
    values = [[0, inf, -inf], [0, inf, inf], [0, inf, far], [0, inf, far]]
    for (found, slopes), wanted in zip(plain, values, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        assert not np.isnan(slopes).any()
        assert slopes[0] == 0
    for delta, pairs in by_ratio.items():
        for found, slopes in pairs:
            assert not np.isnan(found).any()
            assert not np.isnan(slopes).any()
            assert found[0] == slopes[0] == 0
            assert delta != -inf or not np.any(found)


def test_padding_and_leading_axes_change_nothing():
    log_probs, ref = (np.asarray(x) for x in random_pair(6))
    wide = [np.pad(x, [(0, 0), (0, 0), (0, 2)]) for x in (log_probs, ref)]
    for estimate in (kl.k3, kl.straight_through):
        run = jax.jit(estimate)
        found = run(log_probs, ref)
        np.testing.assert_array_equal(jax.jit(jax.vmap(run))(log_probs, ref), found)
        np.testing.assert_array_equal(np.asarray(run(*wide))[..., :5], found)


@ESTIMATES
def test_types_and_shapes_are_checked(name):
    run, x = getattr(kl, name), jnp.zeros([2, 3])
    for wrong in (jnp.zeros([2, 3], int), jnp.zeros([3])):
        with pytest.raises(AssertionError):
            run(x, wrong)
    with pytest.raises(AssertionError):
        kl.ratio_corrected(x, x, jnp.zeros([3]), estimate=run)
