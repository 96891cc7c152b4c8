"""Expectations over all groups of right and wrong completions: sums, no samples.

A completion is one token, right with probability p = sigmoid(logit). Groups of it show what a rule
of credit does to the gradient in expectation: E[∇J] = w(p) ∇p, and w is how much a question of
success rate p counts.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.ops import surrogates

# Off by more in float64 is another equation, not rounding.
EXACT = 1e-8


def all_groups(size):
    """Every group of rewards 0 and 1, [2^size, size]."""
    return np.array(list(itertools.product([0.0, 1.0], repeat=size)))


def groups_by_count(size):
    """One group for each number of successes, [size + 1, size]: enough where order is nothing."""
    return np.tri(size + 1, size, -1)


def chances(groups, rates):
    """Probability of each of N groups of independent completions, [R, N] for R success rates."""
    rates = np.asarray(rates)[:, None, None]
    return np.where(groups == 1, rates, 1 - rates).prod(axis=-1)


def chances_by_count(size, rates):
    """Probability of each number of successes, [R, size + 1] for R success rates in (0, 1)."""
    k = np.arange(size + 1)
    ways = [math.lgamma(size + 1) - math.lgamma(n + 1) - math.lgamma(size - n + 1) for n in k]
    rates = np.asarray(rates)[:, None]
    return np.exp(ways + k * np.log(rates) + (size - k) * np.log1p(-rates))


@jax.jit
def gradient_weights(advantages, groups, chances, rates):
    """w(p): the gradient of the expected objective in the logit, in units of that of p.

    Args:
        advantages: [N, G] float, of each group.
        groups: [N, G] float, 1 where the completion is right.
        chances: [R, N] float, of each group under each success rate.
        rates: [R] float, p.

    Returns:
        [R], by automatic differentiation of PPO's clipped surrogate where ρ = 1.
    """

    def objective(logit, chance):
        log_probs = jnp.where(groups == 1, jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit))
        losses = surrogates.clipped(log_probs - jax.lax.stop_gradient(log_probs), advantages)
        return -(chance * losses.mean(axis=-1)).sum()

    slopes = jax.vmap(jax.grad(objective))(jnp.log(rates) - jnp.log1p(-rates), chances)
    return slopes / (rates * (1 - rates))
