"""R3. Dividing by a completion's own length makes good completions shorter and bad ones longer.

Claim: Dr. GRPO, arXiv:2503.20783, section 3.1 (response-level length bias), on a policy of four
numbers: a first token that is good (reward 1) or bad (0), and after it fillers that end with a
hazard h, one logit for each branch. L fillers, the end included, have the score
Σ_t ∂ log π / ∂ logit = 1 - h L. So a mean over a completion's tokens leaves E[(1 - h L)/L] =
E[1/L] - h > 0 times its advantage, a sum exactly 0, and a mean over all tokens of a group of G
leaves G E[1/ΣL] - h, of order 1/G. Lengths are summed to where less than 1e-12 is left of them.

The fillers alone are in the mask, as in that identity: with the first token counted too, the drift
at h = .1 is .090 and not .156. Control: with one hazard for both branches length says nothing about
reward, and all three drifts vanish.

Falsified by: a drift off by more than 1e-8, one of the constant divisor that is not 0, or one of
the completion's mean that is not above 0 for A > 0.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import EXACT

from grpo_jax.ops import advantages, surrogates, weights

REDUCTIONS = {
    "seq_mean_token_mean": weights.seq_mean_token_mean,
    "seq_mean_token_sum": functools.partial(weights.seq_mean_token_sum, constant=1),
    "token_mean": weights.token_mean,
}


def log_odds(hazard):
    return np.log(hazard) - np.log1p(-hazard)  # a float of Python's would give way to float32


def token_log_probs(logit, ends):
    """Log-probability of each filler: of an end, or of going on."""
    return jnp.where(ends, jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit))


def chances_of_length(hazard, longest, size=1):
    """Probability of each total length 1..longest of `size` completions: negative binomial."""
    found = [
        math.comb(n - 1, size - 1) * hazard**size * (1 - hazard) ** (n - size)
        for n in range(1, longest + 1)
    ]
    assert 1 - math.fsum(found) < 1e-12
    return np.array(found)


def mean_inverse(hazard, size=1):
    """E[1/ΣL] of `size` completions: h ∫_0^1 u^(G - 1) / (h + (1 - h) u) du, by parts."""
    integral = -math.log(hazard) / (1 - hazard)
    for k in range(1, size):
        integral = (1 / k - hazard * integral) / (1 - hazard)
    return hazard * integral


# Every length: row n holds n + 1 fillers. -------------------------------------------------------

LONGEST = 1300


@functools.partial(jax.jit, static_argnames=("name", "counted"))
def drift_over_rows(logit, chances, ends, *, name, counted):
    token = jnp.arange(LONGEST + counted)[None, :] - counted
    mask = token < jnp.arange(1, LONGEST + 1)[:, None]
    # Each row is a batch by itself: lengths take turns, they are not averaged with each other.
    of_row = jax.vmap(REDUCTIONS[name])(mask[:, None, :])[:, 0]

    def objective(logit):
        # The order of a row's tokens is nothing to its sums: its ends come first.
        log_probs = jnp.where(token >= 0, token_log_probs(logit, token < ends), 0.0)
        losses = surrogates.policy_gradient(log_probs, jnp.ones_like(log_probs))
        return -(chances[:, None] * of_row * jnp.where(mask, losses, 0.0)).sum()

    return jax.grad(objective)(logit)


@functools.cache
def drift(name, hazard, size=1, counted=0):
    """Expected ascent direction in the hazard's logit for A = 1.

    Args:
        name: of the reduction.
        hazard: h.
        size: a row's tokens are those of so many completions together, under a mean over them all.
        counted: tokens ahead of the fillers that are in the mask.
    """
    chances = chances_of_length(hazard, LONGEST, size)
    return float(drift_over_rows(log_odds(hazard), chances, size, name=name, counted=counted))


@pytest.mark.parametrize(("hazard", "published"), [(0.1, 0.156), (0.05, 0.108)])
def test_a_mean_over_the_completion_shortens_what_is_good(hazard, published):
    found = drift("seq_mean_token_mean", hazard)
    closed = -hazard * math.log(hazard) / (1 - hazard) - hazard  # E[1/L] - h
    assert found == pytest.approx(closed, abs=EXACT)
    assert round(found, 3) == published
    assert found > 0


@pytest.mark.parametrize("hazard", [0.1, 0.05])
def test_a_sum_over_the_completion_has_no_drift(hazard):
    assert drift("seq_mean_token_sum", hazard) == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize(
    ("size", "published", "digits"), [(1, 0.108, 3), (4, 0.015, 3), (16, 0.00314, 5)]
)
def test_a_mean_over_the_group_has_one_of_order_one_over_its_size(size, published, digits):
    hazard = 0.05
    found = drift("token_mean", hazard, size)
    assert found == pytest.approx(size * mean_inverse(hazard, size) - hazard, abs=EXACT)
    assert round(found, digits) == published
    # 1/G to first order, h (1 - h)/G; the next term is positive.
    assert found > hazard * (1 - hazard) / size


def test_the_deciding_token_in_the_mask_takes_part_of_the_drift():
    """E[(1 - h L)/(1 + L)] = (1 + h) E[1/(1 + L)] - h; a sum is exact with it, too."""
    hazard = 0.1
    inverse = hazard / (1 - hazard) ** 2 * (-math.log(hazard) - (1 - hazard))
    found = drift("seq_mean_token_mean", hazard, counted=1)
    assert found == pytest.approx((1 + hazard) * inverse - hazard, abs=EXACT)
    assert round(found, 3) == 0.09


# Every group of two: both branches, all lengths, the credit from the rewards. --------------------

SHORT = 42
GOOD = 0.3  # probability of the good branch
HAZARDS = (0.5, 0.6)  # of the good and the bad branch


@functools.partial(jax.jit, static_argnames="name")
def drift_over_groups(logits, chances, good, lengths, *, name):
    """Gradient in both logits of the expected objective.

    Args:
        logits: [2], of the good and the bad branch.
        chances: [N] of each group.
        good: [N, 2] bool, the branch of each completion.
        lengths: [N, 2] int.
    """
    token = jnp.arange(SHORT)[None, None, :]
    mask = token < lengths[..., None]
    of_group = jax.vmap(REDUCTIONS[name])(mask)
    credit = advantages.group_center(good.astype(float))[..., None]

    def objective(logits):
        logit = jnp.where(good, logits[0], logits[1])[..., None]
        losses = surrogates.policy_gradient(
            token_log_probs(logit, token == lengths[..., None] - 1), credit
        )
        return -(chances[:, None, None] * of_group * losses).sum()

    return jax.grad(objective)(logits)


@functools.cache
def group_drift(name, hazards):
    """Drift of the good and the bad branch's hazard: numpy, [2]."""
    branches = [np.array(pair) for pair in itertools.product([True, False], repeat=2)]
    steps = np.arange(1, SHORT + 1)
    lengths = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    by_branch = np.stack([chances_of_length(h, SHORT) for h in hazards])
    good = np.repeat(branches, len(lengths), axis=0)
    lengths = np.tile(lengths, (len(branches), 1))
    of_branch = np.where(good, GOOD, 1 - GOOD)
    of_length = by_branch[1 - good.astype(int), lengths - 1]
    chances = (of_branch * of_length).prod(axis=-1)
    logits = np.array([log_odds(h) for h in hazards])
    return np.asarray(drift_over_groups(logits, chances, good, lengths, name=name))


