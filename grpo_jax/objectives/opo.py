"""OPO: on-policy RL with the optimal baseline. arXiv:2505.23585, section 3."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, surrogates, weights


def opo() -> Objective:
    """Exactly on-policy, with the reward's mean over tokens as the baseline.

        J = 1/G Σ_i A_i log π(o_i),   A_i = r_i - Σ_j |o_j| r_j / Σ_j |o_j|

    averaged over prompts, with A held fixed, without KL or entropy; the loss is -J.
    https://arxiv.org/abs/2505.23585

    There is no ratio: take one update a step. Choice: the sum over a completion's tokens, for which
    the baseline is derived (the variance of its score grows with its length); the authors' code
    leaves the mean over all tokens that its framework starts from.

    >>> opo().advantages.__name__
    'opo'
    """
    return Objective(
        advantages=advantages.opo,
        log_ratio=None,
        surrogate=surrogates.policy_gradient,
        weights=partial(weights.seq_mean_token_sum, constant=1),
    )
