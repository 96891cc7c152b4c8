"""Per-token losses and whole objectives: plain loops, written from the equations alone."""

import math


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
