"""DeepSeek-R1's GRPO. arXiv:2501.12948; Nature 2025, s41586-025-09422-z, methods."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.grpo import grpo
from grpo_jax.ops import references


def deepseek_r1(
    *, clip_eps: float = 10.0, kl_coef: float = 0.001, refresh_every: int = 400
) -> Objective:
    """GRPO with a very wide clip, a small KL, and a reference that follows the policy.

        J = 1/G Σ_i 1/|o_i| Σ_t [ min(ρ A, clip(ρ, 1-ε, 1+ε) A) - β k3 ]
        π_ref ← π every 400 steps

    https://arxiv.org/abs/2501.12948; the numbers are from the Nature article's methods.

    Args:
        clip_eps: ε, 10 there: with the lower bound below 0 there is no lower clip at all.
        kl_coef: β.
        refresh_every: steps between replacements of the reference by the policy.

    Choice: both papers print the ratio of whole sequences and no 1/|o_i|; here it is DeepSeekMath's
    token form, which is what systems that cite them run.
    Run: G = 16, 32 questions a step, temperature 1, learning rate 3e-6, 32768 tokens, one epoch of
    16 mini-batches over 8192 completions. Rewards: accuracy and format, and language consistency.

    >>> deepseek_r1().reference.keywords
    {'every': 400}
    """
    return dataclasses.replace(
        grpo(clip_eps=clip_eps, kl_coef=kl_coef),
        reference=partial(references.refresh, every=refresh_every),
    )
