"""Per-token estimates of KL(policy || reference) in nats, from the sampled token alone.

With u = log(policy / reference) of the sampled token; all three are float32 inside. As a value k1
and k3 are unbiased; as a loss term on-policy, k1 has gradient zero in expectation, k2 that of
KL(policy || reference) and k3 that of KL(reference || policy) (J. Schulman, "Approximating KL
divergence", 2020; arXiv:2510.01555).
"""

import chex
import jax
import jax.numpy as jnp


def k1(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """u = log(policy / reference).

    Args:
        log_probs: [..., T] float, of the policy.
        ref_log_probs: [..., T] float, of the reference.

    Returns:
        [..., T] nats; may be negative.

    Raises:
        AssertionError: while tracing, unless both are float arrays of one shape.

    >>> k1(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -2.0])).tolist()
    [0.5, 0.0]
    """
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_equal_shape([log_probs, ref_log_probs])
    dtype = jnp.promote_types(jnp.promote_types(log_probs.dtype, ref_log_probs.dtype), jnp.float32)
    return log_probs.astype(dtype) - ref_log_probs.astype(dtype)


def k2(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """u² / 2: never negative, biased as a value. Arguments and errors as for `k1`.

    >>> k2(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -2.0])).tolist()
    [0.125, 0.0]
    """
    return 0.5 * jnp.square(k1(log_probs, ref_log_probs))


def k3(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """exp(-u) + u - 1: never negative, unbiased as a value. Arguments and errors as for `k1`.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 4 (π_ref/π - log(π_ref/π) - 1).
    Choice: expm1 keeps the value exact for policies close to the reference.

    >>> k3(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -2.0])).round(4)
    Array([0.1065, 0.    ], dtype=float32)
    """
    u = k1(log_probs, ref_log_probs)
    return jnp.expm1(-u) + u
