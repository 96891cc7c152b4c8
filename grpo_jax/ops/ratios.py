"""Log importance ratios of the policy to the policy that the update started from."""

import chex
import jax
import jax.numpy as jnp


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

    >>> token(jnp.array([-1.0, jnp.nan]), jnp.array([-1.5, 0.0]), jnp.array([True, False])).tolist()
    [0.5, 0.0]
    """
    chex.assert_type([log_probs, old_log_probs, mask], [float, float, bool])
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    dtype = jnp.promote_types(jnp.promote_types(log_probs.dtype, old_log_probs.dtype), jnp.float32)
    # Masked before the subtraction: junk in the padding must not reach exp, nor its gradient.
    now = jnp.where(mask, log_probs, 0.0).astype(dtype)
    old = jnp.where(mask, old_log_probs, 0.0).astype(dtype)
    return now - old
