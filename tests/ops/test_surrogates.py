import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numeric
from oracles import trust_regions as oracles
from token_batches import awkward_tokens, compiled, on_entries, random_tokens, value_and_slopes

from grpo_jax.ops import (
    covariance,
    divergence_masks,
    ratios,
    sequence_surrogates,
    surrogates,
)

BY_RATIO = ["clipped", "dual_clipped", "two_sided_clipped", "importance_weighted", "sapo"]


def by_token(name, log_probs, old, advantages, mask, **settings):
    """A surrogate of this file's module as a function of log-probabilities; 0 outside the mask."""
    function = functools.partial(getattr(surrogates, name), **settings)
    log_ratio = ratios.token(log_probs, old, mask)
    if name == "policy_gradient":
        losses = function(log_probs, advantages)
    elif name == "cispo":
        losses = function(log_ratio, log_probs, advantages)
    else:
        losses = function(log_ratio, advantages)
    return jnp.where(mask, losses, 0.0)


@pytest.mark.parametrize("name", [*BY_RATIO, "policy_gradient", "cispo"])
def test_surrogates_equal_their_equations(name, precision):
    dtype, close, transform = precision
    log_probs, old, advantages, mask = random_tokens(0, dtype)
    log_probs[0, 0, :2] = old[0, 0, :2] + np.array([2.5, -2.5], dtype)  # outside of every region
    log_probs[0, 1, :2] = old[0, 1, :2] + np.array([2.5, -2.5], dtype)
    advantages[0, :2, 0] = 1.25, -0.75
    mask[0, :2, :2] = True

    @transform
    def both(x):
        return value_and_slopes(lambda y: by_token(name, y, old, advantages, mask), x)

    found, slopes = both(jnp.array(log_probs))
    assert found.dtype == slopes.dtype == dtype
    delta = log_probs.astype(np.float64) - old
    given = {"policy_gradient": [log_probs], "cispo": [delta, log_probs]}.get(name, [delta])
    wanted, wanted_slopes = on_entries(getattr(oracles, name), mask, *given, advantages)
    np.testing.assert_allclose(found, wanted, rtol=close, atol=close)
    np.testing.assert_allclose(slopes, wanted_slopes, rtol=close, atol=close)


@pytest.mark.parametrize("name", BY_RATIO)
@pytest.mark.parametrize("a", [1.5, -0.5])
def test_the_oracles_slopes_are_those_of_their_values(name, a):
    for delta in (-2.0, -0.1, 0.05, 0.5, 1.2, 2.0):  # to either side of every bound
        wanted = numeric.slope(lambda x: getattr(oracles, name)(x[0], a)[0], np.array([delta]), 0)
        np.testing.assert_allclose(getattr(oracles, name)(delta, a)[1], wanted, atol=1e-7)


def clip_case(ratio, advantage, loss, slope, **settings):
    return ratio, advantage, loss, slope, settings


CLIP_CASES = {  # ε = 0.2; the slope is that of the loss in log π
    "clipped": [
        clip_case(1.5, 1.0, -1.2, 0.0),  # good and already more likely: no further
        clip_case(1.5, -1.0, 1.5, 1.5),  # bad and more likely: corrected
        clip_case(0.5, 1.0, -0.5, -0.5),  # good and less likely: corrected
        clip_case(0.5, -1.0, 0.8, 0.0),  # bad and already less likely: no further
        clip_case(1.0, 2.0, -2.0, -2.0),
        clip_case(1.1, -2.0, 2.2, 2.2),
        clip_case(1.25, 1.0, -1.25, -1.25, clip_eps_high=0.28),
        clip_case(0.85, -1.0, 0.9, 0.0, clip_eps_low=0.1),
    ],
    "dual_clipped": [
        clip_case(1.5, 1.0, -1.2, 0.0),
        clip_case(2.9, -1.0, 2.9, 2.9),
        clip_case(3.1, -1.0, 3.0, 0.0),  # bad and far more likely: a loss of 3 |A| at most
        clip_case(3.1, 1.0, -1.2, 0.0),
        clip_case(0.5, 1.0, -0.5, -0.5),
        clip_case(0.5, -1.0, 0.8, 0.0),
    ],
    "two_sided_clipped": [
        clip_case(1.5, 1.0, -1.2, 0.0),
        clip_case(3.9, -1.0, 3.9, 3.9),
        clip_case(4.1, -1.0, 4.0, 0.0),
        clip_case(4.1, 1.0, -1.2, 0.0),
        clip_case(0.5, 1.0, -0.5, -0.5),
        clip_case(0.5, -1.0, 0.8, 0.0),
    ],
    "cispo": [  # log π = -2: the loss is 2 w A and the slope -w A
        clip_case(6.0, 1.0, 10.0, -5.0),
        clip_case(6.0, -1.0, -10.0, 5.0),
        clip_case(0.25, 1.0, 1.0, -0.5, min_ratio=0.5),
        clip_case(0.25, -1.0, -1.0, 0.5, min_ratio=0.5),
        clip_case(0.25, -1.0, -0.5, 0.25),
        clip_case(1.5, 2.0, 6.0, -3.0),
    ],
    "sapo": [  # 4 σ(0.5) and 4 σ(0.5) σ(-0.5) 1.5; 4 / 1.05 σ(1.05 / 2)
        clip_case(1.5, 1.0, -2.489837, -1.410022),
        clip_case(0.5, 1.0, -1.510163, -0.470007),
        clip_case(1.5, -1.0, 2.393585, 1.401210),
        clip_case(0.5, -1.0, 1.415938, 0.467070),
    ],
}


