"""R7. How many groups have no signal, and what a share that differs gives away.

Claim: DAPO, arXiv:2503.14476, section 3.2: groups whose answers are all right (or all wrong) have
no gradient, and their share grows as the policy learns. For independent answers it is
p^G + (1 - p)^G, averaged over the questions. Summed over all 2^G groups.

Falsified by: a share off by more than 1e-8; an estimate from counts whose expectation is. In a run,
a share far from the plug-in of independent counts means samples that depend on each other: with
every sample drawn twice it is that of a group half as large.
"""

import functools

import jax
import numpy as np
import pytest
from enumeration import EXACT, all_groups, chances, chances_by_count

from grpo_jax.ops import advantages, diagnostics, selection

RATES = np.array([0.0, 0.02, 0.3, 0.5, 0.9, 0.98, 1.0])
SIZES = [1, 2, 4, 8, 16]

expected_zero_signal = jax.jit(diagnostics.expected_zero_signal, static_argnames="group_size")
zero_signal = jax.jit(selection.zero_signal)


@functools.cache
def measured(size):
    """Share of groups without signal at RATES, weighed by their probability."""
    groups = all_groups(size)
    silent = np.asarray(zero_signal(groups))
    return chances(groups, RATES) @ silent


@pytest.mark.parametrize("size", SIZES)
def test_the_share_of_all_groups_is_the_expected_one(size):
    expected = expected_zero_signal(RATES, group_size=size)
    np.testing.assert_allclose(measured(size), expected, rtol=0, atol=EXACT)
    plain = [p**size + (1 - p) ** size for p in RATES]
    np.testing.assert_allclose(expected, plain, rtol=0, atol=EXACT)


def test_published_shares():
    easy, hard = RATES.tolist().index(0.9), RATES.tolist().index(0.02)
    found = [round(float(measured(size)[easy]), 4) for size in (2, 4, 8, 16)]
    assert found == [0.82, 0.6562, 0.4305, 0.1853]
    assert round(float(measured(8)[hard]), 3) == 0.851


@pytest.mark.parametrize(
    "rule", [advantages.group_center, advantages.group_normalize, advantages.leave_one_out]
)
def test_silent_groups_are_those_without_advantage(rule):
    groups = all_groups(8)
    silent = np.asarray(zero_signal(groups))
    assert silent.sum() == 2
    np.testing.assert_array_equal(silent, (np.asarray(jax.jit(rule)(groups)) == 0).all(axis=-1))


def test_the_share_grows_as_the_policy_learns():
    """From p = .5 up; over questions, the mean of shares and not the share at the mean rate."""
    rising = RATES[RATES >= 0.5]
    shares = expected_zero_signal(rising, group_size=8)
    assert (np.diff(shares) > 0).all()
    mixed = measured(8)[[1, 4]].mean()
    wanted = expected_zero_signal(RATES[[1, 4]], group_size=8).mean()
    assert mixed == pytest.approx(float(wanted), abs=EXACT)
    at_mean = expected_zero_signal(RATES[[1, 4]].mean(keepdims=True), group_size=8)
    assert mixed - float(at_mean[0]) > 0.6


def test_samples_drawn_twice_show():
    """Eight rewards that are four, each twice: the share at p = .9 is .656 and not .430."""
    twice = np.repeat(all_groups(4), 2, axis=-1)
    silent = np.asarray(zero_signal(twice))
    (share,) = chances(all_groups(4), [0.9]) @ silent
    independent = expected_zero_signal(np.array([0.9]), group_size=8)
    assert share == pytest.approx(0.6562, abs=EXACT)
    assert share - float(independent[0]) > 0.2


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_estimate_from_counts_is_unbiased_and_the_plug_in_is_not(size):
    estimate = jax.jit(diagnostics.zero_signal_estimate, static_argnames="group_size")
    expected = expected_zero_signal(RATES, group_size=size)
    passed = np.arange(17)
    for sampled in (size, size + 1, 16):
        found = estimate(passed, np.full_like(passed, sampled), group_size=size)
        plug_in = expected_zero_signal(np.minimum(passed / sampled, 1), group_size=size)
        found, plug_in = (np.asarray(x)[: sampled + 1] for x in (found, plug_in))
        weight = chances_by_count(sampled, RATES[1:-1])
        np.testing.assert_allclose(weight @ found, expected[1:-1], rtol=0, atol=EXACT)
        assert (weight @ plug_in - expected[1:-1] > 1e-3).all()  # biased upwards
