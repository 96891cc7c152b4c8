"""A critic's advantages and loss: plain loops in float64, written from the equations alone."""

import numpy as np


def gae(token_rewards, values, mask, discount=1.0, lam=0.95):
    """Masked tokens alone; lam a number, or one for each completion [..., 1].

    Written as the sum Σ_k (discount · lam)^k δ, not as a recursion.
    """
    out = np.zeros(np.shape(mask))
    for i in np.ndindex(*np.shape(mask)[:-1]):
        share = float(lam) if np.ndim(lam) == 0 else float(lam[i][0])
        kept = [t for t, counts in enumerate(mask[i]) if counts]
        errors = []
        for n, t in enumerate(kept):
            after = float(values[i][kept[n + 1]]) if n + 1 < len(kept) else 0.0
            errors.append(float(token_rewards[i][t]) + discount * after - float(values[i][t]))
        for n, t in enumerate(kept):
            out[i][t] = sum((discount * share) ** k * e for k, e in enumerate(errors[n:]))
    return out


def returns(token_rewards, values, mask, discount=1.0, lam=0.95):
    found = gae(token_rewards, values, mask, discount, lam)
    for t in np.ndindex(*np.shape(mask)):
        if mask[t]:
            found[t] += float(values[t])
    return found


def value_loss(value, old_value, target, clip_eps=0.2):
    """One token."""
    near = min(max(value, old_value - clip_eps), old_value + clip_eps)
    return max((value - target) ** 2, (near - target) ** 2) / 2


def length_adaptive_lam(length, alpha):
    """VAPO, and 0 where it would be negative."""
    return max(0.0, 1 - 1 / (alpha * length)) if length else 0.0
