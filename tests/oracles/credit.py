"""Rewards to advantages: plain loops in float64, written from the equations alone.

Rewards are [P, G]; NaN: no reward, advantage 0.
"""

import itertools
import math

import numpy as np


def by_group(rule):
    """One group at a time: `rule(known rewards)` gives their advantages, in their order."""

    def whole(rewards, **settings):
        out = np.zeros(np.shape(rewards))
        for p, group in enumerate(rewards):
            places = [g for g, r in enumerate(group) if not math.isnan(r)]
            if places:
                found = rule([float(group[g]) for g in places], **settings)
                for g, advantage in zip(places, found, strict=True):
                    out[p, g] = advantage
        return out

    return whole


def mean(values):
    return sum(values) / len(values)


def std(values, ddof=0):
    if len(values) <= ddof:
        return 0.0
    middle = mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - ddof))


def over(value, scale):
    """Nothing over nothing is nothing."""
    return value / scale if scale else 0.0


def known(rewards):
    return [float(r) for r in np.ravel(rewards) if not math.isnan(r)]


@by_group
def group_normalize(rewards, eps=1e-6, ddof=0):
    """DeepSeekMath 4.1.2."""
    spread = std(rewards, ddof)
    return [over(r - mean(rewards), spread + eps) if spread else 0.0 for r in rewards]


@by_group
def group_center(rewards):
    """Dr. GRPO 3.2."""
    return [r - mean(rewards) for r in rewards]


@by_group
def leave_one_out(rewards):
    """RLOO, from its definition: the mean of all but one."""
    if len(rewards) < 2:
        return [0.0]
    return [r - mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]


@by_group
def leave_one_out_normalize(rewards, eps=1e-6):
    """NeMo-RL: the others' mean and standard deviation; undivided where the latter is 0."""
    if len(rewards) < 2:
        return [0.0]
    found = []
    for i, r in enumerate(rewards):
        others = rewards[:i] + rewards[i + 1 :]
        spread = std(others, 1) if len(set(others)) > 1 else 0.0
        found.append((r - mean(others)) / (spread + eps) if spread else r - mean(others))
    return found


@by_group
def max_rl(rewards):
    """MaxRL's estimator: what is over the mean, in units of it."""
    middle = mean(rewards)
    return [(r - middle) / middle if middle > 0 else 0.0 for r in rewards]


@by_group
def max_minus_second(rewards):
    """2503.19595."""
    ascending = sorted(rewards)
    if len(rewards) < 2 or ascending[-1] == ascending[-2]:
        return [0.0] * len(rewards)
    return [r - ascending[-2] if r == ascending[-1] else 0.0 for r in rewards]


@by_group
def pass_at_k(rewards, k):
    """PKPO: every subset of k, one after the other; n times its equation 33 (29 for k = 1)."""
    n = len(rewards)
    if n < k:
        return [0.0] * n
    if k == 1:
        return [0.0] if n < 2 else [r - (sum(rewards) - r) / (n - 1) for r in rewards]
    found = [0.0] * n
    subsets = list(itertools.combinations(range(n), k))
    for subset in subsets:
        best = max(rewards[j] for j in subset)
        for i in subset:
            found[i] += best - max(rewards[j] for j in subset if j != i)
    return [n * total / len(subsets) for total in found]


def opo(rewards, lengths):
    """2505.23585: the baseline weighted by length."""
    out = np.zeros(np.shape(rewards))
    for p, group in enumerate(rewards):
        there = [(float(r), int(n)) for r, n in zip(group, lengths[p], strict=True)]
        there = [(r, n) for r, n in there if not math.isnan(r)]
        tokens = sum(n for _, n in there)
        for g, r in enumerate(group):
            if tokens and not math.isnan(r):
                out[p, g] = float(r) - sum(n * s for s, n in there) / tokens
    return out


def greedy_baseline(rewards, greedy_rewards):
    """ReMax."""
    out = np.zeros(np.shape(rewards))
    for p, group in enumerate(rewards):
        for g, r in enumerate(group):
            if not math.isnan(r) and not math.isnan(greedy_rewards[p]):
                out[p, g] = float(r) - float(greedy_rewards[p])
    return out


