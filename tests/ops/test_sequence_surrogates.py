import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numeric
from oracles import trust_regions as oracles
from token_batches import compiled, random_tokens, value_and_slopes

from grpo_jax.ops import ratios, sequence_surrogates


def gmpo(log_probs, old, advantages, mask, **settings):
    log_ratio = ratios.token(log_probs, old, mask)
    return sequence_surrogates.gmpo(log_ratio, advantages, mask, **settings)


def vespo(log_probs, old, advantages, mask, **settings):
    log_ratio = ratios.token(log_probs, old, mask)
    return sequence_surrogates.vespo(log_ratio, log_probs, advantages, mask, **settings)


def by_completion(oracle, log_probs, old, advantages, mask, width):
    losses, slopes = np.zeros((*mask.shape[:-1], width)), np.zeros(mask.shape)
    for row in np.ndindex(mask.shape[:-1]):
        x = log_probs[row][mask[row]].astype(np.float64)
        delta, a = x - old[row][mask[row]], float(advantages[row][0])
        given = (delta, a) if oracle is oracles.gmpo else (delta, x, a)
        loss, slopes[row][mask[row]] = oracle(*given)
        losses[row] = loss if width == 1 else 0.0
        if width > 1:
            losses[row][mask[row]] = loss
    return losses, slopes


@pytest.mark.parametrize(
    ("run", "oracle", "width"), [(gmpo, oracles.gmpo, 1), (vespo, oracles.vespo, 5)]
)
def test_surrogates_equal_their_equations(run, oracle, width, precision):
    dtype, close, transform = precision
    log_probs, old, advantages, mask = random_tokens(0, dtype)
    log_probs[1, 0] = old[1, 0] + 0.05  # inside of every bound
    found, slopes = transform(
        lambda x: value_and_slopes(lambda y: run(y, old, advantages, mask), x)
    )(jnp.array(log_probs))
    assert found.dtype == slopes.dtype == dtype
    wanted, wanted_slopes = by_completion(oracle, log_probs, old, advantages, mask, width)
    np.testing.assert_allclose(found, wanted, rtol=close, atol=close)
    np.testing.assert_allclose(slopes, wanted_slopes, rtol=close, atol=close)
    assert (wanted_slopes[mask] == 0).any() == (run is gmpo)  # some are clipped, and some not
    assert wanted_slopes[1, 0].any()


def test_the_oracles_slopes_are_those_of_their_values():
    deltas = np.array([0.5, -0.6, 0.1])
    for a in (1.5, -0.5):
        _, slopes = oracles.gmpo(deltas, a)
        for t in range(3):
            wanted = numeric.slope(lambda x, a=a: oracles.gmpo(x, a)[0], deltas, t)
            np.testing.assert_allclose(slopes[t], wanted, atol=1e-8)


def test_gmpos_four_clip_cases_by_hand():
    """One token, clipped to e^±0.4; then one of two, which leaves the other its half."""
    cases = [
        (0.5, 1.0, -math.exp(0.4), 0.0),
        (0.5, -1.0, math.exp(0.5), math.exp(0.5)),
        (-0.5, 1.0, -math.exp(-0.5), -math.exp(-0.5)),
        (-0.5, -1.0, math.exp(-0.4), 0.0),
    ]
    delta, advantages, losses, slopes = np.float32(cases).T[..., None]
    run, zeros = compiled(gmpo), np.zeros([4, 2], np.float32)
    alone = np.array([[True, False]] * 4)
    found, found_slopes = run(zeros + delta, zeros, advantages, alone)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    np.testing.assert_allclose(found_slopes, slopes * [1, 0], rtol=1e-6)
    both = np.concatenate([delta, 0 * delta], axis=1)
    found, found_slopes = run(both, zeros, advantages, np.ones([4, 2], bool))
    halved = -advantages * np.sqrt(np.abs(losses))
    np.testing.assert_allclose(found, halved, rtol=1e-6)
    np.testing.assert_allclose(found_slopes[:, 1:], halved / 2, rtol=1e-6)
    np.testing.assert_allclose(found_slopes[:, :1], halved / 2 * (slopes != 0), rtol=1e-6)


