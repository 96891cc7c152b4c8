import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numeric
from oracles import trust_regions as oracles
from token_batches import compiled, random_tokens, value_and_slopes

from grpo_jax.ops import advantages as credit
from grpo_jax.ops.regression import gvpo


def group_batch(seed, dtype="float64"):
    """Two groups; the last completion of each is empty, and no member."""
    log_probs, old, advantages, mask = random_tokens(seed, dtype)
    mask[:, :3, 0] = True
    advantages = advantages.astype(np.float64)
    advantages[:, :3] -= advantages[:, :3].mean(axis=1, keepdims=True)
    return log_probs, old, advantages.astype(dtype), mask


def deltas(log_probs, old, mask, p):
    return [
        (log_probs[p, g][mask[p, g]].astype(np.float64) - old[p, g][mask[p, g]]) for g in range(3)
    ]


def test_the_mean_over_a_group_is_the_papers_loss(precision):
    dtype, close, transform = precision
    log_probs, old, advantages, mask = group_batch(0, dtype)
    found, slopes = transform(
        lambda x: value_and_slopes(lambda y: gvpo(y, old, mask, advantages, coef=0.3), x)
    )(jnp.array(log_probs))
    assert found.dtype == slopes.dtype == dtype
    assert found.shape == (2, 4, 1)
    assert not np.any(found[:, 3])
    for p in range(2):
        loss, by_total = oracles.gvpo(
            deltas(log_probs, old, mask, p), advantages[p, :3, 0].astype(np.float64), coef=0.3
        )
        np.testing.assert_allclose(found[p, :3].mean(), loss, rtol=close)
        wanted = np.where(mask[p, :3], 3 * np.array(by_total)[:, None], 0.0)
        np.testing.assert_allclose(slopes[p, :3], wanted, rtol=close, atol=close)
        assert not np.any(slopes[p, 3])


def test_the_oracles_slopes_are_those_of_its_values():
    totals, advantages = np.array([0.7, -1.1, 0.2]), np.array([0.5, 0.25, -0.3])
    for i in range(3):
        wanted = numeric.slope(lambda x: oracles.gvpo(x[:, None], advantages)[0], totals, i)
        np.testing.assert_allclose(
            oracles.gvpo(totals[:, None], advantages)[1][i], wanted, atol=1e-9
        )


def run(log_probs, old, advantages, mask):
    return gvpo(log_probs, old, mask, advantages)


def test_detaching_the_groups_mean_changes_nothing_for_centred_rewards():
    """As the authors' code does: every completion by itself, the mean a constant."""
    log_probs, old, advantages, mask = group_batch(1)
    with jax.enable_x64(True):
        _, slopes = compiled(run)(log_probs, old, advantages, mask)
    for p in range(2):
        totals = np.array([d.sum() for d in deltas(log_probs, old, mask, p)])
        misfit = 0.1 * (totals - totals.mean()) - advantages[p, :3, 0]
        detached = 3 / 2 * misfit * 0.1
        np.testing.assert_allclose(
            slopes[p, :3], np.where(mask[p, :3], detached[:, None], 0.0), atol=1e-12
        )


def test_at_the_start_the_slope_is_that_of_a_policy_gradient():
    log_probs, _, advantages, mask = group_batch(2, "float32")
    _, slopes = compiled(run)(log_probs, log_probs, advantages, mask)
    wanted = np.where(mask, -0.1 * 3 / 2 * advantages, 0.0)
    np.testing.assert_allclose(slopes, wanted, rtol=1e-5, atol=1e-8)


def test_the_best_policy_under_the_kl_has_no_loss():
    """π ∝ π_old exp(R / β), whatever its normaliser."""
    rewards = np.float32([[1.0, 0.0, 2.0, 0.5]])
    log_probs = (rewards / 0.5 - 7.0)[..., None]

    @jax.jit
    def loss(rewards, log_probs):
        mask, advantages = jnp.ones([1, 4, 1], bool), credit.group_center(rewards)[..., None]
        return gvpo(log_probs, 0 * log_probs, mask, advantages, coef=0.5)

    np.testing.assert_allclose(loss(rewards, log_probs), 0.0, atol=1e-12)
    assert (loss(rewards, log_probs[:, ::-1]) > 0.01).all()


def test_order_padding_and_leading_axes_change_nothing():
    batch = group_batch(3, "float32")
    found, slopes = compiled(run)(*batch)
    swapped, _ = compiled(run)(*(x[:, ::-1] for x in batch))
    np.testing.assert_allclose(swapped[:, ::-1], found, rtol=1e-5)
    log_probs, old, advantages, mask = batch
    junk = [np.pad(x, [(0, 0), (0, 2), (0, 2)], constant_values=np.nan) for x in (log_probs, old)]
    credit, wide = (
        np.pad(advantages, [(0, 0), (0, 2), (0, 0)]),
        np.pad(mask, [(0, 0), (0, 2), (0, 2)]),
    )
    padded, padded_slopes = compiled(run)(*junk, credit, wide)
    np.testing.assert_allclose(padded[:, :4], found, rtol=1e-5)
    np.testing.assert_allclose(padded_slopes[:, :4, :5], slopes, rtol=1e-5, atol=1e-8)
    assert not np.any(padded[:, 4:])
    assert not np.any(np.asarray(padded_slopes)[~wide])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(*batch), found, rtol=1e-6)


def test_awkward_groups():
    """One member, impossible completions, huge log ratios: never NaN."""
    inf = np.inf
    log_probs = [[-1.0, -1.0, -1.0], [-inf, -1.0, -2.0], [-1.0, -1.0, -2.0], [0, -1e4, 0]]
    old = [[-2.0, -9.0, -9.0], [-1.0, -1.0, -1.0], [-inf, -1.0, -1.0], [-1e4, 0, 0]]
    advantages = [[0.0, 0, 0], [1.0, 0.5, -0.5], [1.0, 0.5, -0.5], [1.0, -1.0, 0.0]]
    mask = np.ones([4, 3, 1], bool)
    mask[0, 1:] = False
    found, slopes = compiled(run)(
        *(np.float32(x)[..., None] for x in (log_probs, old, advantages)), mask
    )
    assert np.isfinite(found).all()
    assert np.isfinite(slopes).all()
    assert not np.any(slopes[0])
    assert not np.any(found[1:3, 0])
    # Of the two that are left: (0.1 · 0.5 - 0.5)², by a factor of 2 / (2 · 1).
    np.testing.assert_allclose(found[1:3, 1:], 0.45**2, rtol=1e-5)
    np.testing.assert_allclose(found[3, :2], 3 / 4 * 999**2, rtol=1e-5)


def test_settings_and_shapes_are_checked():
    x, mask = jnp.zeros([2, 3]), jnp.ones([2, 3], bool)
    with pytest.raises(ValueError, match="coef is 0"):
        gvpo(x, x, mask, x[:, :1], coef=0)
    with pytest.raises(AssertionError):
        gvpo(x, x, mask, x)
