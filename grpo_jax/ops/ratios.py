"""Log importance ratios of the policy to the policy that the update started from."""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops.precision import working_dtype

# exp(80) is far outside any interval in use, and finite in float32 with room for an advantage.
_LARGEST_EXPONENT = 80.0


def token(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """δ[.., t] = log π(o_t) - log π_old(o_t), for each token by itself.

    Args:
        log_probs: [..., T] float, of the policy.
        old_log_probs: [..., T] float, of the policy before this phase of updates.
        mask: [..., T] bool, True where the token counts.

    Returns:
        [..., T] float32 (float64 for float64 input); exactly 0 outside the mask, whatever the
        inputs hold there, in value and in gradient.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.

    Reference: PPO, arXiv:1707.06347, equation 6; DeepSeekMath, arXiv:2402.03300, equation 3.
    Choice: a token that both policies call impossible (-inf and -inf) has δ = 0, with gradient 0.
    One -inf gives δ = -inf or inf.

    >>> token(jnp.array([-1.0, jnp.nan]), jnp.array([-1.5, 0.0]), jnp.array([True, False])).tolist()
    [0.5, 0.0]
    """
    chex.assert_type([log_probs, old_log_probs, mask], [float, float, bool])
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    dtype = working_dtype(log_probs, old_log_probs)
    # Masked before the subtraction: junk in the padding must not reach exp, nor its gradient.
    counts = mask & ~(jnp.isneginf(log_probs) & jnp.isneginf(old_log_probs))
    now = jnp.where(counts, log_probs, 0.0).astype(dtype)
    old = jnp.where(counts, old_log_probs, 0.0).astype(dtype)
    return now - old


def sequence(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """log s = 1/L Σ_t δ[.., t]: the mean over a completion's tokens, one for all of them.

    Arguments and errors as for `token`.

    Returns:
        [..., 1] float32 (float64 for float64 input); its gradient is 1/L for each of the L tokens.

    Reference: GSPO, arXiv:2507.18071, the sequence ratio s_i(θ).
    Choice: 0 for an empty completion. A token that the policy calls impossible makes it -inf,
    whatever the others are.

    >>> sequence(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -2.0]), jnp.ones(2, bool)).tolist()
    [0.25]
    """
    length = mask.sum(axis=-1, keepdims=True)
    return summed(token(log_probs, old_log_probs, mask), mask) / jnp.maximum(length, 1)


def sequence_token(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """sg(log s) + log π(o_t) - sg(log π(o_t)): a sequence's ratio, each token's own gradient.

    Arguments and errors as for `token`; sg stops the gradient and log s is that of `sequence`.

    Returns:
        [..., T] float32 (float64 for float64 input): log s in the mask and 0 outside; the gradient
        is 1 for the token itself and 0 for all others.

    Reference: GSPO-token, arXiv:2507.18071, section 4.3: advantages may differ by token.
    Choice: a token that the policy calls impossible has no gradient.

    >>> old, mask = jnp.array([-1.5, -2.0, 0.0]), jnp.array([True, True, False])
    >>> sequence_token(jnp.array([-1.0, -2.0, 0.0]), old, mask).tolist()
    [0.25, 0.25, 0.0]
    """
    log_s = jax.lax.stop_gradient(sequence(log_probs, old_log_probs, mask))
    # -inf minus itself is no number.
    own = jnp.where(mask & jnp.isfinite(log_probs), log_probs, 0.0).astype(log_s.dtype)
    return jnp.where(mask, log_s + (own - jax.lax.stop_gradient(own)), 0.0)


def sequence_product(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Σ_t δ[.., t]: the log of π(o) / π_old(o) for a whole completion, without 1/L.

    Arguments and errors as for `token`.

    Returns:
        [..., 1] float32 (float64 for float64 input); its gradient is 1 for each token.

    Reference: importance sampling of whole sequences, as in VESPO, arXiv:2602.10693.
    Choice: 0 for an empty completion; impossible tokens as for `sequence`.

    >>> old = jnp.array([-1.5, -2.5])
    >>> sequence_product(jnp.array([-1.0, -2.0]), old, jnp.ones(2, bool)).tolist()
    [1.0]
    """
    return summed(token(log_probs, old_log_probs, mask), mask)


def summed(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """Σ_t log_ratio[.., t] over the mask: the log of the product of a completion's ratios.

    Args:
        log_ratio: [..., T] float.
        mask: [..., T] bool, True where the token counts.

    Returns:
        [..., 1] float32 (float64 for float64 input); 0 for an empty completion.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float and bool.

    Choice: a product of 0 and infinity is 0 here: what the policy cannot say is not learned from.

    >>> summed(jnp.array([0.5, 0.25, jnp.nan]), jnp.array([True, True, False])).tolist()
    [0.75]
    >>> summed(jnp.array([jnp.inf, -jnp.inf]), jnp.ones(2, bool)).tolist()
    [-inf]
    """
    chex.assert_type([log_ratio, mask], [float, bool])
    chex.assert_equal_shape([log_ratio, mask])
    log_ratio = log_ratio.astype(working_dtype(log_ratio))
    terms = jnp.where(mask, log_ratio, 0.0)
    impossible = jnp.isneginf(terms).any(axis=-1, keepdims=True)
    return jnp.where(impossible, -jnp.inf, terms.sum(axis=-1, keepdims=True))


def ratio(log_ratio: jax.Array) -> jax.Array:
    """ρ = exp(min(log_ratio, 80)): finite whatever the log ratio, so that 0 · ρ is 0.

    Args:
        log_ratio: [...] float.

    Returns:
        [...] float32 (float64 for float64 input), between 0 and 5.5e34; the gradient is ρ, and 0
        beyond the cap.

    Raises:
        AssertionError: while tracing, unless `log_ratio` is a float array.

    >>> ratio(jnp.array([0.0, -jnp.inf])).tolist(), bool(jnp.isfinite(ratio(jnp.array(1e4))))
    ([1.0, 0.0], True)
    """
    chex.assert_type(log_ratio, float)
    log_ratio = log_ratio.astype(working_dtype(log_ratio))
    return jnp.exp(jnp.minimum(log_ratio, _LARGEST_EXPONENT))
