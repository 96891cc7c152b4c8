import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import returns as credit
from oracles import values as oracles
from oracles.numeric import slope

from grpo_jax.ops import values

P, G, T = 2, 3, 6
ALPHA = 0.4  # some of the completions are shorter than 1 / alpha, some longer


def inputs(seed, dtype=np.float32):
    """Holes in the masks, an empty completion, junk wherever nothing counts."""
    rng = np.random.default_rng(seed)
    mask = rng.random((P, G, T)) < 0.7
    mask[0, 1] = False
    mask[1, 0] = True
    rewards, critic = rng.normal(size=(2, P, G, T))
    rewards[~mask] = np.nan
    critic[~mask] = np.nan
    return rewards.astype(dtype), critic.astype(dtype), mask


def numbers(lengths):
    return np.vectorize(lambda n: oracles.length_adaptive_lam(n, ALPHA))(lengths)


# λ as a number, and as one for each completion.
LAMS = {
    "number": (lambda mask: 0.8, lambda mask: 0.8),
    "by_length": (
        functools.partial(values.length_adaptive_lam, alpha=ALPHA),
        lambda mask: numbers(np.asarray(mask).sum(-1, keepdims=True)),
    ),
}
estimates = pytest.mark.parametrize(
    ("name", "lam"), [("gae", "number"), ("gae", "by_length"), ("returns", "by_length")]
)


@functools.cache
def value_and_gradients(name, lam):
    """(rewards, critic, mask, weights) -> weighted sum, values; gradients in both floats."""

    def total(rewards, critic, mask, weights):
        f = getattr(values, name)
        found = f(rewards, critic, mask, discount=0.9, lam=LAMS[lam][0](mask))
        return (weights * found).sum(), found

    return jax.value_and_grad(total, (0, 1), has_aux=True)


def check(name, lam, arrays, found, tolerance):
    rewards, critic, mask, weights = (np.asarray(x, np.float64) for x in arrays)
    (_, value), gradients = found
    share = LAMS[lam][1](mask)

    def loop(rewards, critic):
        return getattr(oracles, name)(rewards, critic, mask, 0.9, share)

    np.testing.assert_allclose(value, loop(rewards, critic), rtol=tolerance, atol=tolerance)
    for n, gradient in enumerate(gradients):
        for index in np.ndindex(mask.shape):
            if not mask[index]:
                assert gradient[index] == 0
                continue
            wanted = slope(
                lambda x, n=n: (weights * loop(*((x, critic) if n == 0 else (rewards, x)))).sum(),
                (rewards, critic)[n],
                index,
                1e-3,  # exact: both are linear
            )
            np.testing.assert_allclose(gradient[index], wanted, rtol=tolerance, atol=tolerance)


@estimates
def test_values_and_gradients_equal_a_loop(name, lam, transform):
    weights = np.random.default_rng(9).normal(size=(P, G, T)).astype(np.float32)
    arrays = (*inputs(0), weights)
    found = transform(value_and_gradients(name, lam))(*map(jnp.array, arrays))
    assert found[0][1].dtype == jnp.float32
    check(name, lam, arrays, found, 2e-5)


@estimates
def test_float64_values_and_gradients(name, lam):
    weights = np.random.default_rng(9).normal(size=(P, G, T))
    arrays = (*inputs(1, np.float64), weights)
    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(value_and_gradients(name, lam))(*arrays))
    assert found[0][1].dtype == np.float64
    check(name, lam, arrays, found, 1e-10)


@functools.cache
def compiled(name, **settings):
    return jax.jit(functools.partial(getattr(values, name), **settings))


def test_by_hand():
    mask = np.array([True, False, True, True])
    rewards, critic = np.float32([0.0, 5.0, 0.0, 1.0]), np.float32([0.5, 7.0, 0.25, 0.5])
    # Errors -0.25, 0.25 and 0.5 with discount 1; the tool's token is not there.
    found = values.gae(rewards, critic, mask, lam=0.5)
    np.testing.assert_allclose(found, [0.0, 0.0, 0.5, 0.5], rtol=1e-6)
    found = values.returns(rewards, critic, mask, lam=0.5)
    np.testing.assert_allclose(found, [0.5, 0.0, 0.75, 1.0], rtol=1e-6)
    # Half a discount: errors -0.375, 0 and 0.5.
    found = values.gae(rewards, critic, mask, discount=0.5, lam=0.5)
    np.testing.assert_allclose(found, [-0.34375, 0.0, 0.125, 0.5], rtol=1e-6)


