"""GVPO: rewards as a regression target. arXiv:2504.19599."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, regression, weights


def gvpo(*, coef: float = 0.1) -> Objective:
    """Group Variance Policy Optimization: implicit rewards meet real ones, both centred.

        L = 1/2 1/(G-1) Σ_i ((R_i - mean(R)) - (r_i - mean(r)))²,   R_i = β log(π(o_i)/π_old(o_i))

    averaged over prompts. The KL to the policy that sampled is in it. There is no ratio and no
    clip. https://arxiv.org/abs/2504.19599

    Args:
        coef: β, in units of reward per nat.

    Choice: prompts are weighed by their completions that have a token; with full groups, equally.
    Run: G = 4, 1024 prompts, 4 updates a step, learning rate 1e-6 (the authors' script).

    >>> gvpo().surrogate.keywords
    {'coef': 0.1}
    """
    return Objective(
        advantages=advantages.group_center,
        log_ratio=None,
        surrogate=partial(regression.gvpo, coef=coef),
        weights=weights.seq_mean_token_mean,
    )
