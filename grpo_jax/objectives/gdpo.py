"""GDPO: each reward function normalised by itself. arXiv:2601.05242, section 3."""

import dataclasses

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.grpo import grpo
from grpo_jax.ops import batch_advantages


def gdpo(*, clip_eps: float = 0.2) -> Objective:
    """Group reward-Decoupled Normalization Policy Optimization, for several reward functions.

        a_i = Σ_k w_k (r_i^k - mean(r^k)) / std(r^k)   over the group          (equations 4, 5, 7)
        A_i = (a_i - mean(a)) / (std(a) + eps)         over the batch          (equation 6)

    all else as in `grpo` without KL. https://arxiv.org/abs/2601.05242

    Args:
        clip_eps: ε; the paper keeps that of its framework, 0.2.

    `prepare` wants the rewards of each function, [P, G, K], and takes `reward_weights`. Choices:
    those of `ops.batch_advantages.gdpo`; the paper does not discuss the mean over tokens, its code
    takes that over all of them.
    Run: G = 4, 512 prompts, 4 updates a step, learning rate 1e-6.

    >>> sorted(gdpo().needs)
    ['rewards_by_function']
    """
    return dataclasses.replace(
        grpo(clip_eps=clip_eps, kl_coef=0.0), advantages=batch_advantages.gdpo
    )
