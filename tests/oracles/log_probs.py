"""What a distribution says of a token: one row of logits, in python floats."""

import math


def probabilities(row, kept=None):
    """Softmax over the kept tokens alone, the others deleted; 0 for these."""
    kept = range(len(row)) if kept is None else kept
    top = max(row[v] for v in kept)
    total = sum(math.exp(row[v] - top) for v in kept)
    return [math.exp(row[v] - top) / total if v in set(kept) else 0.0 for v in range(len(row))]


def entropy(row):
    return -sum(p * math.log(p) for p in probabilities(row) if p > 0)


def sum_sq_probs(row):
    return sum(p * p for p in probabilities(row))
