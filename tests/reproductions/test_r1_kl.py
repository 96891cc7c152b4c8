"""R1. Three estimates of a KL divergence: which are right as values, and which as gradients.

Claims: J. Schulman, "Approximating KL divergence", 2020; arXiv:2510.01555; arXiv:2512.21852. With
u = log(π/π_ref) of the sampled token, k1 = u and k3 = exp(-u) + u - 1 are unbiased values of
KL(π || ref) and k2 = u²/2 is not. As a loss on-policy it is otherwise: k1 has gradient 0, k2 that
of KL(π || ref), k3 that of KL(ref || π). Off-policy r k3 and r k1 have the former, with the
gradient through r = π/π_old (DeepSeek-V3.2, arXiv:2512.02556); sg(r) k3 has the latter, and k3
without r neither. Of a sequence only k1 in the reward has the gradient. (Their variance:
test_r1_variance.py.)

Expectations are sums over a vocabulary of 4, and over all sequences of two steps of 3 tokens.

Falsified by: an identity off by more than 1e-8; one that should not hold off by less than 1e-2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import EXACT
from token_kl import divergence, log_softmax, one_token

from grpo_jax.ops import kl, returns, surrogates

APART = 1e-2  # in nats, and in nats per unit of logit: what is not equal is off by more


# One token. -------------------------------------------------------------------------------------

SEEDS = 6  # as many as points on a ray of test_r1_variance: one shape, one program


@functools.cache
def expectations():
    """{"on" or "off": (values, gradients)} under π_old, which on-policy is π: [SEEDS, ...]."""
    # k2's bias is of third order in u, and may be small by accident; in these six draws it is not.
    logits, old, ref = np.random.default_rng(7).normal(scale=0.8, size=(3, SEEDS, 4))
    found = {}
    for place, sampled in (("on", logits), ("off", old)):
        chances = np.exp(log_softmax(sampled))
        values, slopes = one_token(logits, sampled, ref)
        for name in set(values) - {"KL", "KL_ref"}:
            values[name] = (chances * values[name]).sum(axis=1)
            slopes[name] = (chances[:, :, None] * slopes[name]).sum(axis=1)
        found[place] = [{n: np.asarray(x) for n, x in of.items()} for of in (values, slopes)]
    return found


def off_by(place, name, exact, *, gradient):
    """Largest difference from the exact one, for each seed."""
    found = expectations()[place][gradient]
    return np.abs(found[name] - found[exact]).reshape(SEEDS, -1).max(axis=1)


@pytest.mark.parametrize(
    ("place", "name", "unbiased"),
    [
        ("on", "k1", True),
        ("on", "k2", False),
        ("on", "k3", True),
        ("on", "straight_through", True),
        ("off", "k1", False),
        ("off", "k3", False),
        ("off", "r k1", True),
        ("off", "r k3", True),
        ("off", "sg(r) k3", True),
    ],
)
def test_values(place, name, unbiased):
    apart = off_by(place, name, "KL", gradient=False)
    assert (apart < EXACT).all() if unbiased else (apart > APART).all()


@pytest.mark.parametrize(
    ("place", "name", "exact"),
    [
        ("on", "k2", "KL"),
        ("on", "k3", "KL_ref"),
        ("on", "straight_through", "KL"),
        ("on", "r k3", "KL"),  # r = 1, but its gradient acts
        ("on", "r k1", "KL"),
        ("off", "r k3", "KL"),
        ("off", "r k1", "KL"),
        ("off", "sg(r) k3", "KL_ref"),
        ("off", "sg(r) k2", "KL"),
        ("off", "sg(r) straight_through", "KL"),
        ("off", "k1", None),
        ("off", "k2", None),
        ("off", "k3", None),
        ("off", "straight_through", None),
        ("off", "sg(r) k1", None),
    ],
)
def test_gradients(place, name, exact):
    """Of the one divergence and not of the other; or of neither."""
    for other in ("KL", "KL_ref"):
        apart = off_by(place, name, other, gradient=True)
        assert (apart < EXACT).all() if other == exact else (apart > APART).all()


def test_k1_as_a_loss_has_no_gradient():
    """On-policy none at all, with r held fixed neither."""
    for place, name in (("on", "k1"), ("off", "sg(r) k1")):
        gradients = expectations()[place][1]
        np.testing.assert_allclose(gradients[name], 0, rtol=0, atol=EXACT)
        assert (np.abs(gradients["KL"]).max(axis=1) > APART).all()


# Two steps. -------------------------------------------------------------------------------------

# All sequences of two steps of 3 tokens, of which 0 ends.
TOKENS = np.array([[0, 0], *((a, b) for a in (1, 2) for b in range(3))])
MASK = np.stack([np.ones(7, bool), TOKENS[:, 0] != 0], axis=-1)


def of_sequences(logits):
    """Log-probabilities [7, 2]; logits [4, 3]: of the first step, and of the second after each."""
    log_probs = jax.nn.log_softmax(logits)
    pair = jnp.stack([log_probs[0, TOKENS[:, 0]], log_probs[1 + TOKENS[:, 0], TOKENS[:, 1]]], -1)
    return jnp.where(MASK, pair, 0.0)


@jax.jit
def two_steps(logits, ref_logits):
    """{name: expected gradient [4, 3]} of a loss, on-policy; "whole": of the sequences' KL."""
    ref, now = of_sequences(ref_logits), of_sequences(logits)
    chances = jnp.exp(now.sum(axis=-1, keepdims=True))
    zero = jnp.zeros([7, 1])
    rewards = {
        "k1 in the reward, to go": returns.kl_to_go(zero, MASK, kl.k1(now, ref)),
        "k1 in the reward, whole": returns.penalized(zero[:, 0], MASK, kl.k1(now, ref))[:, None],
        "k1 in the reward, own token": -kl.k1(now, ref),
        "k2 in the reward, to go": returns.kl_to_go(zero, MASK, kl.k2(now, ref)),
        "k3 in the reward, to go": returns.kl_to_go(zero, MASK, kl.k3(now, ref)),
    }
    estimates = {
        "k1": kl.k1,
        "k2": kl.k2,
        "k3": kl.k3,
        "r k1": lambda x, ref: kl.ratio_corrected(x, ref, x - now, estimate=kl.k1),
        "r k3": lambda x, ref: kl.ratio_corrected(x, ref, x - now, estimate=kl.k3),
    }

    def expected(x):
        policy = of_sequences(x)
        terms = {name: surrogates.policy_gradient(policy, a) for name, a in rewards.items()}
        terms |= {name: estimate(policy, ref) for name, estimate in estimates.items()}
        found = {name: (chances * jnp.where(MASK, x, 0.0)).sum() for name, x in terms.items()}
        return found | {"whole": divergence(policy.sum(axis=-1), ref.sum(axis=-1))}

    return expected(logits), jax.jacfwd(expected)(logits)


