"""Decoupled PPO: one policy sampled, another is stayed close to. arXiv:2110.00641, 2505.24298."""

import math
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, corrections, ratios, surrogates, weights


def decoupled_ppo(*, clip_eps: float = 0.2) -> Objective:
    """PPO whose proximal policy is not the one that sampled, as in AReaL's asynchronous training.

        J = 1/Σ_i |o_i| Σ_i Σ_t π_old/μ min(ρ A, clip(ρ, 1-ε, 1+ε) A)          (equation 5)
        ρ = π/π_old,   A_i = (r_i - mean(r)) / std(r)

    with π_old the policy before the updates of this step, computed then, and μ the (older) sampler;
    without KL; the loss is -J. https://arxiv.org/abs/2505.24298; J. Hilton et al.,
    https://arxiv.org/abs/2110.00641

    Args:
        clip_eps: ε.

    Choices: the mean is over all tokens of the batch, as in AReaL (the equation has a sum); credit
    is GRPO's (the paper's is a reward of ±5 on the last token); the weight π_old/μ has no bound, as
    printed, where AReaL can leave out tokens above one (`corrections.masked`).

    >>> [rule.func.__name__ for rule in decoupled_ppo().corrections]
    ['truncated']
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        corrections=(partial(corrections.truncated, max_ratio=math.inf),),
        weights=weights.token_mean,
    )
