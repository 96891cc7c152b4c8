"""MaxRL: maximum likelihood of success. arXiv:2602.02710, algorithm 1."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, surrogates, weights


def max_rl(*, clip_eps: float = 0.2) -> Objective:
    """Rewards of 0 and 1 in units of their mean: the gradient of log p, cut off at order G - 1.

        J = 1/G Σ_i Σ_t min(ρ A, clip(ρ, 1-ε, 1+ε) A)
        A_{i,t} = (r_i - mean(r)) / mean(r),   0 in a group without success

    averaged over prompts, without KL; the loss is -J. https://arxiv.org/abs/2602.02710

    Args:
        clip_eps: ε of the authors' script, where one update a step keeps ρ at 1.

    Choice: the sum over a completion's tokens, which the theorems are about; the script takes the
    mean over all tokens.
    Run: G = 16, 256 prompts, one update a step, learning rate 1e-6.

    >>> max_rl().advantages.__name__
    'max_rl'
    """
    return Objective(
        advantages=advantages.max_rl,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=partial(weights.seq_mean_token_sum, constant=1),
    )