@pytest.mark.parametrize("name", CLIP_CASES)
def test_the_four_clip_cases_by_hand(name):
    cases = CLIP_CASES[name]
    for settings in {str(case[4]): case[4] for case in cases}.values():
        ratio, advantages, losses, slopes = np.array(
            [case[:4] for case in cases if case[4] == settings], np.float32
        ).T
        log_probs, mask = np.full_like(ratio, -2.0), np.ones(ratio.shape, bool)
        run = compiled(functools.partial(by_token, name, **settings))
        found, found_slopes = run(log_probs, log_probs - np.log(ratio), advantages, mask)
        np.testing.assert_allclose(found, losses, rtol=2e-6)
        np.testing.assert_allclose(found_slopes, slopes, rtol=2e-6)


def test_two_sided_is_dual_clip_by_another_bound():
    ratio, advantages = np.linspace(0.1, 9.0, 60, dtype=np.float32), np.float32([1, -1] * 30)
    dual, two_sided = (
        compiled(functools.partial(by_token, name, max_ratio=3.5))(
            np.log(ratio), np.zeros_like(ratio), advantages, np.ones(60, bool)
        )
        for name in ("dual_clipped", "two_sided_clipped")
    )
    np.testing.assert_allclose(dual[0], two_sided[0], rtol=1e-6)
    np.testing.assert_allclose(dual[1], two_sided[1], rtol=1e-6)


def test_a_lower_width_above_one_is_no_lower_clip():
    loss = surrogates.clipped(jnp.array([-20.0]), jnp.array([-1.0]), clip_eps_low=10.0)
    np.testing.assert_allclose(loss, np.exp(-20.0), rtol=1e-5)


# -- every surrogate, of this module and its neighbours ----------------------------------------

ON_POLICY = {  # (log_probs, old, advantages [..., 1], mask) -> losses: the slope of their sum
    name: functools.partial(by_token, name) for name in (*BY_RATIO, "policy_gradient", "cispo")
}
ON_POLICY["clipped by sequence_token"] = lambda x, old, a, mask: jnp.where(
    mask, surrogates.clipped(ratios.sequence_token(x, old, mask), a), 0.0
)
ON_POLICY["dppo_tv"] = divergence_masks.dppo_tv
ON_POLICY["dppo_kl"] = divergence_masks.dppo_kl
ON_POLICY["vespo"] = lambda x, old, a, mask: sequence_surrogates.vespo(
    ratios.token(x, old, mask), x, a, mask
)
ON_POLICY["kl_cov"] = lambda x, old, a, mask: covariance.kl_cov(
    ratios.token(x, old, mask), x, a, mask
)
# No covariance is above 1000: nothing is drawn.
ON_POLICY["clip_cov"] = lambda x, old, a, mask: covariance.clip_cov(
    ratios.token(x, old, mask), x, a, mask, jax.random.key(0), cov_low=1e3, cov_high=1e4
)
BY_LENGTH = {  # one loss a completion, with a slope of -A / L
    "gmpo": lambda x, old, a, mask: sequence_surrogates.gmpo(ratios.token(x, old, mask), a, mask)
} | {
    f"{name} by sequence": lambda x, old, a, mask, name=name: getattr(surrogates, name)(
        ratios.sequence(x, old, mask), a
    )
    for name in ("clipped", "sapo")
}
EVERY = ON_POLICY | BY_LENGTH
SHAPE = (6, 8, 2)  # of one compiled program for each


@pytest.mark.parametrize("name", EVERY)
def test_on_policy_every_slope_is_minus_the_advantage(name):
    log_probs, _, advantages, mask = random_tokens(1, "float32", SHAPE)
    length = np.maximum(mask.sum(axis=-1, keepdims=True), 1) if name in BY_LENGTH else 1
    _, slopes = compiled(EVERY[name])(log_probs, log_probs, advantages, mask)
    wanted = np.where(mask, -advantages / length, 0.0)
    np.testing.assert_allclose(slopes, wanted, rtol=2e-6)


