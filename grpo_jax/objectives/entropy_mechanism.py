"""Clip-Cov and KL-Cov: entropy kept where covariance is high. arXiv:2505.22617, section 4."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, covariance, ratios, weights


def clip_cov(
    *,
    clip_share: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    clip_eps: float = 0.2,
) -> Objective:
    """GRPO that leaves out a few tokens whose probability and advantage move together.

        J = mean over tokens of min(ρ A, clip(ρ, 1-ε, 1+ε) A), 0 on the tokens left out
        cov_t = (A_t - mean(A)) (log π_t - mean(log π))                        (equation 10)

    Left out is a random share of the tokens with cov_low < cov < cov_high (equations 11 and 12).
    The loss is -J. https://arxiv.org/abs/2505.22617

    Args:
        clip_share: of all tokens.
        cov_low, cov_high: the interval that they are drawn from.
        clip_eps: ε, not printed.

    Left out: the paper drops groups that are all right or all wrong (`selection.signal_groups`).
    Choice: tokens that the clip holds already are not drawn, as in the authors' code; the interval
    is open. Means are over all tokens of an update: micro-batches are refused.
    Run: G = 8, 256 prompts, 8 updates a step, temperature 1.

    >>> clip_cov(clip_eps=0.3).of_the_whole_step
    True
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(
            covariance.clip_cov,
            share=clip_share,
            cov_low=cov_low,
            cov_high=cov_high,
            clip_eps_low=clip_eps,
            clip_eps_high=clip_eps,
        ),
        weights=weights.token_mean,
    )


def kl_cov(*, kl_share: float = 2e-4, coef: float = 1.0) -> Objective:
    """GRPO without a clip that holds back the tokens of highest covariance.

        J = mean over tokens of ρ A, less β |log ρ| on the tokens held back    (equations 13, 14)

    with `cov` as in `clip_cov`; the loss is -J. https://arxiv.org/abs/2505.22617

    Args:
        kl_share: of all tokens; 2e-4 for the 32B model, 2e-3 for the 7B.
        coef: β.

    >>> kl_cov(kl_share=2e-3).surrogate.keywords
    {'share': 0.002, 'coef': 1.0}
    """
    return dataclasses.replace(
        clip_cov(), surrogate=partial(covariance.kl_cov, share=kl_share, coef=coef)
    )
