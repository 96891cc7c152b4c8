import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import trust_regions as oracles
from token_batches import compiled, random_tokens, value_and_slopes

from grpo_jax.ops import ratios
from grpo_jax.ops.covariance import clip_cov, kl_cov

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames=["share", "cov_low", "clip_eps_low"])
def clip(log_probs, old, advantages, mask, key=KEY, **settings):
    return clip_cov(
        ratios.token(log_probs, old, mask), log_probs, advantages, mask, key, **settings
    )


@functools.partial(jax.jit, static_argnames=["share", "coef"])
def kl(log_probs, old, advantages, mask, **settings):
    return kl_cov(ratios.token(log_probs, old, mask), log_probs, advantages, mask, **settings)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_losses_equal_the_loop(name, precision):
    (dtype, close, transform), share = precision, 0.1
    log_probs, old, advantages, mask = random_tokens(0, dtype)
    plain = {"clip_cov": clip.__wrapped__, "kl_cov": kl.__wrapped__}[name]  # eager if so asked
    run = functools.partial(plain, cov_low=0.05) if name == "clip_cov" else plain
    found, slopes = transform(
        lambda x: value_and_slopes(lambda y: run(y, old, advantages, mask, share=share), x)
    )(jnp.array(log_probs))
    assert found.dtype == slopes.dtype == dtype
    x = log_probs.astype(np.float64)
    given = (x - old, x, np.broadcast_to(advantages, x.shape).astype(np.float64), mask)
    if name == "clip_cov":
        draws = np.asarray(jax.random.uniform(KEY, mask.shape))
        wanted, wanted_slopes = oracles.clip_cov(*given, draws, share=share, low=0.05)
    else:
        wanted, wanted_slopes = oracles.kl_cov(*given, share=share)
    found, slopes = np.where(mask, found, 0), np.where(mask, slopes, 0)
    np.testing.assert_allclose(found, wanted, rtol=close, atol=close)
    np.testing.assert_allclose(slopes, wanted_slopes, rtol=close, atol=close)


LOG_PROBS = np.float32([-1.0, -3.0, -1.0, -3.0, -1.0, -3.0, -2.0])
ADVANTAGES = np.float32([2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 0.0]) - np.float32(24 / 7)
ON = np.ones(7, bool)


def test_candidates_and_the_clip_by_hand():
    """Covariances -1.4, 1.4, 0.6, -0.6, 2.6, -2.6, 0: candidates are the tokens 1 and 4."""
    dropped = {
        tuple(np.flatnonzero(clip(LOG_PROBS, LOG_PROBS, ADVANTAGES, ON, jax.random.key(i)) == 0))
        for i in range(6)
    }
    assert dropped == {(1,), (4,)}
    all_of_them = clip(LOG_PROBS, LOG_PROBS, ADVANTAGES, ON, share=1.0)
    assert np.flatnonzero(all_of_them == 0).tolist() == [1, 4]
    # Token 4 has A > 0 and is clipped as its ratio is 1.5: it is left to the clip.
    old = LOG_PROBS - np.log(np.float32([1, 1, 1, 1, 1.5, 1, 1]))
    held = clip(LOG_PROBS, old, ADVANTAGES, ON, share=1.0)
    assert np.flatnonzero(held == 0).tolist() == [1]
    np.testing.assert_allclose(held[4], -1.2 * ADVANTAGES[4], rtol=1e-6)


def test_where_nothing_is_drawn_clip_cov_is_the_clip():
    """The four cases; equal log-probabilities have no covariance."""
    cases = [(1.5, 0.5, -0.6, 0), (1.5, -0.5, 0.75, 0.75), (0.5, 0.5, -0.25, -0.25)]
    ratio, advantages, losses, wanted = np.float32([*cases, (0.5, -0.5, 0.4, 0)]).T
    log_probs = np.full(4, -1.0, np.float32)
    found, slopes = compiled(clip)(log_probs, log_probs - np.log(ratio), advantages, ON[:4])
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    np.testing.assert_allclose(slopes, wanted, rtol=1e-6)


def test_the_draw_is_fair():
    log_probs, advantages = np.float32([-1.0] * 4 + [-5.0] * 4), np.float32([1.0] * 4 + [-1.0] * 4)
    run = functools.partial(clip, log_probs, log_probs, advantages, np.ones(8, bool))
    keys = jax.random.split(jax.random.key(1), 400)
    dropped = np.asarray(jax.jit(jax.vmap(run))(keys)) == 0  # covariances of 2, all eight
    assert (dropped.sum(axis=1) == 1).all()
    assert (np.abs(dropped.sum(axis=0) - 50) < 30).all()  # 50 ± 6.6 each


