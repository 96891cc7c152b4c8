"""Factors for another sampler's tokens: plain loops over [B, T] in float64, from the equations."""

import math

import numpy as np


def _ratios(old, sampler, mask):
    """ρ of the counting tokens, one list for each completion."""
    return [
        [math.exp(o - s) for o, s, m in zip(*rows, strict=True) if m]
        for rows in zip(old, sampler, mask, strict=True)
    ]


def _by_token(old, sampler, mask, factor):
    out = np.ones(np.shape(mask))
    for b, row in enumerate(mask):
        for t, counts in enumerate(row):
            if counts:
                out[b, t] = factor(math.exp(old[b][t] - sampler[b][t]))
    return out


def _by_completion(old, sampler, mask, factor):
    return np.array([[factor(found) if found else 1.0] for found in _ratios(old, sampler, mask)])


def truncated(old, sampler, mask, max_ratio=2.0):
    return _by_token(old, sampler, mask, lambda r: min(r, max_ratio))


def masked(old, sampler, mask, min_ratio=0.5, max_ratio=5.0):
    return _by_token(old, sampler, mask, lambda r: r if min_ratio <= r <= max_ratio else 0.0)


def sequence_truncated(old, sampler, mask, max_ratio=2.0):
    return _by_completion(old, sampler, mask, lambda rs: min(math.prod(rs), max_ratio))


def sequence_masked(old, sampler, mask, min_ratio=0.0, max_ratio=3.0):
    def factor(rs):
        return math.prod(rs) if min_ratio <= math.prod(rs) <= max_ratio else 0.0

    return _by_completion(old, sampler, mask, factor)


def geometric_masked(old, sampler, mask, min_ratio, max_ratio):
    def factor(rs):
        return float(min_ratio <= math.prod(rs) ** (1 / len(rs)) <= max_ratio)

    return _by_completion(old, sampler, mask, factor)


def off_policy_sequences(log_probs, sampler, advantages, mask, max_drift=0.5):
    """DeepSeek-V3.2; advantages [B, 1]."""
    out = []
    for rows, advantage in zip(zip(log_probs, sampler, mask, strict=True), advantages, strict=True):
        drifts = [s - p for p, s, m in zip(*rows, strict=True) if m]
        drift = sum(drifts) / len(drifts) if drifts else 0.0
        out.append([0.0 if advantage[0] < 0 and drift > max_drift else 1.0])
    return np.array(out)
