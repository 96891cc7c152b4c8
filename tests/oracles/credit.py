"""Rewards to advantages: plain loops in float64, written from the equations alone."""

import math

import numpy as np


def group_normalize(rewards, eps=1e-6):
    """DeepSeekMath 4.1.2, one group at a time; NaN: no reward, advantage 0."""
    out = np.zeros(np.shape(rewards))
    for p, group in enumerate(rewards):
        known = [float(r) for r in group if not math.isnan(r)]
        mean = sum(known) / len(known) if known else 0.0
        std = math.sqrt(sum((r - mean) ** 2 for r in known) / len(known)) if known else 0.0
        for g, r in enumerate(group):
            out[p, g] = 0.0 if math.isnan(r) else (float(r) - mean) / (std + eps)
    return out


def group_center(rewards):
    """Dr. GRPO 3.2."""
    out = np.zeros(np.shape(rewards))
    for p, group in enumerate(rewards):
        known = [float(r) for r in group if not math.isnan(r)]
        for g, r in enumerate(group):
            out[p, g] = 0.0 if math.isnan(r) else float(r) - sum(known) / len(known)
    return out
