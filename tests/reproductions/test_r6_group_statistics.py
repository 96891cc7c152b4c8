"""R6. What the statistics of a group make of its rewards.

Claims: leave-one-out is G/(G - 1) times centring (RLOO, arXiv:2402.14740). The divisor of the
standard deviation, which DeepSeekMath (arXiv:2402.03300) leaves open, is worth √(G/(G - 1)). No
advantage exceeds √(G - 1). A group of one, or of equal rewards, has none. GDPO, arXiv:2601.05242:
adding rewards up before they are normalised gives different combinations the same advantage
("collapse"), normalising first keeps them apart. All groups of four completions with two rewards
of 0 and 1 are gone through, and the advantages counted in exact arithmetic.

Falsified by: an identity off by more than 1e-8; equal counts of distinct advantages for GDPO.
"""

import collections
import fractions
import functools
import itertools
import math

import jax
import numpy as np
import pytest
from enumeration import EXACT, all_groups

from grpo_jax.ops import advantages, batch_advantages

RULES = {
    "group_center": advantages.group_center,
    "group_normalize": functools.partial(advantages.group_normalize, eps=0.0),
    "group_normalize, ddof 1": functools.partial(advantages.group_normalize, eps=0.0, ddof=1),
    "leave_one_out": advantages.leave_one_out,
    "leave_one_out_normalize": functools.partial(advantages.leave_one_out_normalize, eps=0.0),
    "max_rl": advantages.max_rl,
}


@jax.jit
def credits(groups):
    return {name: rule(groups) for name, rule in RULES.items()}


@functools.cache
def of_all(size):
    return {name: np.asarray(credit) for name, credit in credits(all_groups(size)).items()}


@functools.cache
def of_real_numbers():
    """256 groups of 8 rewards of many scales, so that in some one is far above the others."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(256, 8)) * np.exp(rng.normal(scale=4, size=(256, 8)))
    return rewards, {name: np.asarray(credit) for name, credit in credits(rewards).items()}


def test_leave_one_out_is_centring_times_g_over_g_minus_1():
    rewards, found = of_real_numbers()
    for credit, r in ((of_all(8), all_groups(8)), (found, rewards)):
        others = (r.sum(axis=-1, keepdims=True) - r) / 7
        np.testing.assert_allclose(credit["leave_one_out"], r - others, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(
            credit["leave_one_out"], 8 / 7 * credit["group_center"], rtol=EXACT, atol=EXACT
        )


@pytest.mark.parametrize(("size", "by_size", "by_one_less"), [(8, 2.646, 2.475), (2, 1, 0.707)])
def test_the_divisor_of_the_standard_deviation(size, by_size, by_one_less):
    """A lone success in eight, and one of a pair."""
    plain, bessel = of_all(size)["group_normalize"], of_all(size)["group_normalize, ddof 1"]
    lone = 1  # 0, ..., 0, 1
    assert all_groups(size)[lone].sum() == all_groups(size)[lone, -1] == 1
    assert plain[lone, -1].round(3) == by_size
    assert bessel[lone, -1].round(3) == by_one_less
    np.testing.assert_allclose(plain, math.sqrt(size / (size - 1)) * bessel, rtol=0, atol=EXACT)


@pytest.mark.parametrize("size", [2, 8])
def test_no_advantage_exceeds_the_root_of_g_minus_1(size):
    """Reached by a lone success (or failure) alone, and not passed by any real rewards."""
    found = np.abs(of_all(size)["group_normalize"])
    largest = math.sqrt(size - 1)
    assert found.max() == pytest.approx(largest, abs=EXACT)
    reached = np.isclose(found.max(axis=-1), largest, rtol=0, atol=EXACT)
    successes = all_groups(size).sum(axis=-1)
    np.testing.assert_array_equal(reached, (successes == 1) | (successes == size - 1))
    if size == 8:
        _, credit = of_real_numbers()
        highest = np.abs(credit["group_normalize"]).max()
        assert largest - 1e-3 < highest < largest + EXACT


def test_leaving_oneself_out_of_both_statistics():
    """A lone success in eight: 1 (its others have no spread), and -1/√7 for each failure."""
    lone = of_all(8)["leave_one_out_normalize"][1]
    np.testing.assert_allclose(lone[-1], 1, rtol=0, atol=EXACT)
    np.testing.assert_allclose(lone[:-1], -1 / math.sqrt(7), rtol=0, atol=EXACT)
    assert lone.sum() == pytest.approx(1 - math.sqrt(7), abs=EXACT)


def test_one_completion_and_equal_rewards_have_no_advantage():
    """Exact zeros under every rule, with no epsilon to hide behind."""
    alone = np.array([[1.0], [0.0], [-3.7]])
    equal = np.repeat(np.random.default_rng(0).normal(size=(100, 1)), 7, axis=1)
    assert (equal.mean(axis=1) != equal[:, 0]).any()  # a mean is rounded
    for rewards in (alone, equal):
        for name, credit in credits(rewards).items():
            assert not np.asarray(credit).any(), name


# Two rewards of each completion.
PAIRS = list(itertools.product([0, 1], repeat=2))


@functools.cache
def of_pairs(size):
    """All groups of pairs [N, size, 2]; credit [N, size] by either order, and GDPO's."""
    groups = np.array(list(itertools.product(PAIRS, repeat=size)), float)
    normalize = RULES["group_normalize"]

    @jax.jit
    def both(groups):
        added = normalize(advantages.weighted_sum(groups))
        apart = normalize(groups.swapaxes(-1, -2)).sum(axis=-2)
        return added, apart, batch_advantages.gdpo(groups, eps=0.0)

    return groups, *(np.asarray(credit) for credit in both(groups))


