"""ReMax: REINFORCE against the greedy completion. arXiv:2310.10505, algorithm 1."""

from functools import partial

import jax

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, kl, returns, surrogates, weights


def remax(*, kl_coef: float = 0.05) -> Objective:
    """Each completion's reward against that of the prompt's greedy completion.

        J = 1/G Σ_i Σ_t A_{i,t} log π(o_{i,t})
        A_{i,t} = r_i - r(greedy) - β Σ_{s ≥ t} k1_{i,s}

    averaged over prompts, with A held fixed; the loss is -J. https://arxiv.org/abs/2310.10505

    Args:
        kl_coef: β, that of the authors' script for Llama-2-7B. The KL is in the reward, and not in
            that of the greedy completion.

    A group of one is enough. Choices: the KL of a token and of all behind it, which is the gradient
    of the penalised reward; the authors' code takes that of the token alone. Log-probabilities are
    summed over a completion, as in the paper; the code takes the mean over all tokens, discounts
    rewards by 0.99 a token, and clamps differences to ±5.
    Run: one completion, one update a step, temperature 1, learning rate 1e-6, 256 tokens.

    >>> sorted(remax().needs)
    ['greedy_rewards', 'old_log_probs']
    """
    return Objective(
        advantages=credit,
        log_ratio=None,
        surrogate=surrogates.policy_gradient,
        weights=partial(weights.seq_mean_token_sum, constant=1),
        kl=kl.k1,
        kl_coef=kl_coef,
        kl_in_reward=kl_coef > 0,
    )


def credit(
    rewards: jax.Array,
    greedy_rewards: jax.Array,
    mask: jax.Array,
    token_penalty: jax.Array | None = None,
) -> jax.Array:
    """The reward less the greedy one, less penalties to go; [..., G], or [..., G, T] with them."""
    outcome = advantages.greedy_baseline(rewards, greedy_rewards)
    if token_penalty is None:
        return outcome
    return returns.kl_to_go(outcome[..., None], mask, token_penalty)
