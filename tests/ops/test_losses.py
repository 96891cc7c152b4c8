"""Ratios, surrogates, KL estimates, weights, selection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import losses as oracles

from grpo_jax.ops import kl, ratios, selection, surrogates, weights


def random_pair(seed, shape=(3, 4, 5)):
    rng = np.random.default_rng(seed)
    return [jnp.array(-np.abs(rng.normal(size=shape)), jnp.float32) for _ in range(2)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [  # ε = 0.2; the gradient is that of the loss in log ρ
        (1.5, 1.0, -1.2, 0.0),  # good and already more likely: no further
        (1.5, -1.0, 1.5, 1.5),  # bad and more likely: corrected
        (0.5, 1.0, -0.5, -0.5),  # good and less likely: corrected
        (0.5, -1.0, 0.8, 0.0),  # bad and already less likely: no further
        (1.0, 2.0, -2.0, -2.0),
        (1.1, -2.0, 2.2, 2.2),
    ],
)
def test_the_four_clip_cases_by_hand(ratio, advantage, loss, gradient, transform):
    def f(x):
        return surrogates.clipped(x, jnp.array([advantage])).sum()

    value, slope = transform(jax.value_and_grad(f))(jnp.log(jnp.array([ratio])))
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(slope[0], gradient, rtol=1e-6)


def test_clip_sides_are_where_the_loss_is_flat():
    log_ratio = jnp.log(jnp.array([0.5, 0.5, 1.5, 1.5, 1.0, 0.5]))
    advantages = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, 0.0])
    low, high = surrogates.clip_sides(surrogates.clipped, log_ratio, advantages)
    assert low.tolist() == [False, True, False, False, False, False]
    assert high.tolist() == [False, False, True, False, False, False]


def test_a_lower_width_above_one_is_no_lower_clip():
    loss = surrogates.clipped(jnp.array([-20.0]), jnp.array([-1.0]), clip_eps_low=10.0)
    np.testing.assert_allclose(loss, np.exp(-20.0), rtol=1e-5)


def test_absurd_ratios_give_no_nan():
    log_ratio = jnp.array([1e4, -1e4, 1e4, 1e4])
    advantages = jnp.array([0.0, 0.0, 1.0, -1.0])
    value, slope = jax.value_and_grad(lambda x: surrogates.clipped(x, advantages).sum())(log_ratio)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("seed", range(3))
def test_kl_estimates_equal_their_formulas(seed, transform):
    log_probs, ref = random_pair(seed)
    u = np.asarray(log_probs, np.float64) - np.asarray(ref, np.float64)
    np.testing.assert_allclose(transform(kl.k1)(log_probs, ref), u, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(transform(kl.k2)(log_probs, ref), u**2 / 2, rtol=1e-5, atol=1e-6)
    wanted = np.vectorize(oracles.k3)(log_probs, ref)
    np.testing.assert_allclose(transform(kl.k3)(log_probs, ref), wanted, rtol=1e-5, atol=1e-6)
    slopes = jax.grad(lambda x: kl.k3(x, ref).sum())(log_probs)
    np.testing.assert_allclose(slopes, 1 - np.exp(-u), rtol=1e-5, atol=1e-6)


def test_k3_is_zero_at_the_reference_and_never_negative():
    log_probs, ref = random_pair(5)
    assert not np.any(kl.k3(log_probs, log_probs))
    assert (kl.k3(log_probs, ref) >= 0).all()
    assert (kl.k3(log_probs, log_probs + 1e-4) >= 0).all()


def test_kl_values_and_gradients_by_enumeration():
    """R1: over three tokens, k1 and k3 are unbiased values; as losses k2 and k3 have the
    gradients of KL(policy || reference) and KL(reference || policy), k1 has none."""
    with jax.enable_x64(True):
        logits, ref_logits = jnp.array([0.3, -0.7, 0.2]), jnp.array([-0.1, 0.4, 0.0])
        policy, ref = jax.nn.softmax(logits), jax.nn.softmax(ref_logits)

        def expected(estimate):
            """E over the policy's own draws, which no gradient flows through."""

            def loss(z):
                log_probs = jax.nn.log_softmax(z)
                return (policy * estimate(log_probs, jnp.log(ref))).sum()

            return jax.value_and_grad(loss)(logits)

        def divergence(z):
            log_probs = jax.nn.log_softmax(z)
            return (jnp.exp(log_probs) * (log_probs - jnp.log(ref))).sum()

        def reverse(z):
            return (ref * (jnp.log(ref) - jax.nn.log_softmax(z))).sum()

        exact, gradient = jax.value_and_grad(divergence)(logits)
        np.testing.assert_allclose(expected(kl.k1)[0], exact, atol=1e-12)
        np.testing.assert_allclose(expected(kl.k3)[0], exact, atol=1e-12)
        np.testing.assert_allclose(expected(kl.k1)[1], np.zeros(3), atol=1e-12)
        np.testing.assert_allclose(expected(kl.k2)[1], gradient, atol=1e-12)
        np.testing.assert_allclose(expected(kl.k3)[1], jax.grad(reverse)(logits), atol=1e-12)


def test_ratio_ignores_what_the_mask_hides():
    log_probs, old = random_pair(2)
    mask = jnp.broadcast_to(np.arange(5) < np.array([5, 3, 1, 0])[:, None], log_probs.shape)
    junk = jnp.where(mask, log_probs, jnp.nan)
    found, slopes = jax.value_and_grad(lambda x: jnp.exp(ratios.token(x, old, mask)).sum())(junk)
    assert np.isfinite(found)
    assert np.isfinite(slopes).all()
    assert not np.any(np.where(mask, 0, slopes))


LENGTHS = jnp.array([[5, 3], [1, 0]])
MASK = jnp.arange(5)[None, None] < LENGTHS[..., None]


def test_weights_by_hand():
    token_mean = weights.seq_mean_token_mean(MASK)
    np.testing.assert_allclose(token_mean[0, 0], np.full(5, 1 / 5 / 3), rtol=1e-6)
    np.testing.assert_allclose(token_mean[0, 1], [1 / 9, 1 / 9, 1 / 9, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(token_mean.sum(), 1.0, rtol=1e-6)
    constant = weights.seq_mean_token_sum(MASK, constant=10)
    np.testing.assert_allclose(constant, np.where(MASK, 1 / 30, 0), rtol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [weights.seq_mean_token_mean, lambda m: weights.seq_mean_token_sum(m, constant=7)],
    ids=["seq_mean_token_mean", "seq_mean_token_sum"],
)
def test_weights_do_not_see_padding_or_order(rule):
    found = rule(MASK)
    wider = rule(jnp.pad(MASK, [(0, 0), (0, 0), (0, 4)]))
    np.testing.assert_array_equal(wider[..., :5], found)
    assert not np.any(wider[..., 5:])
    np.testing.assert_array_equal(rule(MASK[::-1, ::-1]), found[::-1, ::-1])
    more = rule(jnp.pad(MASK, [(0, 3), (0, 0), (0, 0)]))  # rows that count nothing
    np.testing.assert_array_equal(more[:2], found)
    assert not np.any(rule(jnp.zeros_like(MASK)))


def test_constant_must_be_positive():
    with pytest.raises(ValueError, match="constant is 0"):
        weights.seq_mean_token_sum(MASK, constant=0)


def test_zero_signal():
    rewards = jnp.array([[1.1, 1.1], [0.0, 1.0], [jnp.nan, 1.0], [jnp.nan, jnp.nan]])
    assert selection.zero_signal(rewards).tolist() == [True, False, True, True]
