"""Ratios, trust regions and KL terms in float64, written from the equations alone, case by case.

A loss comes with its slope in the log-probability of its own token (for a completion: of each of
its tokens), in closed form; what has no gradient there is a constant.
"""

import math

import numpy as np

# -- by token: (δ, A, ...) or (log π, log π_old, A, ...) -> loss, slope ------------------------


def clipped(delta, a, low=0.2, high=0.2):
    """PPO equation 7, by its cases."""
    r = math.exp(delta)
    if a > 0 and r > 1 + high:
        return -(1 + high) * a, 0.0
    if a < 0 and r < 1 - low:
        return -(1 - low) * a, 0.0
    return -r * a, -r * a


def dual_clipped(delta, a, low=0.2, high=0.2, c=3.0):
    """arXiv:1912.09729."""
    if a < 0 and math.exp(delta) > c:
        return -c * a, 0.0
    return clipped(delta, a, low, high)


def two_sided_clipped(delta, a, low=0.2, high=0.2, bound=4.0):
    """INTELLECT-2 4.1: the larger of the losses of the two branches, and its slope."""
    r = math.exp(delta)
    plain = (-min(r, bound) * a, -r * a if r < bound else 0.0)
    held = min(max(r, 1 - low), 1 + high)
    clip = (-held * a, -r * a if held == r else 0.0)
    return plain if plain[0] >= clip[0] else clip


def importance_weighted(delta, a):
    r = math.exp(delta)
    return -r * a, -r * a


def policy_gradient(log_prob, a):
    return -a * log_prob, -a


def cispo(delta, log_prob, a, largest=5.0, smallest=0.0):
    """MiniMax-M1: the clipped ratio is a constant."""
    weight = min(max(math.exp(delta), smallest), largest)
    return -weight * a * log_prob, -weight * a


def sapo(delta, a, tau_positive=1.0, tau_negative=1.05):
    """arXiv:2511.20347."""
    r, tau = math.exp(delta), tau_positive if a > 0 else tau_negative
    gate = 1 / (1 + math.exp(-tau * (r - 1)))
    return -4 / tau * gate * a, -4 * gate * (1 - gate) * r * a


def dppo_tv(log_prob, old, a, low=0.15, high=0.15, c=20.0):
    """arXiv:2602.04879, total variation of two outcomes."""
    moved = math.exp(log_prob) - math.exp(old)
    if (a > 0 and moved > high) or (a < 0 and moved < -low):
        return 0.0, 0.0
    weight = min(math.exp(log_prob - old), c)
    return -weight * a * log_prob, -weight * a


def dppo_kl(log_prob, old, a, low=0.05, high=0.05, c=20.0):
    """arXiv:2602.04879, KL(old || policy) of two outcomes."""
    p, q = math.exp(log_prob), math.exp(old)
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    if (a > 0 and p > q and divergence > high) or (a < 0 and p < q and divergence > low):
        return 0.0, 0.0
    weight = min(math.exp(log_prob - old), c)
    return -weight * a * log_prob, -weight * a


# -- by completion: lists of its counting tokens -> loss(es), slopes ---------------------------


def gmpo(deltas, a, low=0.4, high=0.4):
    """arXiv:2507.20673: the product of clipped ratios, to the power 1/L."""
    product, moving = 1.0, []
    for delta in deltas:
        bound = min(delta, high) if a > 0 else max(delta, -low)
        product *= math.exp(bound)
        moving.append(bound == delta)
    loss = -a * product ** (1 / max(len(deltas), 1))
    return loss, [loss / len(deltas) if moves else 0.0 for moves in moving]


def vespo(deltas, log_probs, a, positive=(2.0, 3.0), negative=(3.0, 2.0)):
    """arXiv:2602.10693; the weight is a constant."""
    k, lam = positive if a >= 0 else negative
    w = math.exp(min(max(sum(deltas), -20.0), 20.0))
    phi = w**k * math.exp(lam * (1 - w))
    return [-phi * a * x for x in log_probs], [-phi * a] * len(log_probs)


def gvpo(deltas, advantages, coef=0.1):
    """arXiv:2504.19599 for one group of lists: 1/(2 (G-1)) Σ_i (β (Δ_i - mean Δ) - A_i)², and its
    slope in Δ_i, mean included."""
    size = len(deltas)
    totals = [sum(d) for d in deltas]
    mean = sum(totals) / size
    misfits = [coef * (x - mean) - a for x, a in zip(totals, advantages, strict=True)]
    scale = 1 / max(size - 1, 1)
    slopes = [scale * coef * (m - sum(misfits) / size) for m in misfits]
    return scale / 2 * sum(m * m for m in misfits), slopes


# -- by batch: arrays [..., T] -> losses, slopes -----------------------------------------------


def covariances(log_probs, advantages, mask):
    """arXiv:2505.22617; -inf outside the mask."""
    places = [i for i in np.ndindex(mask.shape) if mask[i]]
    mean_a = sum(advantages[i] for i in places) / len(places)
    mean_p = sum(log_probs[i] for i in places) / len(places)
    out = np.full(mask.shape, -np.inf)
    for i in places:
        out[i] = (advantages[i] - mean_a) * (log_probs[i] - mean_p)
    return out


def clip_cov(deltas, log_probs, advantages, mask, draws, share=2e-4, low=1.0, high=5.0):
    """The smallest draws among the candidates are left out."""
    cov = covariances(log_probs, advantages, mask)
    losses, slopes, candidates = np.zeros(mask.shape), np.zeros(mask.shape), []
    for i in np.ndindex(mask.shape):
        if mask[i]:
            losses[i], slopes[i] = clipped(deltas[i], advantages[i])
            is_clipped = losses[i] > -math.exp(deltas[i]) * advantages[i]
            if low < cov[i] < high and not is_clipped:
                candidates.append((draws[i], i))
    for _, i in sorted(candidates)[: max(int(share * mask.sum()), 1)]:
        losses[i] = slopes[i] = 0.0
    return losses, slopes


def kl_cov(deltas, log_probs, advantages, mask, share=2e-4, coef=1.0):
    """A penalty on the largest covariances."""
    cov = covariances(log_probs, advantages, mask)
    losses, slopes = np.zeros(mask.shape), np.zeros(mask.shape)
    places = [i for i in np.ndindex(mask.shape) if mask[i]]
    for i in places:
        losses[i] = slopes[i] = -math.exp(deltas[i]) * advantages[i]
    for i in sorted(places, key=lambda i: -cov[i])[: max(int(share * len(places)), 1)]:
        losses[i] += coef * abs(deltas[i])
        slopes[i] += coef * np.sign(deltas[i])
    return losses, slopes


# -- KL: u = log(π / π_ref) -> value, slope ----------------------------------------------------


def k1(u):
    return u, 1.0


def k2(u):
    return u * u / 2, u


def k3(u):
    """DeepSeekMath equation 4."""
    return math.exp(-u) - 1 + u, 1 - math.exp(-u)


def ratio_corrected(u, delta, estimate):
    """DeepSeek-V3.2: the slope of a product, r' = r."""
    value, slope = estimate(u)
    r = math.exp(delta)
    return r * value, r * value + r * slope