def test_the_two_ends_of_lambda():
    rewards, critic, mask = inputs(2)
    to_go = credit.to_go(rewards, mask)
    inside = np.where(mask, critic, 0.0)
    # λ = 1: rewards to go minus the value; the critic's target does not see the critic (VAPO).
    found = compiled("gae", lam=1.0)(rewards, critic, mask)
    np.testing.assert_allclose(found, to_go - inside, atol=1e-5)
    for shifted in (critic, critic + 3.0):
        found = compiled("returns", lam=1.0)(rewards, shifted, mask)
        np.testing.assert_allclose(found, to_go, atol=1e-5)
    # λ = 0: one step.
    found = compiled("gae", lam=0.0)(rewards, critic, mask)
    np.testing.assert_allclose(found, oracles.gae(rewards, critic, mask, lam=0.0), atol=1e-5)
    assert not np.any(compiled("gae", lam=1.0)(0 * rewards, 0 * critic, mask))


def test_padding_and_leading_axes():
    arrays = inputs(3)
    f = compiled("gae", discount=0.9)
    found = f(*arrays)
    padding = [(0, 0), (0, 0), (0, 2)]
    wider = f(
        *(np.pad(x, padding, constant_values=x.dtype.type(np.nan)) for x in arrays[:2]),
        np.pad(arrays[2], padding),
    )
    np.testing.assert_allclose(wider[..., :T], found, rtol=1e-5, atol=1e-6)
    assert not np.any(wider[..., T:])
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(*arrays), found, rtol=1e-5, atol=1e-6)


def test_lambda_grows_with_the_length(transform):
    mask = jnp.array(np.arange(100) < np.array([[0], [1], [20], [25], [40], [100]]))
    found = transform(values.length_adaptive_lam)(mask)
    np.testing.assert_allclose(found[:, 0], [0.0, 0.0, 0.0, 0.2, 0.5, 0.8], rtol=1e-5)
    with jax.enable_x64(True):
        found = values.length_adaptive_lam(np.ones(61, bool))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, [1 - 1 / (0.05 * 61)], rtol=1e-14)


# -- the credit ----------------------------------------------------------------------------------


def credit_inputs(seed, dtype=np.float32):
    penalty, critic, mask = inputs(seed, dtype)
    rewards = np.random.default_rng(seed).normal(size=(P, G)).astype(dtype)
    rewards[1, 1] = np.nan
    return rewards, mask, critic, penalty


def credit_oracle(rewards, mask, critic, penalty, lam, eps=1e-8):
    counted = credit.with_reward(rewards, mask)
    token_rewards = credit.terminal(rewards, counted)
    if penalty is not None:
        token_rewards -= np.where(counted, penalty, 0.0)
    return credit.whiten(oracles.gae(token_rewards, critic, counted, 1.0, lam), counted, eps)


@pytest.mark.parametrize(
    ("penalized", "lam", "dtype", "tolerance"),
    [
        (True, "number", np.float32, 1e-5),
        (False, "number", np.float32, 1e-5),
        (True, "by_length", np.float32, 1e-5),
        (True, "by_length", np.float64, 1e-10),
    ],
)
def test_whitened_gae_equals_a_loop(penalized, lam, dtype, tolerance):
    share = 0.8 if lam == "number" else LAMS[lam][0]
    rewards, mask, critic, penalty = credit_inputs(4, dtype)
    penalty = penalty if penalized else None
    with jax.enable_x64(dtype == np.float64):
        found = compiled("whitened_gae", lam=share)(rewards, mask, critic, penalty)
    assert found.dtype == dtype
    wanted = credit_oracle(rewards, mask, critic, penalty, LAMS[lam][1](mask))
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_gradient_of_whitened_gae(transform):
    rewards, mask, critic, penalty = credit_inputs(5)
    weights = np.random.default_rng(6).normal(size=mask.shape)
    f = transform(jax.grad(weighted_credit))
    gradient = f(*map(jnp.array, (critic, rewards, mask, penalty, weights.astype(np.float32))))
    exact = np.where(mask, critic, 0.0).astype(np.float64)
    for index in ((0, 0, 1), (1, 0, 3), (1, 1, 2), (0, 1, 0)):
        wanted = slope(
            lambda x: (weights * credit_oracle(rewards, mask, x, penalty, 0.95)).sum(), exact, index
        )
        np.testing.assert_allclose(gradient[index], wanted, rtol=1e-4, atol=1e-5)