def test_gmpos_widths_are_those_of_the_log_ratio():
    x, mask = np.float32([[0.3], [-0.3]]), np.ones([2, 1], bool)
    run = jax.jit(functools.partial(gmpo, clip_log_low=0.1, clip_log_high=0.2))
    found = run(x, 0 * x, np.float32([[1.0], [-1.0]]), mask)
    np.testing.assert_allclose(found, [[-math.exp(0.2)], [math.exp(-0.1)]], rtol=1e-6)


def test_vespos_weight_by_hand():
    """W = 1, 2, 1/2 under A = 1 (k 2, λ 3) and A = -1 (k 3, λ 2); all tokens weigh the same."""
    w = np.float32([1.0, 2.0, 0.5, 1.0, 2.0, 0.5])
    advantages = np.float32([1, 1, 1, -1, -1, -1])[:, None]
    phi = [1, 4 * math.exp(-3), 0.25 * math.exp(1.5), 1, 8 * math.exp(-2), 0.125 * math.exp(1)]
    log_probs = np.full([6, 2], -1.0, np.float32)
    old = log_probs - np.stack([np.log(w) + 0.5, np.full(6, -0.5)], axis=1).astype(np.float32)
    found, slopes = compiled(vespo)(log_probs, old, advantages, np.ones([6, 2], bool))
    wanted = np.array(phi)[:, None] * advantages * [1, 1]
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    np.testing.assert_allclose(slopes, -wanted, rtol=2e-6)


def test_vespo_fades_for_far_completions_and_stops_at_the_impossible():
    far = np.float32([[1e4, 0.0], [-1e4, 0.0], [-np.inf, 0.0], [np.inf, -np.inf]])
    mask, log_probs = np.ones([4, 2], bool), np.full([4, 2], -1.0, np.float32)
    ones = np.ones([4, 1], np.float32)
    found = np.asarray(jax.jit(sequence_surrogates.vespo)(far, log_probs, ones, mask))
    np.testing.assert_allclose(found[1], math.exp(-40 + 3), rtol=1e-5)  # log W = -20
    assert not np.any(found[[0, 2, 3]])
    growing = functools.partial(sequence_surrogates.vespo, k_positive=50.0, lambda_positive=0.0)
    without_decay = jax.jit(growing)(far, log_probs, 0 * ones, mask)
    assert not np.any(without_decay)  # 0 times a weight that is finite


@pytest.mark.parametrize("run", [gmpo, vespo])
def test_padding_and_leading_axes_change_nothing(run):
    log_probs, old, advantages, mask = random_tokens(3, "float32")
    run = jax.jit(run)
    found = run(log_probs, old, advantages, mask)
    rows = jax.jit(jax.vmap(run))(log_probs, old, advantages, mask)
    np.testing.assert_allclose(rows, found, rtol=1e-6)
    wide = [np.pad(x, [(0, 0), (0, 0), (0, 3)]) for x in (log_probs, old, mask)]
    padded = np.asarray(run(wide[0], wide[1], advantages, wide[2]))
    np.testing.assert_allclose(padded[..., : found.shape[-1]], found, rtol=1e-6)
    assert not np.any(padded[..., found.shape[-1] :])


@pytest.mark.parametrize(
    ("run", "settings"),
    [
        (gmpo, {"clip_log_low": -0.4}),
        (gmpo, {"clip_log_high": math.nan}),
        (vespo, {"k_positive": -1.0}),
        (vespo, {"lambda_negative": -2.0}),
    ],
)
def test_settings_that_break_their_rule_are_refused(run, settings):
    x, mask = jnp.zeros([2, 3]), jnp.ones([2, 3], bool)
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        run(x, x, x[:, :1], mask, **settings)


@pytest.mark.parametrize("run", [gmpo, vespo])
def test_credit_by_token_is_refused(run):
    x, mask = jnp.zeros([2, 3]), jnp.ones([2, 3], bool)
    with pytest.raises(AssertionError):
        run(x, x, x, mask)
