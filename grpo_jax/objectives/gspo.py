"""GSPO: one ratio for a sequence. arXiv:2507.18071, section 4."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, surrogates, weights


def gspo(*, clip_eps_low: float = 3e-4, clip_eps_high: float = 4e-4) -> Objective:
    """Group Sequence Policy Optimization: GRPO with the geometric mean of a sequence's ratios.

        J = 1/G Σ_i min(s_i A_i, clip(s_i, 1-ε_low, 1+ε_high) A_i)             (equation 5)
        s_i = exp(1/|o_i| Σ_t log(π/π_old)),   A_i = (r_i - mean(r)) / std(r)  (section 4.1)

    without KL; the loss is -J. https://arxiv.org/abs/2507.18071

    Args:
        clip_eps_low: the paper's 3e-4 (section 5.1): a mean of logarithms moves little.
        clip_eps_high: the paper's 4e-4.

    On-policy (one update a step) its gradient is GRPO's; it takes several to differ. The sequence's
    ratio has 1/|o_i| in it: weights that sum over tokens are refused (see `luspo`).
    Run: 4 mini-batches a step.

    >>> gspo().surrogate.keywords
    {'clip_eps_low': 0.0003, 'clip_eps_high': 0.0004}
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.sequence,
        surrogate=partial(
            surrogates.clipped, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high
        ),
        weights=weights.seq_mean_token_mean,
    )


def gspo_token(*, clip_eps_low: float = 3e-4, clip_eps_high: float = 4e-4) -> Objective:
    """GSPO-token: GSPO's value and gradient, with room for advantages that differ by token.

        J = 1/G Σ_i 1/|o_i| Σ_t min(s_{i,t} A_{i,t}, clip(s_{i,t}, 1-ε_low, 1+ε_high) A_{i,t})
        s_{i,t} = sg(s_i) π / sg(π)                                      (equations 13 and 14)

    https://arxiv.org/abs/2507.18071, section 4.3. Arguments as for `gspo`.

    >>> gspo_token().log_ratio.__name__
    'sequence_token'
    """
    sequence = gspo(clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)
    return dataclasses.replace(sequence, log_ratio=ratios.sequence_token)
