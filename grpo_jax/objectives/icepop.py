"""IcePop: tokens on which sampler and trainer disagree are left out. arXiv:2510.18855."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.grpo import grpo
from grpo_jax.ops import corrections


def icepop(
    *,
    min_ratio: float = 0.5,
    max_ratio: float = 5.0,
    clip_eps: float = 0.2,
    kl_coef: float = 0.0,
) -> Objective:
    """GRPO with a two-sided mask on the mismatch of sampler and trainer.

        J = 1/G Σ_i 1/|o_i| Σ_t [ M(π_old/μ) min(ρ A, clip(ρ, 1-ε, 1+ε) A) - γ k3 ]  (equation 1)
        M(x) = x where α ≤ x ≤ β, else 0                                             (equation 2)

    with μ as the sampler reported it and ρ = π/π_old; all else as in `grpo`. Tokens left out still
    count in |o_i|. https://arxiv.org/abs/2510.18855, section 2.3.2

    Args:
        min_ratio: α. Paper and blog leave both open; 0.5 and 5 are what verl starts from.
        max_ratio: β.
        clip_eps: ε.
        kl_coef: γ, not published.

    >>> icepop().corrections[0].keywords
    {'min_ratio': 0.5, 'max_ratio': 5.0}
    """
    masked = partial(corrections.masked, min_ratio=min_ratio, max_ratio=max_ratio)
    return dataclasses.replace(grpo(clip_eps=clip_eps, kl_coef=kl_coef), corrections=(masked,))
