"""OTB: the baseline of least variance, token by token. arXiv:2602.07078."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import ratios, surrogates, token_baseline, weights


def otb(*, clip_eps: float = 0.2) -> Objective:
    """Optimal Token Baseline: the group's rewards weighed by the energy of their scores so far.

        A_{i,t} = r_i - Σ_j r_j W_{j,t} / Σ_j W_{j,t},   W_{j,t} = Σ_{s ≤ t} (1 - 2π + Σ_v π_v²)

    over the completions j of the group that reach token t, in PPO's clipped loss with the mean over
    all tokens. https://arxiv.org/abs/2602.07078

    Args:
        clip_eps: ε, PPO's.

    Choices: clip and mean are those of common practice, the paper is about the credit; those of
    `ops.token_baseline.optimal_token_baseline`.

    >>> sorted(otb().needs)
    ['old_log_probs', 'sum_sq_probs']
    """
    return Objective(
        advantages=token_baseline.optimal_token_baseline,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=weights.token_mean,
    )
