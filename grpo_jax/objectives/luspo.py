"""LUSPO: GSPO without its bias towards short responses. arXiv:2602.05261."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, surrogates, weights


def luspo(*, clip_eps_low: float = 2e-3, clip_eps_high: float = 2.5e-3) -> Objective:
    """Length-Unbiased Sequence Policy Optimization: GSPO times the length of each sequence.

        J = 1/G Σ_i |o_i| min(s_i A_i, clip(s_i, 1-ε_low, 1+ε_high) A_i)

    with s_i and A_i as in `gspo`; the loss is -J. https://arxiv.org/abs/2602.05261

    Args:
        clip_eps_low: 2e-3.
        clip_eps_high: 2.5e-3.

    The loss grows with the length: a learning rate that was right for GSPO is too large without a
    bound on the gradient's norm.

    >>> luspo().weights.keywords, luspo().length_weighted
    ({'constant': 1}, True)
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.sequence,
        surrogate=partial(
            surrogates.clipped, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high
        ),
        weights=partial(weights.seq_mean_token_sum, constant=1),
        length_weighted=True,
    )
