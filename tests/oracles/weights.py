"""Token weights: plain loops over a mask [P, G, T] in float64, written from the equations alone."""

import numpy as np


def _tokens(rows):
    return sum(int(x) for x in np.ravel(rows))


def _spread(mask, weight):
    """weight(p, g) on the tokens that count, 0 elsewhere."""
    out = np.zeros(np.shape(mask))
    for p, group in enumerate(mask):
        for g, completion in enumerate(group):
            for t, counts in enumerate(completion):
                if counts:
                    out[p, g, t] = weight(p, g)
    return out


def seq_mean_token_mean(mask):
    """DeepSeekMath equation 3; completions without a token are not there."""
    completions = sum(_tokens(row) > 0 for group in mask for row in group)
    return _spread(mask, lambda p, g: 1 / (_tokens(mask[p, g]) * completions))


def seq_mean_token_sum(mask, constant):
    """Dr. GRPO."""
    completions = sum(_tokens(row) > 0 for group in mask for row in group)
    return _spread(mask, lambda p, g: 1 / (constant * completions))


def token_mean(mask):
    """DAPO equation 8, over the whole batch."""
    return _spread(mask, lambda p, g: 1 / _tokens(mask))


def token_mean_of_parts(mask, num_parts):
    """Each micro-batch divides by its own tokens; then the mean over micro-batches."""
    size = len(mask) // num_parts
    part = [_tokens(mask[n * size : (n + 1) * size]) for n in range(num_parts)]
    return _spread(mask, lambda p, g: 1 / (part[p // size] * num_parts))


def prompt_mean(mask):
    """DAPO equation 8 as printed: by group, then the mean over prompts that have a token."""
    prompts = sum(_tokens(group) > 0 for group in mask)
    return _spread(mask, lambda p, g: 1 / (_tokens(mask[p]) * prompts))
