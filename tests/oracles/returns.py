"""Credit by token: plain loops in float64, written from the equations alone."""

import math

import numpy as np


def _tokens(mask_row):
    return [t for t, counts in enumerate(mask_row) if counts]


def _completions(rewards):
    return np.ndindex(*np.shape(rewards))


def to_go(token_rewards, mask, discount=1.0):
    """The masked tokens alone, in their order; each later one is discounted once more."""
    out = np.zeros(np.shape(mask))
    for row in np.ndindex(*np.shape(mask)[:-1]):
        kept = _tokens(mask[row])
        for n, t in enumerate(kept):
            ahead = enumerate(kept[n:])
            out[row][t] = sum(discount**k * float(token_rewards[row][s]) for k, s in ahead)
    return out


def terminal(rewards, mask):
    out = np.zeros(np.shape(mask))
    for i in _completions(rewards):
        kept = _tokens(mask[i])
        if kept and not math.isnan(rewards[i]):
            out[i][kept[-1]] = rewards[i]
    return out


def penalized(rewards, mask, penalty):
    out = np.zeros(np.shape(rewards))
    for i in _completions(rewards):
        out[i] = float(rewards[i]) - sum(float(penalty[i][t]) for t in _tokens(mask[i]))
    return out


def kl_to_go(advantages, mask, penalty):
    """advantages [..., 1] or [..., T]."""
    out = np.zeros(np.shape(mask))
    for i in np.ndindex(*np.shape(mask)[:-1]):
        kept = _tokens(mask[i])
        for n, t in enumerate(kept):
            own = advantages[i][t if len(advantages[i]) > 1 else 0]
            out[i][t] = float(own) - sum(float(penalty[i][s]) for s in kept[n:])
    return out


def whiten(values, mask, eps):
    """Over all tokens that count, the number of which divides the variance."""
    kept = [float(values[t]) for t in np.ndindex(*np.shape(mask)) if mask[t]]
    mean = sum(kept) / len(kept)
    std = math.sqrt(sum((x - mean) ** 2 for x in kept) / len(kept))
    out = np.zeros(np.shape(mask))
    for t in np.ndindex(*np.shape(mask)):
        if mask[t]:
            out[t] = (float(values[t]) - mean) / (std + eps)
    return out


def with_reward(rewards, mask):
    """The mask without the completions that have no reward."""
    out = np.array(mask)
    for i in _completions(rewards):
        if math.isnan(rewards[i]):
            out[i] = False
    return out


def reinforce_plus_plus(rewards, mask, penalty=None, eps=1e-8):
    """REINFORCE++: r - Σ penalties to go, then whitening."""
    counted = with_reward(rewards, mask)
    values = np.zeros(np.shape(mask))
    for i in _completions(rewards):
        kept = _tokens(counted[i])
        for n, t in enumerate(kept):
            values[i][t] = float(rewards[i])
            if penalty is not None:
                values[i][t] -= sum(float(penalty[i][s]) for s in kept[n:])
    return whiten(values, counted, eps)


def reinforce_plus_plus_baseline(rewards, mask, eps=1e-8):
    counted = with_reward(rewards, mask)
    values = np.zeros(np.shape(mask))
    for group in np.ndindex(*np.shape(rewards)[:-1]):
        known = [float(r) for r in rewards[group] if not math.isnan(r)]
        for g, r in enumerate(rewards[group]):
            if not math.isnan(r):
                values[group][g] = float(r) - sum(known) / len(known)
    return whiten(values, counted, eps)


def process_supervision(step_rewards, step_ends, mask, eps=1e-6, ddof=0):
    """DeepSeekMath 4.1.3."""
    out = np.zeros(np.shape(mask))
    for group in np.ndindex(*np.shape(mask)[:-2]):
        pool = [float(r) for row in step_rewards[group] for r in row if not math.isnan(r)]
        if not pool:
            continue
        mean = sum(pool) / len(pool)
        square = sum((r - mean) ** 2 for r in pool) / max(len(pool) - ddof, 1)
        for g, row in enumerate(step_rewards[group]):
            for t in _tokens(mask[group][g]):
                for j, r in enumerate(row):
                    if not math.isnan(r) and step_ends[group][g][j] >= t and square > 0:
                        out[group][g][t] += (float(r) - mean) / (math.sqrt(square) + eps)
    return out


def optimal_token_baseline(rewards, mask, old_log_probs, sum_sq_probs):
    """OTB: at each index over the completions that have a token there."""
    out = np.zeros(np.shape(mask))
    for group in np.ndindex(*np.shape(rewards)[:-1]):
        energy = [0.0] * len(rewards[group])
        for t in range(np.shape(mask)[-1]):
            there = []
            for g, r in enumerate(rewards[group]):
                if mask[group][g][t] and not math.isnan(r):
                    prob = math.exp(old_log_probs[group][g][t])
                    energy[g] += 1 - 2 * prob + float(sum_sq_probs[group][g][t])
                    there.append(g)
            total = sum(energy[g] for g in there)
            for g in there:
                if total > 0:
                    baseline = sum(float(rewards[group][h]) * energy[h] for h in there) / total
                else:
                    baseline = sum(float(rewards[group][h]) for h in there) / len(there)
                out[group][g][t] = float(rewards[group][g]) - baseline
    return out
