"""GMPO: the geometric mean over tokens. arXiv:2507.20673."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, sequence_surrogates, weights


def gmpo(*, clip_log_low: float = 0.4, clip_log_high: float = 0.4) -> Objective:
    """Geometric-Mean Policy Optimization: GRPO less moved by a token with a large ratio.

        J = 1/G Σ_i exp(1/|o_i| Σ_t δ'_{i,t}) A_i
        δ' = min(δ, clip(δ, -ε_low, ε_high)) for A > 0, max of the two for A < 0;   δ = log ρ

    The loss is -J. https://arxiv.org/abs/2507.20673

    Args:
        clip_log_low: in log space: ratios from e^-0.4.
        clip_log_high: ratios up to e^0.4.

    >>> gmpo().surrogate.keywords
    {'clip_log_low': 0.4, 'clip_log_high': 0.4}
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(
            sequence_surrogates.gmpo, clip_log_low=clip_log_low, clip_log_high=clip_log_high
        ),
        weights=weights.seq_mean_token_mean,
    )
