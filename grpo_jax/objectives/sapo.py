"""SAPO: a soft gate instead of a clip. arXiv:2511.20347."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, surrogates, weights


def sapo(*, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Objective:
    """Soft Adaptive Policy Optimization: the gradient fades as the ratio leaves 1.

        J = 1/G Σ_i 1/|o_i| Σ_t 4/τ σ(τ (ρ - 1)) A_i,   τ by the sign of A_i
        A_i = (r_i - mean(r)) / std(r)

    The loss is -J. https://arxiv.org/abs/2511.20347

    Args:
        tau_positive: τ for A > 0.
        tau_negative: τ for A < 0; larger, so that bad tokens fade sooner.

    At ρ = 1 the slope is 1, as for all of the family, but the value is 2A/τ: losses are not to be
    compared with GRPO's.

    >>> sapo().surrogate.keywords
    {'tau_positive': 1.0, 'tau_negative': 1.05}
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.sapo, tau_positive=tau_positive, tau_negative=tau_negative),
        weights=weights.seq_mean_token_mean,
    )
