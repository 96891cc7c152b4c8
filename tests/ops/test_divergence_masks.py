import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import trust_regions as oracles
from token_batches import compiled, on_entries, random_tokens, value_and_slopes

from grpo_jax.ops.divergence_masks import dppo_kl, dppo_tv

BOTH = pytest.mark.parametrize(
    ("run", "oracle"), [(dppo_tv, oracles.dppo_tv), (dppo_kl, oracles.dppo_kl)], ids=["tv", "kl"]
)


@BOTH
def test_masks_equal_their_equations(run, oracle, precision):
    dtype, close, transform = precision
    log_probs, old, advantages, mask = random_tokens(0, dtype)
    log_probs[0, 0, 0], old[0, 0, 0], mask[0, 0, 0] = -3.0, -7.0, True  # a ratio of 55
    found, slopes = transform(
        lambda x: value_and_slopes(lambda y: run(y, old, advantages, mask), x)
    )(jnp.array(log_probs))
    assert found.dtype == slopes.dtype == dtype
    wanted, wanted_slopes = on_entries(
        oracle, mask, *(x.astype(np.float64) for x in (log_probs, old, advantages))
    )
    assert 0 < (wanted_slopes[mask] == 0).mean() < 1  # some are dropped
    assert abs(wanted_slopes[0, 0, 0] / advantages[0, 0, 0]) == 20
    # The two differ by the 1e-8 of the complements, which only the choice depends on.
    np.testing.assert_allclose(found, wanted, rtol=close, atol=close)
    np.testing.assert_allclose(slopes, wanted_slopes, rtol=close, atol=close)


@BOTH
def test_the_four_cases_by_hand(run, oracle):
    """From 0.5 to 0.8 and to 0.2: |Δπ| = 0.3, KL = 0.223; within reach only with wider bounds."""
    policy = np.log(np.float32([0.8, 0.8, 0.2, 0.2, 0.6, 0.4]))
    old, mask = np.log(np.full(6, 0.5, np.float32)), np.ones(6, bool)
    advantages = np.float32([1, -1, 1, -1, 1, -1])
    kept = np.array([False, True, True, False, True, True])
    _, slopes = compiled(run)(policy, old, advantages, mask)
    np.testing.assert_allclose(slopes, np.where(kept, -np.exp(policy) * 2 * advantages, 0), 1e-6)
    wide = functools.partial(run, eps_low=0.31, eps_high=0.31)
    low, high = functools.partial(run, eps_low=0.31), functools.partial(run, eps_high=0.31)
    for settings, keeps in ((wide, [0, 3]), (low, [3]), (high, [0])):
        _, slopes = compiled(settings)(policy, old, advantages, mask)
        assert np.flatnonzero((slopes != 0) & ~kept).tolist() == keeps


@pytest.mark.parametrize("run", [dppo_tv, dppo_kl])
def test_tokens_of_every_kind(run):
    """The paper's point: 1e-5 to 1e-3 is a ratio of 100 but no distance, 0.99 to 0.8 is one. A
    log-probability that was rounded to 0, or to a little more, is no divergence. Impossible
    tokens: reborn under A > 0, dropped by a large π; gone under A < 0, no further."""
    inf = np.inf
    cases = [  # log π, log π_old, A, loss, slope
        (np.log(1e-3), np.log(1e-5), 1.0, -20.0 * np.log(1e-3), -20.0),
        (np.log(0.8), np.log(0.99), -1.0, 0.0, 0.0),
        (0.0, -1e-6, 1.0, 0.0, -1.0),
        (1e-7, -1e-6, 1.0, 0.0, -1.0),
        (0.0, 0.0, 1.0, 0.0, -1.0),
        (-1e-6, 1e-7, -1.0, -1e-6, 1.0),
        (np.log(0.5), -inf, 1.0, 0.0, 0.0),
        (-5.0, -inf, 1.0, 100.0, -20.0),
        (-inf, -0.5, -1.0, 0.0, 0.0),
        (-inf, -0.5, 1.0, 0.0, 0.0),
    ]
    policy, old, advantages, losses, wanted = np.float32(cases).T
    found, slopes = compiled(run)(policy, old, advantages, np.ones(len(cases), bool))
    np.testing.assert_allclose(found, losses, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(slopes, wanted, rtol=1e-5)


@BOTH
def test_padding_and_leading_axes_change_nothing(run, oracle):
    log_probs, old, advantages, mask = random_tokens(3, "float32")
    run = jax.jit(run)
    found = run(log_probs, old, advantages, mask)
    rows = jax.jit(jax.vmap(run))(log_probs, old, advantages, mask)
    np.testing.assert_array_equal(rows, found)
    wide = [np.pad(x, [(0, 0), (0, 0), (0, 3)]) for x in (log_probs, old, mask)]
    padded = np.asarray(run(wide[0], wide[1], advantages, wide[2]))
    np.testing.assert_array_equal(padded[..., :5], found)
    assert not np.any(padded[..., 5:])


@BOTH
@pytest.mark.parametrize("settings", [{"eps_low": -0.1}, {"eps_high": -1}, {"max_ratio": 1.0}])
def test_settings_that_break_their_rule_are_refused(run, oracle, settings):
    x, mask = jnp.zeros([2]), jnp.ones([2], bool)
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        run(x, x, x, mask, **settings)
    with pytest.raises(AssertionError):
        run(x, x, jnp.zeros([1, 2]), mask)