def weighted_credit(critic, rewards, mask, penalty, weights):
    return (weights * values.whitened_gae(rewards, mask, critic, penalty)).sum()


def test_whitened_gae_of_nothing_is_zeros():
    rewards, mask, critic, penalty = credit_inputs(6)
    f = compiled("whitened_gae")
    assert not np.any(f(np.full_like(rewards, np.nan), mask, critic, penalty))
    assert not np.any(f(rewards, np.zeros_like(mask), critic, penalty))
    # A critic that knows the reward leaves nothing to learn from.
    sure = np.where(mask, 1.5, np.nan).astype(np.float32)
    assert not np.any(f(np.full_like(rewards, 1.5), mask, sure, 0 * penalty))


# -- the critic's loss ---------------------------------------------------------------------------


def test_the_cases_of_the_value_loss_by_hand(transform):
    """clip_eps = 0.25, and the old value 0."""
    value, target, loss, gradient = np.float32(
        [
            (0.0, 1.0, 0.5, -1.0),  # where it started
            (0.125, 1.0, 0.3828125, -0.875),  # inside
            (0.5, 1.0, 0.28125, 0.0),  # has left towards the target: held
            (0.5, -1.0, 1.125, 1.5),  # has left away from it: pulled back
            (-0.5, -1.0, 0.28125, 0.0),
            (-0.5, 1.0, 1.125, -1.5),
            (3.0, 0.5, 3.125, 2.5),  # beyond the target by more than the clipped one is short
        ]
    ).T

    def total(value, old, target):
        found = values.value_loss(value, old, target, clip_eps=0.25)
        return found.sum(), found

    f = transform(jax.grad(total, has_aux=True))
    slopes, found = f(*map(jnp.array, (value, np.zeros_like(value), target)))
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-6)


def test_value_loss_equals_a_loop():
    with jax.enable_x64(True):
        arrays = np.random.default_rng(7).normal(size=(3, 40))
        f = compiled("value_loss")
        found, slopes = f(*arrays), jax.jit(jax.grad(lambda v, *xs: f(v, *xs).sum()))(*arrays)
        assert found.dtype == jnp.float64
    loop = np.vectorize(oracles.value_loss)
    np.testing.assert_allclose(found, loop(*arrays), rtol=1e-12)
    for n, gradient in enumerate(slopes):
        wanted = slope(lambda x: loop(x, *arrays[1:]).sum(), arrays[0], n)
        np.testing.assert_allclose(gradient, wanted, atol=1e-7)
    found = f(*arrays.astype(np.float32))
    np.testing.assert_allclose(found, loop(*arrays), rtol=1e-5, atol=1e-6)


def test_an_infinite_clip_is_the_squared_error():
    value, old, target = np.random.default_rng(8).normal(size=(3, 40)).astype(np.float32)
    found = compiled("value_loss", clip_eps=float("inf"))(value, old, target)
    np.testing.assert_allclose(found, 0.5 * (value - target) ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("gae", {"lam": 1.5}, "lam is 1.5"),
        ("gae", {"discount": -0.1}, "discount is -0.1"),
        ("returns", {"lam": float("nan")}, "lam is nan"),
        ("value_loss", {"clip_eps": 0.0}, "clip_eps is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, match):
    third = np.ones(3, bool) if name != "value_loss" else np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=match):
        getattr(values, name)(*np.zeros([2, 3], np.float32), third, **settings)


def test_other_refusals():
    rewards, critic, mask = inputs(0)
    with pytest.raises(ValueError, match="alpha is 0"):
        values.length_adaptive_lam(mask, alpha=0.0)
    with pytest.raises(AssertionError):  # a λ for each token is none for each completion
        values.gae(rewards, critic, mask, lam=critic)
    with pytest.raises(AssertionError):
        values.gae(rewards, critic[..., 1:], mask)
    with pytest.raises(AssertionError):
        values.whitened_gae(rewards, mask, critic)
