"""RLOO: REINFORCE with a leave-one-out baseline. arXiv:2402.14740, section 2.3."""

from functools import partial

import jax

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, kl, returns, surrogates, weights


def rloo(*, kl_coef: float = 0.03) -> Objective:
    """Each completion's reward against the mean of the others; the completion is one action.

        J = 1/G Σ_i A_i log π(o_i),   A_i = R_i - 1/(G-1) Σ_{j≠i} R_j
        R_i = r_i - β log(π_old(o_i)/π_ref(o_i))

    averaged over prompts, with A_i held fixed; the loss is -J. https://arxiv.org/abs/2402.14740

    Args:
        kl_coef: β. The KL is in the reward, of the whole completion (equation 3).

    There is no ratio and no clip: after a first update it is off-policy, and does not correct it.
    Run: G = 2 or 4, two updates a step, learning rate 1e-6; β = 0.03 for summaries, 0.1 for
    dialogue (appendix C).

    >>> rloo().kl_in_reward, rloo().kl_coef
    (True, 0.03)
    """
    return Objective(
        advantages=credit,
        log_ratio=None,
        surrogate=surrogates.policy_gradient,
        # log π(o_i) is the sum over its tokens.
        weights=partial(weights.seq_mean_token_sum, constant=1),
        kl=kl.k1,
        kl_coef=kl_coef,
        kl_in_reward=kl_coef > 0,
    )


def credit(
    rewards: jax.Array, mask: jax.Array, token_penalty: jax.Array | None = None
) -> jax.Array:
    """R_i less the mean of the others, R_i the reward less its completion's penalty; [..., G]."""
    if token_penalty is not None:
        rewards = returns.penalized(rewards, mask, token_penalty)
    return advantages.leave_one_out(rewards)
