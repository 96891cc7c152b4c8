"""Metrics: plain loops in float64 over the entries that count."""

import itertools
import math

import numpy as np


def counted(mask, *arrays):
    """Tuples of the entries inside the mask."""
    inside = [t for t in np.ndindex(*np.shape(mask)) if mask[t]]
    return [tuple(float(array[t]) for array in arrays) for t in inside]


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else 0.0


def effective_sample_size(log_ratio, mask):
    weights = [math.exp(x) for (x,) in counted(mask, log_ratio)]
    return sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))


def kl_means(log_probs, ref_log_probs, mask):
    pairs = counted(mask, log_probs, ref_log_probs)
    return mean(p - q for p, q in pairs), mean(math.exp(q - p) - (q - p) - 1 for p, q in pairs)


def mismatch(old_log_probs, sampler_log_probs, mask):
    pairs = counted(mask, old_log_probs, sampler_log_probs)
    ratios = [math.exp(p - q) for p, q in pairs]
    return {
        "sampler_mismatch/mean": mean(abs(p - q) for p, q in pairs),
        "sampler_mismatch/max": max((abs(p - q) for p, q in pairs), default=0.0),
        "sampler_mismatch/k3": mean(r - 1 - math.log(r) for r in ratios),
        "sampler_mismatch/chi2": mean(r * r for r in ratios) - 1 if ratios else 0.0,
    }


def zero_signal_share(outcomes, group_size):
    """Of all groups that can be picked from the outcomes, those that all pass or all fail."""
    groups = list(itertools.combinations(outcomes, group_size))
    return mean(len(set(group)) == 1 for group in groups)
