"""Lite PPO: two techniques and no more. arXiv:2508.08221, section 5."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import batch_advantages, ratios, surrogates, weights


def lite_ppo(*, clip_eps: float = 0.2) -> Objective:
    """The group's mean, the batch's standard deviation, and the mean over all tokens.

        J = 1/Σ_i |o_i| Σ_i Σ_t min(ρ A, clip(ρ, 1-ε, 1+ε) A)                  (section 4.3)
        A_{i,t} = (r_i - mean(r of its group)) / std(r of the batch)           (section 4.1)

    without KL; the loss is -J. https://arxiv.org/abs/2508.08221

    Args:
        clip_eps: ε, 0.2 in the paper's baseline.

    Choices: those of `ops.batch_advantages.batch_scaled`; the mean is over the tokens of all
    groups of an optimizer step.
    Run: G = 8, 128 prompts, learning rate 1e-6, temperature 0.99, for base models.

    >>> lite_ppo().advantages.__name__
    'batch_scaled'
    """
    return Objective(
        advantages=batch_advantages.batch_scaled,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=weights.token_mean,
    )
