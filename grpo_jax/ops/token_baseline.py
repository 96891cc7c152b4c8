"""A baseline for each token: the group's rewards, weighed by what each has to learn from."""

import jax
import jax.numpy as jnp

from grpo_jax.ops.precision import working_dtype
from grpo_jax.ops.returns import check_credit


def optimal_token_baseline(
    rewards: jax.Array, mask: jax.Array, old_log_probs: jax.Array, sum_sq_probs: jax.Array
) -> jax.Array:
    """Reward minus a baseline for each token that weighs completions by their gradient so far.

        A[.., i, t] = r[.., i] - B[.., t],   B[.., t] = Σ_i r_i W_it / Σ_i W_it
        W[.., i, t] = Σ_{s ≤ t} (1 - 2 π_is + Σ_v π_isv²)

    The term in W is the squared norm of the gradient of log π in the logits. The sums over i are
    over the completions of the group that have a token t.

    Args:
        rewards: [..., G] float, NaN where a completion has none.
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        old_log_probs: [..., G, T] float, log π of the policy that sampled.
        sum_sq_probs: [..., G, T] float, Σ_v π_v² over the vocabulary, of the same distribution.

    Returns:
        [..., G, T] in units of reward, float32 (float64 for float64 input). Exact zeros outside
        the mask, in a completion without a reward (it is in no baseline either), where all that
        reach a token have equal rewards, and so where only one does (G = 1 included).

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: The Optimal Token Baseline, arXiv:2602.07078.
    Choice: where no completion has any gradient yet (Σ W = 0: certain tokens only) B is the plain
    mean; volcengine/verl takes 0 there, and for G = 1 the reward itself as advantage. verl also
    starts with B = 0 where only the longest completion is left (`handle_zero_tail`); here such a
    token gets 0. Tokens are lined up by their index.

    >>> mask = jnp.ones([2, 1], bool)
    >>> old, squares = jnp.log(jnp.array([[0.5], [0.5]])), jnp.array([[0.5], [0.5]])
    >>> optimal_token_baseline(jnp.array([1.0, 0.0]), mask, old, squares).tolist()
    [[0.5], [-0.5]]
    """
    check_credit(rewards, mask, old_log_probs, sum_sq_probs)
    dtype = working_dtype(rewards, old_log_probs, sum_sq_probs)
    by_token = rewards.astype(dtype)[..., None]
    counted = mask & ~jnp.isnan(by_token)
    probs = jnp.exp(jnp.where(counted, old_log_probs, 0.0).astype(dtype))
    squares = jnp.where(counted, sum_sq_probs, 1.0).astype(dtype)
    # Never negative but for rounding; 0 where not counted.
    energy = jnp.maximum(1.0 - 2.0 * probs + squares, 0.0)
    weight = jnp.where(counted, jnp.cumsum(energy, axis=-1), 0.0)
    none = weight.sum(axis=-2, keepdims=True) == 0
    weight = jnp.where(none, counted.astype(dtype), weight)
    total = weight.sum(axis=-2, keepdims=True)
    share = weight / jnp.where(total > 0, total, 1.0)
    # From the lowest of those that are there: equal rewards leave no rounded mean behind.
    lowest = jnp.where(counted, by_token, jnp.inf).min(axis=-2, keepdims=True)
    shifted = jnp.where(counted, by_token - lowest, 0.0)
    return jnp.where(counted, shifted - (share * shifted).sum(axis=-2, keepdims=True), 0.0)