def batch_scaled(rewards, eps=1e-6, ddof=1, centred=False):
    """Lite PPO: the group's mean, the batch's standard deviation."""
    apart = group_center(rewards)
    if centred:
        there = [a for a, r in zip(apart.ravel(), np.ravel(rewards), strict=True) if r == r]
    else:
        there = known(rewards)
    spread = std(there, ddof)
    return apart / (spread + eps) if spread else np.zeros(np.shape(rewards))


def beta_pdf(x, alpha, beta):
    constant = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    return math.exp(constant) * x ** (alpha - 1) * (1 - x) ** (beta - 1)


def beta_normalize(rewards, min_reward=0.0, max_reward=1.0, max_weight=1e6):
    """BNPO, with the moments of its section on updating the Beta distribution."""
    scaled = (np.asarray(rewards, float) - min_reward) / (max_reward - min_reward)
    rates = [mean(known(group)) for group in scaled if known(group)]
    alpha = beta = 1.0
    if len(set(rates)) > 1:
        m, v = mean(rates), std(rates, 1) ** 2
        alpha = max(1.0, 1 + (m * (1 - m) / v - 1) * m / 3)
        beta = max(1.0, 1 + (m * (1 - m) / v - 1) * (1 - m) / 3)
    out = group_center(scaled)
    for p, group in enumerate(scaled):
        rate = mean(known(group)) if known(group) else 0.0
        if 0 < rate < 1:
            out[p] *= min(over(1.0, beta_pdf(rate, alpha, beta)), max_weight)
    return out


def gpg(rewards, count_nonzero=False):
    """2504.02546: α over the groups that have a signal; or verl's, over scores that are not 0."""
    total = len(known(rewards))
    if count_nonzero:
        counted = sum(r != 0 for r in known(rewards))
    else:
        counted = sum(len(known(g)) for g in rewards if len(set(known(g))) > 1)
    return group_center(rewards) * total / max(counted, 1)


def batch_whiten(values, eps=1e-6, ddof=1):
    there = known(values)
    out, spread = np.zeros(np.shape(values)), std(there, ddof)
    for index, value in np.ndenumerate(values):
        if spread and not math.isnan(value):
            out[index] = (float(value) - mean(there)) / (spread + eps)
    return out


def token_whiten(advantages, mask, eps=1e-6, ddof=0, center=True):
    """Over every token that counts; the mean is left where it is without `center`."""
    there = [float(a) for a, m in zip(np.ravel(advantages), np.ravel(mask), strict=True) if m]
    middle, spread = (mean(there), std(there, ddof)) if there else (0.0, 0.0)
    out = np.zeros(np.shape(mask))
    for index in np.argwhere(mask):
        value = float(advantages[tuple(index)])
        out[tuple(index)] = ((value - middle) if center else value) / (spread + eps)
    return out


def weighted_sum(rewards_by_function, reward_weights):
    """[P, G, K] -> [P, G]."""
    prompts, group_size, _ = np.shape(rewards_by_function)
    out = np.full((prompts, group_size), math.nan)
    for p, g in itertools.product(range(prompts), range(group_size)):
        terms = [
            float(w) * float(r)
            for w, r in zip(reward_weights, rewards_by_function[p][g], strict=True)
            if not math.isnan(r)
        ]
        if terms:
            out[p, g] = sum(terms)
    return out


def gdpo(rewards_by_function, reward_weights, eps=1e-6, ddof=1):
    """2601.05242: each function normalised in its group, then one whitening of their sum."""
    totals = np.full(np.shape(rewards_by_function)[:2], math.nan)
    for k, weight in enumerate(reward_weights):
        column = np.asarray(rewards_by_function)[:, :, k]
        normalized = group_normalize(column, eps=eps, ddof=ddof)
        for index, reward in np.ndenumerate(column):
            if not math.isnan(reward):
                before = 0.0 if math.isnan(totals[index]) else totals[index]
                totals[index] = before + float(weight) * normalized[index]
    return batch_whiten(totals, eps=eps, ddof=ddof)
