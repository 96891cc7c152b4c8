"""CISPO: the ratio is clipped, not the gradient. MiniMax-M1, arXiv:2506.13585, section 3.1."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, surrogates, weights


def cispo(*, max_ratio: float = 5.0, min_ratio: float = 0.0) -> Objective:
    """Clipped Importance Sampling Policy Optimization: every token keeps a gradient.

        J = 1/Σ_i |o_i| Σ_i Σ_t sg(clip(ρ, min_ratio, max_ratio)) A_i log π    (equations 4 and 5)
        A_i = (r_i - mean(r)) / std(r)

    without KL; the loss is -J. https://arxiv.org/abs/2506.13585

    Args:
        max_ratio: 1 + ε_high, a bound on the ratio itself. The paper tunes it and does not publish
            it; 5 is ScaleRL's (arXiv:2510.13786).
        min_ratio: 1 - ε_low; 0 is no lower bound, as in the paper's experiments.

    Left out: DAPO's dynamic sampling and punishment of length, which the paper uses beside it.
    Choice: the equation is written for one prompt; the mean is over the tokens of all groups of an
    optimizer step (`weights.prompt_mean` is the other reading).

    >>> cispo().surrogate.keywords
    {'max_ratio': 5.0, 'min_ratio': 0.0}
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.cispo, max_ratio=max_ratio, min_ratio=min_ratio),
        weights=weights.token_mean,
    )
