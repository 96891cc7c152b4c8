"""BNPO: rewards normalised by a Beta density. arXiv:2506.02864."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import batch_advantages, ratios, surrogates, weights


def bnpo(*, clip_eps_low: float = 0.2, clip_eps_high: float = 0.28) -> Objective:
    """Beta Normalization Policy Optimization, for rewards of 0 and 1.

        J = 1/G Σ_i Σ_t min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)
        A_{i,t} = (r_i - p) / f(p; α, β),   p = mean(r)

    with f the Beta density whose parameters follow the pass rates of the batch's prompts
    (`ops.batch_advantages.beta_normalize`). The paper is REINFORCE with that advantage; clip and
    sum over tokens are those of the authors' code, where one update a step keeps ρ at 1.
    https://arxiv.org/abs/2506.02864

    Args:
        clip_eps_low: of the authors' script.
        clip_eps_high: of the authors' script.

    TRL's loss of the same name is something else: the mean over the tokens of each micro-batch
    (`weights.token_mean_of_parts`).
    Run: G = 16, 32 prompts, one update a step, temperature 1, learning rate 1e-6.

    >>> bnpo().advantages.__name__
    'beta_normalize'
    """
    return Objective(
        advantages=batch_advantages.beta_normalize,
        log_ratio=ratios.token,
        surrogate=partial(
            surrogates.clipped, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high
        ),
        weights=partial(weights.seq_mean_token_sum, constant=1),
    )
