"""Over all tokens; `batch_whiten` is held to its loop in test_advantages.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import credit as oracles
from oracles import numeric

from grpo_jax.ops import whitening

SHAPE = (3, 2, 4)
MASK = np.arange(4) < np.array([[4, 1], [0, 3], [2, 4]])[..., None]
SETTINGS = {
    "default": {},
    "ddof_1": {"ddof": 1, "eps": 0.0},
    "uncentred": {"center": False, "eps": 0.1},
}


def values_with_junk(seed, shape=SHAPE):
    values = np.random.default_rng(seed).normal(size=shape)
    return np.where(MASK, values, np.nan) if shape == SHAPE else values


@pytest.mark.parametrize("setting", SETTINGS)
def test_token_whiten_is_the_loop(setting, transform):
    values = np.float32(values_with_junk(0))
    ours = transform(partial(whitening.token_whiten, **SETTINGS[setting]))
    found = ours(jnp.array(values), jnp.array(MASK))
    wanted = oracles.token_whiten(values, MASK, **SETTINGS[setting])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert not np.any(np.where(MASK, 0, found))


@jax.jit
def in_float64(values, cotangent, mask):
    """Values and slopes for each setting; then of one value for each completion, and of equals."""

    def of(values, **settings):
        ours = partial(whitening.token_whiten, mask=mask, **settings)
        found, pull_back = jax.vjp(ours, values)
        return found, pull_back(cotangent)[0]

    of_each = {name: of(values, **settings) for name, settings in SETTINGS.items()}
    equal = jnp.where(mask, 0.1, jnp.nan)
    return of_each, of(values[..., :1]), [of(equal, eps=0.0, center=c) for c in (True, False)]


def test_token_whiten_in_float64():
    values, cotangent = values_with_junk(1), values_with_junk(2, (1, *SHAPE))[0]
    with jax.enable_x64(True):
        given = jnp.array(values), jnp.array(cotangent), jnp.array(MASK)
        of_each, by_completion, (centred, kept) = in_float64(*given)
    for name, (found, slopes) in of_each.items():
        oracle = partial(oracles.token_whiten, mask=MASK, **SETTINGS[name])
        np.testing.assert_allclose(found, oracle(values), rtol=1e-10, atol=1e-12)
        for index in np.ndindex(*SHAPE):
            wanted = 0.0
            if MASK[index]:
                wanted = numeric.slope(lambda x, f=oracle: (f(x) * cotangent).sum(), values, index)
            np.testing.assert_allclose(slopes[index], wanted, rtol=1e-6, atol=1e-8)
    # One value for each completion: as if it were repeated, so that long ones weigh more.
    repeated = np.broadcast_to(values[..., :1], SHAPE)
    wanted = oracles.token_whiten(repeated, MASK)
    np.testing.assert_allclose(by_completion[0], wanted, rtol=1e-10, atol=1e-12)
    # No deviation: zeros, or what there was; and slopes that are numbers.
    assert not np.any(centred[0])
    np.testing.assert_array_equal(kept[0], np.where(MASK, 0.1, 0))
    for _, slopes in (centred, kept):
        assert np.isfinite(slopes).all()


def test_tokens_have_mean_0_and_deviation_1():
    values = values_with_junk(3)
    with jax.enable_x64(True):
        found, moved = (
            np.asarray(in_float64(jnp.array(x), jnp.zeros(SHAPE), jnp.array(MASK))[0]["ddof_1"][0])
            for x in (values, 5 * values + 3)
        )
    np.testing.assert_allclose(found[MASK].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(found[MASK].std(ddof=1), 1, rtol=1e-12)
    np.testing.assert_allclose(moved, found, rtol=1e-10, atol=1e-12)


def test_padding_and_empty_rows_are_absent():
    values = np.float32(values_with_junk(4))
    wider = np.pad(values, [(0, 1), (0, 1), (0, 2)], constant_values=np.nan)
    mask = np.pad(MASK, [(0, 1), (0, 1), (0, 2)])
    ours = jax.jit(whitening.token_whiten)
    found = np.asarray(ours(jnp.array(wider), jnp.array(mask)))
    wanted = oracles.token_whiten(values, MASK)
    np.testing.assert_allclose(found[:3, :2, :4], wanted, rtol=1e-5, atol=1e-6)
    assert not np.any(found[~mask])
    assert not np.any(ours(jnp.array(wider), jnp.zeros_like(mask)))


def test_batch_whiten_counts_completions_once():
    rewards = jnp.array([[2.0, 0.0], [1.0, jnp.nan]])
    found = jax.jit(partial(whitening.batch_whiten, eps=0.0, ddof=0))(rewards)
    root = 1.5**0.5
    np.testing.assert_allclose(found, [[root, -root], [0, 0]], rtol=1e-6)