def one_of_each(hazards):
    """Chance that one of two completions is good, and the lengths' [L_good, L_bad] chances."""
    good, bad = (chances_of_length(h, SHORT) for h in hazards)
    return 2 * GOOD * (1 - GOOD), np.outer(good, bad)


def test_groups_of_two_drift_as_each_completion_does():
    """A = ±1/2 where the two differ, which is all that has a gradient; each is half of the mean."""
    mixed, _ = one_of_each(HAZARDS)
    wanted = [
        sign * mixed / 2 / 2 * (mean_inverse(h) - h)
        for sign, h in zip((1, -1), HAZARDS, strict=True)
    ]
    found = group_drift("seq_mean_token_mean", HAZARDS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT)
    assert found[0] > 0.01  # the good end sooner
    assert found[1] < -0.01  # the bad go on
    np.testing.assert_allclose(group_drift("seq_mean_token_sum", HAZARDS), 0, rtol=0, atol=EXACT)


def test_groups_of_two_under_one_divisor_still_drift():
    mixed, chances = one_of_each(HAZARDS)
    steps = np.arange(1, SHORT + 1)
    total = steps[:, None] + steps[None, :]
    wanted = [
        mixed / 2 * (chances * (1 - HAZARDS[0] * steps[:, None]) / total).sum(),
        -mixed / 2 * (chances * (1 - HAZARDS[1] * steps[None, :]) / total).sum(),
    ]
    found = group_drift("token_mean", HAZARDS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT)
    assert 0 < found[0] < group_drift("seq_mean_token_mean", HAZARDS)[0]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_where_length_says_nothing_about_reward_nothing_drifts(name):
    """One hazard, which both branches follow: its drift is that of both logits together."""
    good, bad = group_drift(name, (0.5, 0.5))
    assert good + bad == pytest.approx(0, abs=EXACT)
    assert (good > 0.01) == (name != "seq_mean_token_sum")  # they cancel, they do not vanish