def test_the_largest_covariance_pays_by_hand():
    log_ratio = np.float32([0.5, -0.5, 0.5, -0.5, -0.5, 0.5, 0.5])
    plain = -np.exp(log_ratio) * ADVANTAGES
    for share, coef, paying in [(2e-4, 1.0, [4]), (3 / 7, 0.2, [1, 2, 4]), (1.0, 1.0, range(7))]:
        run = compiled(functools.partial(kl, share=share, coef=coef))
        found, slopes = run(LOG_PROBS, LOG_PROBS - log_ratio, ADVANTAGES, ON)
        penalty = np.isin(np.arange(7), paying) * coef
        np.testing.assert_allclose(found, plain + penalty * 0.5, rtol=1e-5)
        np.testing.assert_allclose(slopes, plain + penalty * np.sign(log_ratio), rtol=1e-5)


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (2e-4, {0: 0, 1: 1, 4999: 1, 9999: 1, 10_000: 2}),
        (0.29, {100: 29}),  # as a product of floats a little less than 29
        (1.0, {9_000: 9_000}),
        (1e-13, {9_000: 1}),
        (0.123456789, {9_000: 1111}),
    ],
)
def test_how_many_tokens_a_share_is(share, counts):
    log_probs = np.linspace(-3, -1, 10_000, dtype=np.float32)
    run = jax.jit(functools.partial(kl_cov, share=share))
    for tokens, wanted in counts.items():
        mask = np.arange(10_000) < tokens
        penalised = run(np.full_like(log_probs, 0.5), log_probs, np.zeros_like(log_probs), mask) > 0
        assert penalised.sum() == wanted
        assert not np.any(penalised & ~mask)


def test_statistics_are_of_all_axes_and_of_counting_tokens_only():
    log_probs, old, advantages, mask = random_tokens(4, "float32")
    found = kl(log_probs, old, advantages, mask, share=0.2)
    flat = [
        np.broadcast_to(x, mask.shape).reshape(1, -1) for x in (log_probs, old, advantages, mask)
    ]
    np.testing.assert_allclose(kl(*flat, share=0.2).reshape(mask.shape), found, rtol=1e-6)
    wide = [np.pad(x, [(0, 1), (0, 0), (0, 3)]) for x in (log_probs, old, mask)]
    credit = np.pad(advantages, [(0, 1), (0, 0), (0, 0)], constant_values=9.0)
    padded = kl(wide[0], wide[1], credit, wide[2], share=0.2)
    np.testing.assert_allclose(padded[:2, :, :5], found, rtol=1e-6)
    assert not np.any(np.where(wide[2], 0, padded - -credit))


def test_impossible_tokens_enter_no_statistic():
    log_probs = np.append(LOG_PROBS, -np.inf).astype(np.float32)
    old, advantages = (
        np.append(LOG_PROBS, np.float32(-1.0)),
        np.append(ADVANTAGES, np.float32(-3.0)),
    )
    for run in (kl, clip):
        found, slopes = compiled(run)(log_probs, old, advantages, np.ones(8, bool))
        assert np.isfinite(found).all()
        assert np.isfinite(slopes).all()
        if run is kl:
            np.testing.assert_allclose(found[:7], kl(LOG_PROBS, LOG_PROBS, ADVANTAGES, ON))


def test_a_ratio_of_the_sequence_is_that_of_each_token():
    log_probs, old, advantages, mask = random_tokens(5, "float32")
    log_ratio = np.asarray(ratios.sequence(log_probs, old, mask))
    for run in (jax.jit(kl_cov), jax.jit(functools.partial(clip_cov, key=KEY))):
        by_token, by_sequence = (
            run(log_ratio=x, log_probs=log_probs, advantages=advantages, mask=mask)
            for x in (np.broadcast_to(log_ratio, mask.shape), log_ratio)
        )
        np.testing.assert_array_equal(by_token, by_sequence)


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        (clip, {"share": 0.0}, "share is 0.0"),
        (kl, {"share": 1.5}, "share is 1.5"),
        (clip, {"cov_low": 5.0}, "cov_low is 5.0 and cov_high 5.0"),
        (clip, {"clip_eps_low": -1.0}, "clip_eps_low is -1.0"),
        (kl, {"coef": -1.0}, "coef is -1.0"),
    ],
)
def test_settings_that_break_their_rule_are_refused(run, settings, message):
    with pytest.raises(ValueError, match=message):
        run(LOG_PROBS, LOG_PROBS, ADVANTAGES, ON, **settings)
