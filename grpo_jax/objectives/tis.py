"""TIS: truncated importance sampling for a sampler that is not the trainer. Yao et al., 2025."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.grpo import grpo
from grpo_jax.ops import corrections


def tis(*, max_ratio: float = 2.0, clip_eps: float = 0.2, kl_coef: float = 0.0) -> Objective:
    """GRPO times what the sampler got wrong, cut off from above.

        J = 1/G Σ_i 1/|o_i| Σ_t [ sg(min(π_old/μ, C)) min(ρ A, clip(ρ, 1-ε, 1+ε) A) - β k3 ]

    with μ as the sampler reported it and ρ = π/π_old; all else as in `grpo`. F. Yao et al., "Your
    efficient RL framework secretly brings you off-policy RL training", blog, August 2025.

    Args:
        max_ratio: C. The text leaves it open; 2 is what slime and verl start from.
        clip_eps: ε.
        kl_coef: β.

    Any objective with an anchor of its own takes the same correction.

    >>> tis(max_ratio=3.0).corrections[0].keywords
    {'max_ratio': 3.0}
    """
    return dataclasses.replace(
        grpo(clip_eps=clip_eps, kl_coef=kl_coef),
        corrections=(partial(corrections.truncated, max_ratio=max_ratio),),
    )
