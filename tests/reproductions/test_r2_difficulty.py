"""R2. Dividing by the standard deviation makes very easy and very hard questions count for more.

Claim: Dr. GRPO, arXiv:2503.20783, section 3.1 (question-level difficulty bias). With rewards of 0
and 1 and success rate p the expected gradient is w(p) ∇p; here w is summed over all 2^G groups
and held to closed forms in the number K of successes.

Ours, beside the paper's: at G = 8 the effect is 1.33 times between p = .05 and .5, and not the 2.29
of the limit 1/√(p(1-p)); the leave-one-out standard deviation (NeMo-RL's default) reverses it.

Falsified by: a weight off by more than 1e-8; or an effect at G = 8 that is not between 1.3 and 1.4.
"""

import functools
import math

import jax
import numpy as np
import pytest
from enumeration import (
    EXACT,
    all_groups,
    chances,
    chances_by_count,
    gradient_weights,
    groups_by_count,
)

from grpo_jax.ops import advantages

SIZE = 8
RATES = np.array([0.05, 0.2, 0.5, 0.8, 0.95])
RULES = {
    "group_center": advantages.group_center,
    "leave_one_out": advantages.leave_one_out,
    "group_normalize": functools.partial(advantages.group_normalize, eps=0.0),
    "group_normalize, ddof 1": functools.partial(advantages.group_normalize, eps=0.0, ddof=1),
    "max_rl": advantages.max_rl,
    "leave_one_out_normalize": functools.partial(advantages.leave_one_out_normalize, eps=0.0),
}


@jax.jit
def credits(groups):
    return {name: rule(groups) for name, rule in RULES.items()}


@functools.cache
def table():
    """{rule: weights at RATES}, from every group of 8."""
    groups = all_groups(SIZE)
    found, weighed = credits(groups), chances(groups, RATES)
    return {
        name: np.asarray(gradient_weights(found[name], groups, weighed, RATES)) for name in RULES
    }


# Each as a function of (successes, G) -> (advantage of a success, of a failure), on paper.
def centred(k, size):
    return 1 - k / size, -k / size


def normalized(k, size, ddof=0):
    std = math.sqrt(k * (size - k) / (size * (size - ddof)))
    return tuple(a / std for a in centred(k, size))


def without_itself(k, size):
    return 1 - (k - 1) / (size - 1), -k / (size - 1)


def without_itself_normalized(k, size):
    def over_others(advantage, others_right):
        wrong = size - 1 - others_right
        std = math.sqrt(others_right * wrong / ((size - 1) * (size - 2)))
        return advantage / std if std else advantage

    right, wrong = without_itself(k, size)
    return over_others(right, k - 1), over_others(wrong, k)


def by_mean(k, size):
    return size / k - 1, -1.0


CLOSED = {
    "group_center": centred,
    "leave_one_out": without_itself,
    "group_normalize": normalized,
    "group_normalize, ddof 1": functools.partial(normalized, ddof=1),
    "max_rl": by_mean,
    "leave_one_out_normalize": without_itself_normalized,
}


def closed_form(rule, size, p):
    """w = E_K[K A_right (1 - p) - (G - K) A_wrong p] / (G p (1 - p)); no K = 0, no K = G."""
    total = 0.0
    for k in range(1, size):
        right, wrong = rule(k, size)
        chance = math.comb(size, k) * p**k * (1 - p) ** (size - k)
        total += chance * (k * right * (1 - p) - (size - k) * wrong * p)
    return total / (size * p * (1 - p))


@pytest.mark.parametrize("name", RULES)
def test_weights_of_all_groups_equal_closed_forms(name):
    wanted = [closed_form(CLOSED[name], SIZE, p) for p in RATES]
    np.testing.assert_allclose(table()[name], wanted, rtol=0, atol=EXACT)


def test_without_std_difficulty_has_no_weight_and_maximum_likelihood_favours_the_hard():
    """The one-line forms: (G - 1)/G, 1, E√(K(G - K))/(G p(1 - p)), (1 - (1 - p)^(G - 1))/p."""
    p = RATES
    k = np.arange(SIZE + 1)
    roots = chances_by_count(SIZE, RATES) @ np.sqrt(k * (SIZE - k))
    wanted = {
        "group_center": np.full(len(p), 7 / 8),
        "leave_one_out": np.ones(len(p)),
        "group_normalize": roots / (SIZE * p * (1 - p)),
        "group_normalize, ddof 1": math.sqrt(7 / 8) * roots / (SIZE * p * (1 - p)),
        "max_rl": (1 - (1 - p) ** (SIZE - 1)) / p,
    }
    for name, weights in wanted.items():
        np.testing.assert_allclose(table()[name], weights, rtol=0, atol=EXACT, err_msg=name)


@pytest.mark.parametrize(
    ("name", "published"),
    {
        "group_center": [0.875, 0.875, 0.875, 0.875, 0.875],
        "leave_one_out": [1.0, 1.0, 1.0, 1.0, 1.0],
        "group_normalize": [2.473, 2.107, 1.856, 2.107, 2.473],
        "group_normalize, ddof 1": [2.313, 1.971, 1.736, 1.971, 2.313],
        "max_rl": [6.033, 3.951, 1.984, 1.250, 1.053],
        "leave_one_out_normalize": [1.469, 2.023, 2.001, 2.023, 1.469],
    }.items(),
)
def test_the_table_in_three_decimals(name, published):
    assert table()[name].round(3).tolist() == published


def test_at_eight_the_bias_is_a_third_and_leaving_oneself_out_reverses_it():
    effect = {name: weights[0] / weights[2] for name, weights in table().items()}
    assert 1.3 < effect["group_normalize"] < 1.4  # 1.33
    assert effect["group_normalize, ddof 1"] == pytest.approx(effect["group_normalize"], abs=EXACT)
    assert effect["leave_one_out_normalize"] < 0.75  # 1.47 against 2.00
    assert effect["group_center"] == pytest.approx(1, abs=EXACT)


@functools.cache
def growing():
    """{G: weights of group_normalize at p = .05 and .5}."""
    large, rates = 512, RATES[[0, 2]]
    groups = groups_by_count(large)
    credit = jax.jit(RULES["group_normalize"])(groups)
    found = gradient_weights(credit, groups, chances_by_count(large, rates), rates)
    return {SIZE: table()["group_normalize"][[0, 2]], large: np.asarray(found)}


def test_the_famous_formula_is_the_limit_of_large_groups():
    """1/√(p(1 - p)) is approached from below, and the gap falls as 1/(8 G p(1 - p))."""
    p = RATES[[0, 2]]
    gap = {size: 1 - weights * np.sqrt(p * (1 - p)) for size, weights in growing().items()}
    assert (gap[SIZE] > 10 * gap[512]).all()
    np.testing.assert_allclose(gap[512] * 8 * 512 * p * (1 - p), 1, atol=0.05)
    effect = growing()[512][0] / growing()[512][1]
    assert effect == pytest.approx(0.5 / math.sqrt(0.05 * 0.95), rel=0.01)  # 2.29
