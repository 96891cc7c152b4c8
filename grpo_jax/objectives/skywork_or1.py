"""Skywork-OR1 (MAGIC): entropy held at a target. arXiv:2505.22312, section 3."""

import math
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, controllers, ratios, selection, surrogates, weights


def skywork_or1(
    *,
    clip_eps: float = 0.2,
    target_entropy: float = 0.2,
    entropy_coef: float = 0.0,
    entropy_coef_step: float = 0.005,
) -> Objective:
    """GRPO over groups with a signal, and an entropy bonus that acts only below a target.

        J = 1/T Σ_i Σ_t [ min(ρ A, clip(ρ, 1-ε, 1+ε) A) + α_k H_t ]            (equation 3.1)
        A_i = (r_i - mean(r)) / std(r),   T the tokens of groups with a signal
        c_{k+1} = c_k ± Δ as H is below the target or not,   α_k = c_k where H ≤ target, else 0

    without KL; the loss is -J. https://arxiv.org/abs/2505.22312

    Args:
        clip_eps: ε.
        target_entropy: nats a token (section 3.2.5).
        entropy_coef: c of the first step, 0 (equation 3.2).
        entropy_coef_step: Δ.

    α follows the entropy measured in the step before. Run: on-policy, temperature 1, learning rate
    1e-6, G = 16 and later 32.

    >>> [rule.__name__ for rule in skywork_or1().select]
    ['signal_groups']
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=weights.token_mean,
        select=(selection.signal_groups,),
        entropy_coef=entropy_coef,
        entropy_controller=partial(
            controllers.adaptive_entropy_coef,
            target=target_entropy,
            step=entropy_coef_step,
            low=-math.inf,  # the rule as printed has no floor
        ),
        entropy_gate=partial(controllers.active_entropy_coef, target=target_entropy),
    )
