"""Plain loops in float64, written from the papers' equations and from nothing else."""

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


def clipped_term(ratio, advantage, low, high):
    """min(ρ A, clip(ρ, 1-ε, 1+ε) A), to be maximised; PPO equation 7."""
    bounded = min(max(ratio, 1 - low), 1 + high)
    return min(ratio * advantage, bounded * advantage)


def k3(log_prob, ref_log_prob):
    """DeepSeekMath equation 4."""
    ratio = math.exp(ref_log_prob - log_prob)
    return ratio - math.log(ratio) - 1


def grpo_loss(log_probs, old, ref, mask, advantages, *, clip_eps=0.2, kl_coef=0.04):
    """-J of DeepSeekMath equation 3: mean over prompts and completions of the mean over tokens."""
    prompts, group_size, num_tokens = mask.shape
    total = 0.0
    for p in range(prompts):
        for g in range(group_size):
            terms = []
            for t in range(num_tokens):
                if mask[p, g, t]:
                    ratio = math.exp(log_probs[p, g, t] - old[p, g, t])
                    term = clipped_term(ratio, advantages[p, g], clip_eps, clip_eps)
                    if kl_coef:
                        term -= kl_coef * k3(log_probs[p, g, t], ref[p, g, t])
                    terms.append(term)
            total += sum(terms) / len(terms)
    return -total / (prompts * group_size)


def dr_grpo_loss(log_probs, old, mask, advantages, *, budget, clip_eps=0.2):
    """-J of Dr. GRPO: the sum over tokens over one constant, mean over completions."""
    prompts, group_size, num_tokens = mask.shape
    total = 0.0
    for p in range(prompts):
        for g in range(group_size):
            for t in range(num_tokens):
                if mask[p, g, t]:
                    ratio = math.exp(log_probs[p, g, t] - old[p, g, t])
                    total += clipped_term(ratio, advantages[p, g], clip_eps, clip_eps) / budget
    return -total / (prompts * group_size)


def slope(f, x, index, step=1e-6):
    """Central difference of a scalar function in one entry of its argument."""
    up, down = x.copy(), x.copy()
    up[index] += step
    down[index] -= step
    return (f(up) - f(down)) / (2 * step)


def nucleus(probs, top_p):
    """Tokens of the smallest set of likeliest tokens with at least top_p; ties with the last in."""
    order = sorted(range(len(probs)), key=lambda v: -probs[v])
    total, kept = 0.0, []
    for v in order:
        if total >= top_p and probs[v] < probs[kept[-1]]:
            break
        kept.append(v)
        total += probs[v]
    return set(kept)
