"""R4. Rewards in units of their mean: a step on the way from p to log p.

Claim: MaxRL, arXiv:2602.02710: advantages (r - mean)/mean optimise log p's series in the failure
probability, -Σ_k (1 - p)^k / k, cut after as many terms as there are samples.

Found: with the all-wrong group dropped (its mean is 0) the expected gradient is
(1 - (1 - p)^(G - 1))/p ∇p, so the order is G - 1; at G = 2 it is plain REINFORCE. Order G is that
of the same credit without its baseline, which the dropped group's share of the baseline makes up
for. Summed over all 2^G groups.

Falsified by: a weight off by more than 1e-8, or by order G (or G - 2) fitting as well.
"""

import functools

import jax
import numpy as np
import pytest
from enumeration import EXACT, all_groups, chances, gradient_weights

from grpo_jax.ops import advantages

SIZES = [2, 4, 8]
RATES = np.array([0.05, 0.2, 0.5, 0.8, 0.95])


@functools.cache
def weights(size, baseline=True):
    """w at RATES."""
    groups = all_groups(size)
    credit = np.asarray(jax.jit(advantages.max_rl)(groups))
    if not baseline:
        credit = credit + (groups.sum(axis=-1, keepdims=True) > 0)  # r/mean = (r - mean)/mean + 1
    return np.asarray(gradient_weights(credit, groups, chances(groups, RATES), RATES))


def slope_of_series(order):
    """d/dp of -Σ_{k=1..order} (1 - p)^k / k at RATES, by differentiating the series."""
    series = np.polynomial.Polynomial([0.0, *(1 / k for k in range(1, order + 1))])
    return series.deriv()(1 - RATES)  # of -S(1 - p)


@pytest.mark.parametrize("size", SIZES)
def test_the_expected_gradient_is_that_of_the_series_up_to_order_g_minus_1(size):
    np.testing.assert_allclose(
        weights(size), (1 - (1 - RATES) ** (size - 1)) / RATES, rtol=0, atol=EXACT
    )
    np.testing.assert_allclose(weights(size), slope_of_series(size - 1), rtol=0, atol=EXACT)


@pytest.mark.parametrize("size", SIZES)
def test_no_other_order_fits(size):
    """One term more is (1 - p)^(G - 1) more, at p = .05 more than .69 at G = 8; one less likewise.

    The margin: more than a tenth of the weight at p = .05.
    """
    for order in (size, size - 2):
        apart = np.abs(weights(size) - slope_of_series(order))
        assert apart[0] > 0.1 * weights(size)[0]
    more = slope_of_series(size) - weights(size)
    np.testing.assert_allclose(more, (1 - RATES) ** (size - 1), rtol=0, atol=EXACT)


@pytest.mark.parametrize("size", SIZES)
def test_without_the_baseline_the_order_is_g(size):
    np.testing.assert_allclose(
        weights(size, baseline=False), slope_of_series(size), rtol=0, atol=EXACT
    )


def test_two_samples_make_it_reinforce():
    groups = all_groups(2)
    ours, plain = (jax.jit(rule)(groups) for rule in (advantages.max_rl, advantages.leave_one_out))
    assert ours.tolist() == plain.tolist()
    np.testing.assert_allclose(weights(2), 1, rtol=0, atol=EXACT)