def distinct(credit):
    """How many advantages there are, and how many groups of them, whatever their order."""
    tidy = np.round(credit, 6) + 0.0
    return len(np.unique(tidy)), len(np.unique(np.sort(tidy, axis=-1), axis=0))


def exact_added(group):
    """(r - mean)/std of the totals as sign · square: rational."""
    total = [fractions.Fraction(sum(pair)) for pair in group]
    mean = sum(total) / len(total)
    variance = sum((r - mean) ** 2 for r in total) / len(total)
    return [(r - mean) * abs(r - mean) / variance if variance else variance for r in total]


def exact_apart(group):
    """Σ_k (r_k - mean)/std as a + b √(G - 1): at G = 2 and 4 all standard deviations are such."""
    size = len(group)
    rational, surd = [fractions.Fraction(0)] * size, [fractions.Fraction(0)] * size
    for k in range(2):
        right = sum(pair[k] for pair in group)
        for i, pair in enumerate(group):
            centred = fractions.Fraction(pair[k]) - fractions.Fraction(right, size)
            if 2 * right == size:  # std is 1/2
                rational[i] += 2 * centred
            elif 0 < right < size:  # √(G - 1)/G
                surd[i] += centred * size / (size - 1)
    return list(zip(rational, surd, strict=True))


def exactly_distinct(rule, size):
    groups = [rule(group) for group in itertools.product(PAIRS, repeat=size)]
    values = {value for group in groups for value in group}
    return len(values), len({tuple(sorted(group)) for group in groups})


@functools.cache
def counts(size):
    """(advantages, groups of them), added up first and normalised first; exact and by ours."""
    _, added, apart, _ = of_pairs(size)
    return {
        "added": (exactly_distinct(exact_added, size), distinct(added)),
        "apart": (exactly_distinct(exact_apart, size), distinct(apart)),
    }


@pytest.mark.parametrize(("size", "added", "apart"), [(2, (3, 2), (5, 3)), (4, (15, 7), (23, 14))])
def test_adding_up_first_merges_what_normalising_first_keeps(size, added, apart):
    assert counts(size)["added"] == (added, added)
    assert counts(size)["apart"] == (apart, apart)
    assert added[0] < apart[0]
    assert added[1] < apart[1]


def test_where_the_right_and_the_well_formed_answer_collapse():
    """(1, 0) and (0, 1) in one group: the same credit always, or where both spreads are the same.

    And normalising first merges nothing else: what differs in its total stays apart.
    """
    groups, added, apart, _ = of_pairs(4)
    merged = collections.Counter()
    for group, one, other in zip(groups, added, apart, strict=True):
        rates = group.mean(axis=0)
        for i, j in itertools.combinations(range(4), 2):
            if group[i].tolist() == group[j].tolist():
                assert abs(other[i] - other[j]) < EXACT
            elif group[i].sum() == group[j].sum():
                assert abs(one[i] - one[j]) < EXACT
                same = abs(other[i] - other[j]) < EXACT
                # The spread is that of the rate, or of its complement.
                assert same == (rates[0] in (rates[1], 1 - rates[1]))
                merged["added"] += 1
                merged["apart"] += same
            elif (rates % 1).all():
                assert abs(other[i] - other[j]) > 0.1
    assert merged["apart"] < merged["added"]


def test_whitening_over_the_batch_keeps_the_count():
    """GDPO's last step is one shift and one scale for all: of all 256 groups together."""
    _, _, apart, whitened = of_pairs(4)
    assert distinct(whitened) == distinct(apart)
    slope, offset = np.polyfit(apart.ravel(), whitened.ravel(), 1)
    np.testing.assert_allclose(whitened, slope * apart + offset, rtol=0, atol=EXACT)
    assert slope > 0
