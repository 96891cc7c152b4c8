"""PKPO: the best of k completions is what counts. arXiv:2505.15201."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import pass_at_k, surrogates, weights


def pkpo(*, k: int) -> Objective:
    """Pass-at-k Policy Optimization: an unbiased gradient of the expected best of k, from G.

        J = Σ_i s_i log π(o_i),   s_i = 1/C(G, k) Σ_{I ∋ i, |I| = k} (max r_I - max r_{I \\ i})

    averaged over prompts, with s held fixed (equation 33); the loss is -J.
    https://arxiv.org/abs/2505.15201

    Args:
        k: completions of which the best counts, at most G. The paper tries 1, 4 and 8 of 16.

    Choices: those of `ops.pass_at_k.pass_at_k`; with weights that are a mean over the group, the
    advantages are G times s. A completion without a token has no weight, and its prompt so much
    less.

    >>> pkpo(k=4).advantages.keywords
    {'k': 4}
    """
    return Objective(
        advantages=partial(pass_at_k.pass_at_k, k=k),
        log_ratio=None,
        surrogate=surrogates.policy_gradient,
        weights=partial(weights.seq_mean_token_sum, constant=1),
    )