@pytest.mark.parametrize("name", EVERY)
def test_no_surrogate_makes_nan(name):
    """Ratios of 0 and infinity, impossible tokens, A = 0, a completion of nothing."""
    log_probs, old, advantages = (x.reshape(SHAPE[:2]) for x in awkward_tokens())
    finite, no_credit = np.isfinite(log_probs) & np.isfinite(old), advantages == 0
    log_probs, old = (np.stack([x, np.full_like(x, -0.5)], axis=-1) for x in (log_probs, old))
    for row in ([True, True], [True, False], [False, False]):
        mask = np.broadcast_to(row, SHAPE)
        found, slopes = compiled(EVERY[name])(log_probs, old, advantages[..., None], mask)
        found, slopes = np.asarray(found), np.asarray(slopes)
        assert not np.isnan(found).any()
        assert np.isfinite(slopes).all()
        assert np.isfinite(found[finite]).all()
        assert not np.any(slopes[no_credit]) or name == "kl_cov"  # whose penalty needs no credit
        assert not np.any(slopes[~mask])


@pytest.mark.parametrize("name", EVERY)
def test_junk_in_the_padding_and_order_have_no_effect(name):
    log_probs, old, advantages, mask = random_tokens(2, "float32", SHAPE)
    run = compiled(EVERY[name])
    found, slopes = run(
        np.where(mask, log_probs, np.nan), np.where(mask, old, np.nan), advantages, mask
    )
    clean, wanted = run(log_probs, old, advantages, mask)
    np.testing.assert_array_equal(found, clean)
    np.testing.assert_array_equal(slopes, wanted)
    swapped = run(*(x[:, ::-1] for x in (log_probs, old, advantages, mask)))
    np.testing.assert_allclose(swapped[0][:, ::-1], found, rtol=1e-6)
    np.testing.assert_allclose(swapped[1][:, ::-1], slopes, rtol=1e-6)


def test_credit_by_token_and_mixed_types():
    log_ratio = jnp.log(jnp.array([[1.1, 0.9]], jnp.float32))
    by_credit = surrogates.clipped(log_ratio, jnp.array([[1.0, -2.0]], jnp.bfloat16))
    assert by_credit.dtype == jnp.float32
    np.testing.assert_allclose(by_credit, [[-1.1, 1.8]], rtol=1e-6)
    of_sequence = surrogates.clipped(log_ratio[:, :1], jnp.array([[1.0, -2.0]]))
    np.testing.assert_allclose(of_sequence, [[-1.1, 2.2]], rtol=1e-6)
    with jax.enable_x64(True):
        mixed = surrogates.clipped(log_ratio, jnp.array([[1.0, -2.0]], jnp.float64))
        assert mixed.dtype == jnp.float64


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clipped", {"clip_eps_low": -0.1}, "clip_eps_low is -0.1"),
        ("clipped", {"clip_eps_high": math.nan}, "clip_eps_high is nan"),
        ("dual_clipped", {"max_ratio": 1.0}, "max_ratio is 1.0"),
        ("two_sided_clipped", {"max_ratio": 1.2}, "max_ratio is 1.2"),
        ("two_sided_clipped", {"max_ratio": 1.5, "clip_eps_high": 0.6}, "max_ratio is 1.5"),
        ("cispo", {"max_ratio": 0.28}, "max_ratio 0.28; 1 must lie between them"),
        ("cispo", {"min_ratio": 1.0}, "min_ratio is 1.0"),
        ("sapo", {"tau_positive": 0.0}, "tau_positive is 0.0"),
        ("sapo", {"tau_negative": -1.0}, "tau_negative is -1.0"),
    ],
)
def test_settings_that_break_their_rule_are_refused(name, settings, message):
    x, mask = jnp.zeros([2]), jnp.ones([2], bool)
    with pytest.raises(ValueError, match=message):
        by_token(name, x, x, x, mask, **settings)


@pytest.mark.parametrize("name", [*BY_RATIO, "policy_gradient"])
def test_types_and_shapes_are_checked(name):
    function = getattr(surrogates, name)
    for wrong in (jnp.ones([2, 3], int), jnp.ones([3]), jnp.ones([1, 3])):
        with pytest.raises(AssertionError):
            function(jnp.zeros([2, 3]), wrong)


@pytest.mark.parametrize("widths", [(0.0, 0.0), (0.0, 0.2), (0.2, 0.0)])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_on_a_bound_is_inside(widths, advantage):
    def loss(x):
        low, high = widths
        return surrogates.clipped(
            x, jnp.array([advantage]), clip_eps_low=low, clip_eps_high=high
        ).sum()

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(1)), [-advantage], rtol=1e-6)
