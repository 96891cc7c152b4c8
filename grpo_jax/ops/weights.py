"""How much each token counts: the mask of all that one optimizer step sees -> token weights.

The loss is `sum(weights * per_token_loss)`. Weights come from the whole batch's mask before it is
cut into micro-batches or shards, so that the parts add up to the whole exactly. Each function is
named by what it divides by. All leading axes are completions (prompts and group members alike).
"""

import chex
import jax
import jax.numpy as jnp


def seq_mean_token_mean(mask: jax.Array) -> jax.Array:
    """Mean over completions of the mean over their tokens: w = m / (L_i · B).

    Args:
        mask: [..., T] bool, True on the tokens that the policy chose.

    Returns:
        [..., T] float32. L_i counts the completion's tokens, B the completions with at least one.
        They sum to 1, or to 0 when no token counts.

    Raises:
        AssertionError: while tracing, unless `mask` is a bool array.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 3 (1/G Σ_i 1/|o_i| Σ_t, mean over prompts).
    Choice: a completion without a counting token (a padded row) is left out of B.

    >>> seq_mean_token_mean(jnp.array([[[True, True], [True, False]]])).tolist()
    [[[0.25, 0.25], [0.5, 0.0]]]
    """
    chex.assert_type(mask, bool)
    lengths = mask.sum(axis=-1, keepdims=True)
    completions = (lengths > 0).sum()
    # The two divisors apart: their product may leave the range of int32.
    return mask.astype(jnp.float32) / jnp.maximum(lengths, 1) / jnp.maximum(completions, 1)


def seq_mean_token_sum(mask: jax.Array, *, constant: float) -> jax.Array:
    """Mean over completions of the sum over their tokens, by one constant: w = m / (constant · B).

    Args:
        mask: [..., T] bool, True on the tokens that the policy chose.
        constant: in tokens; fixed for the whole run (the longest completion allowed), never the
            padded width of a batch.

    Returns:
        [..., T] float32. B counts the completions with at least one token.

    Raises:
        AssertionError: while tracing, unless `mask` is a bool array.
        ValueError: `constant` is not positive.

    Reference: Dr. GRPO, arXiv:2503.20783, section 3.2 and appendix (the constant is the generation
    budget).

    >>> seq_mean_token_sum(jnp.array([[[True, True], [True, False]]]), constant=4).tolist()
    [[[0.125, 0.125], [0.125, 0.0]]]
    """
    chex.assert_type(mask, bool)
    if not constant > 0:
        raise ValueError(f"constant is {constant}; it counts tokens: give the completion limit")
    completions = mask.any(axis=-1).sum()
    return mask.astype(jnp.float32) / constant / jnp.maximum(completions, 1)
