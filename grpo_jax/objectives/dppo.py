"""DPPO: a trust region of probabilities instead of ratios. arXiv:2602.04879, sections 4 and 5."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, divergence_masks, weights


def dppo_tv(*, eps: float = 0.2, max_ratio: float = 5.0) -> Objective:
    """Divergence PPO with the binary total variation.

        J = 1/G Σ_i Σ_t sg(M min(ρ, C)) A_i log π(o_{i,t})                     (equation 23)
        M = 0 where π moves away from μ for A_i's sake and |π - μ| > δ, else 1 (equations 12, 13)
        ρ = π/μ,   A_i = r_i - mean(r)

    averaged over prompts, without KL; the loss is -J. μ is the sampler: the paper finds that an
    anchor computed again by the trainer collapses. https://arxiv.org/abs/2602.04879

    Args:
        eps: δ, a difference of probabilities (appendix E).
        max_ratio: C.

    Choice: the sum over a completion's tokens, as printed.
    Run: G = 16, 256 prompts, 8 updates a step, temperature 1, learning rate 1e-6.

    >>> dppo_tv().surrogate.keywords["eps_high"]
    0.2
    """
    return Objective(
        advantages=advantages.group_center,
        log_ratio=None,
        surrogate=partial(divergence_masks.dppo_tv, eps_low=eps, eps_high=eps, max_ratio=max_ratio),
        weights=partial(weights.seq_mean_token_sum, constant=1),
        sampler_anchor=True,
    )


def dppo_kl(*, eps: float = 0.05, max_ratio: float = 5.0) -> Objective:
    """Divergence PPO with the binary KL.

        M = 0 where π moves away from μ for A_i's sake and KL(Bern(μ) || Bern(π)) > δ, else 1

    (equation 14); all else as in `dppo_tv`. https://arxiv.org/abs/2602.04879

    Args:
        eps: δ in nats (appendix E).
        max_ratio: C.

    >>> dppo_kl().surrogate.keywords["eps_high"]
    0.05
    """
    by_difference = dppo_tv(max_ratio=max_ratio)
    surrogate = partial(divergence_masks.dppo_kl, eps_low=eps, eps_high=eps, max_ratio=max_ratio)
    return dataclasses.replace(by_difference, surrogate=surrogate)