@functools.cache
def of_two_steps():
    """The gradients of `two_steps`, and that of the KL by central differences."""
    logits, ref_logits = np.random.default_rng(1).normal(size=(2, 4, 3))
    step, found = 1e-5, two_steps(logits, ref_logits)[1]
    differences = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            differences[place] += sign * two_steps(moved, ref_logits)[0]["whole"] / (2 * step)
    return {name: np.asarray(x) for name, x in found.items()} | {"differences": differences}


@pytest.mark.parametrize(
    "name", ["differences", "k1 in the reward, to go", "k1 in the reward, whole"]
)
def test_the_gradient_of_the_kl_of_sequences(name):
    """k1 to go is exact; with the k1 of what came before, too, which adds 0 in expectation.

    The step of 1e-5 leaves central differences right to 1e-10.
    """
    np.testing.assert_allclose(of_two_steps()[name], of_two_steps()["whole"], rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    "name",
    [
        "k1",
        "k2",
        "k3",
        "r k1",
        "r k3",
        "k1 in the reward, own token",
        "k2 in the reward, to go",
        "k3 in the reward, to go",
    ],
)
def test_nothing_else_is_that_gradient(name):
    """Off, in the logits of the first step, by more than a tenth of its largest entry."""
    found, whole = of_two_steps()[name], of_two_steps()["whole"]
    assert np.abs(found[0] - whole[0]).max() > 0.1 * np.abs(whole).max()


@pytest.mark.parametrize("name", ["k2", "r k1", "r k3", "k1 in the reward, own token"])
def test_terms_by_token_miss_the_future_alone(name):
    """The last step has none: there they are exact."""
    found, whole = of_two_steps()[name], of_two_steps()["whole"]
    np.testing.assert_allclose(found[1:], whole[1:], rtol=0, atol=EXACT)
