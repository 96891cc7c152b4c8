"""How much each token counts: the mask of all that one optimizer step sees -> token weights.

The loss is `sum(weights * per_token_loss)`. Weights come from the whole batch's mask before it is
cut into micro-batches or shards, so that the parts add up to the whole exactly. Each function is
named by what it divides by, and sums over all axes. A mask has no precision to keep, so weights
come in JAX's default float: float32, and float64 under `jax.enable_x64`. Tokens are counted in
int32 (fewer than 2^31 a step); divisors are divided by one after the other, because their product
may leave that range.
"""

import chex
import jax
import jax.numpy as jnp


def seq_mean_token_mean(mask: jax.Array) -> jax.Array:
    """Mean over completions of the mean over their tokens: w = m / (L_i · B).

    Args:
        mask: [..., T] bool, True on the tokens that the policy chose.

    Returns:
        [..., T] weights. L_i counts the completion's tokens, B the completions with at least one.
        They sum to 1, or to 0 when no token counts.

    Raises:
        AssertionError: while tracing, unless `mask` is a bool array.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 3 (1/G Σ_i 1/|o_i| Σ_t, mean over prompts).
    Choice: a completion without a counting token (a padded row, or one that selection left out) is
    left out of B; huggingface/trl counts it.

    >>> seq_mean_token_mean(jnp.array([[[True, True], [True, False]]])).tolist()
    [[[0.25, 0.25], [0.5, 0.0]]]
    """
    chex.assert_type(mask, bool)
    lengths = mask.sum(axis=-1, keepdims=True)
    completions = (lengths > 0).sum()
    return _ones(mask) / jnp.maximum(lengths, 1) / jnp.maximum(completions, 1)


def seq_mean_token_sum(mask: jax.Array, *, constant: float) -> jax.Array:
    """Mean over completions of the sum over their tokens, by one constant: w = m / (constant · B).

    Args:
        mask: [..., T] bool, True on the tokens that the policy chose.
        constant: in tokens; fixed for the whole run (the longest completion allowed), never the
            padded width of a batch.

    Returns:
        [..., T] weights. B counts the completions with at least one token.

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
    return _ones(mask) / constant / jnp.maximum(completions, 1)


def token_mean(mask: jax.Array) -> jax.Array:
    """Mean over all tokens of the optimizer step: w = m / Σ_i L_i.

    Args:
        mask: [..., T] bool, True on the tokens that the policy chose.

    Returns:
        [..., T] weights, the same for every token. They sum to 1, or to 0 when no token counts.

    Raises:
        AssertionError: while tracing, unless `mask` is a bool array.

    Reference: DAPO, arXiv:2503.14476, equation 8 (1 / Σ_i |o_i|).
    Choice: the paper divides by the tokens of one prompt's group, inside the expectation over
    prompts, which is `prompt_mean`; its training code and others divide by the tokens of the whole
    batch, as here, so that a prompt weighs as much as its completions are long.

    >>> token_mean(jnp.array([[[True, True], [True, True]], [[True, False], [False, False]]]))[0, 0]
    Array([0.2, 0.2], dtype=float32)
    """
    chex.assert_type(mask, bool)
    return _ones(mask) / jnp.maximum(mask.sum(), 1)


def token_mean_of_parts(mask: jax.Array, *, num_parts: int) -> jax.Array:
    """Mean over parts of the mean over their tokens: w = m / (tokens of its part · num_parts).

    What averaging the token means of micro-batches computes. The result depends on how the batch is
    cut: a token in a part of short completions weighs more.

    Args:
        mask: [P, ..., T] bool, True on the tokens that the policy chose.
        num_parts: the first axis is cut into this many equal runs of neighbours.

    Returns:
        [P, ..., T] weights. They sum to the share of the parts that have a token.

    Raises:
        AssertionError: while tracing, unless `mask` is a bool array of rank 2 or more.
        ValueError: `num_parts` does not divide the first axis.

    Reference: the loss type "bnpo" of huggingface/trl, where the parts are a device's micro-batches
    (the paper of that name, arXiv:2506.02864, is about advantages).
    Choice: a part without a token adds 0 and still counts in `num_parts`, as it does there.

    >>> mask = jnp.array([[[True, True]], [[True, False]]])
    >>> token_mean_of_parts(mask, num_parts=2).tolist()
    [[[0.25, 0.25]], [[0.5, 0.0]]]
    """
    chex.assert_type(mask, bool)
    chex.assert_axis_dimension_gteq(mask, -2, 1)
    if num_parts < 1 or mask.shape[0] % num_parts:
        raise ValueError(
            f"num_parts is {num_parts}; the first axis ({mask.shape[0]} prompts) must be a whole "
            "number of equal parts: give one of its divisors"
        )
    parts = mask.reshape(num_parts, -1)
    weights = _ones(parts) / jnp.maximum(parts.sum(axis=-1, keepdims=True), 1) / num_parts
    return weights.reshape(mask.shape)


def prompt_mean(mask: jax.Array) -> jax.Array:
    """Mean over prompts of the mean over their tokens: w = m / (tokens of its prompt · prompts).

    Args:
        mask: [..., G, T] bool, True on the tokens that the policy chose.

    Returns:
        [..., G, T] weights. They sum to 1, or to 0 when no token counts.

    Raises:
        AssertionError: while tracing, unless `mask` is a bool array of rank 2 or more.

    Reference: DAPO, arXiv:2503.14476, equation 8 as printed; "prompt_mean" of NovaSky-AI/SkyRL.
    Choice: a prompt without a counting token is left out of the number of prompts.

    >>> mask = jnp.array([[[True, True], [True, True]], [[True, False], [False, False]]])
    >>> prompt_mean(mask).tolist()
    [[[0.125, 0.125], [0.125, 0.125]], [[0.5, 0.0], [0.0, 0.0]]]
    """
    chex.assert_type(mask, bool)
    chex.assert_axis_dimension_gteq(mask, -2, 1)
    tokens = mask.sum(axis=(-2, -1), keepdims=True)
    prompts = (tokens > 0).sum()
    return _ones(mask) / jnp.maximum(tokens, 1) / jnp.maximum(prompts, 1)


def _ones(mask: jax.Array) -> jax.Array:
    return mask.astype(jnp.result_type(float))
