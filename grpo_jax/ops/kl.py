"""Per-token estimates of KL(policy || reference) in nats, from the sampled token alone.

With u = log(policy / reference) of the sampled token; all are float32 inside (float64 for float64
input). As a value k1 and k3 are unbiased; as a loss term on-policy, k1 has gradient zero in
expectation, k2 that of KL(policy || reference) and k3 that of KL(reference || policy) (J. Schulman,
"Approximating KL divergence", 2020; arXiv:2510.01555).

A token that both call impossible (-inf and -inf) has u = 0; one that the reference alone does has
u = inf, and an infinite estimate.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import ratios

Estimate = Callable[[jax.Array, jax.Array], jax.Array]


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
    return ratios.token(log_probs, ref_log_probs, jnp.ones_like(log_probs, bool))


def k2(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """u² / 2: never negative, biased as a value. Arguments and errors as for `k1`.

    Reference: J. Schulman, "Approximating KL divergence", 2020.

    >>> k2(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -2.0])).tolist()
    [0.125, 0.0]
    """
    return 0.5 * jnp.square(k1(log_probs, ref_log_probs))


def k3(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """exp(-u) + u - 1: never negative, unbiased as a value. Arguments and errors as for `k1`.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 4 (π_ref/π - log(π_ref/π) - 1).
    Choice: expm1 keeps the value exact for policies close to the reference. Below u = -80 it stays
    at its value there, without gradient, for exp(-u) would leave the range of float32.

    >>> k3(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -2.0])).round(4)
    Array([0.1065, 0.    ], dtype=float32)
    """
    u = jnp.maximum(k1(log_probs, ref_log_probs), -80.0)
    return jnp.expm1(-u) + u


def straight_through(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    *,
    value: Estimate = k3,
    gradient: Estimate = k2,
) -> jax.Array:
    """The value of one estimate with the gradient of another: sg(value - gradient) + gradient.

    Arguments, result and errors as for `k1`, and:

    Args:
        value: estimate that is reported.
        gradient: estimate that is followed.

    Reference: `k3+` of verl (kl_penalty); arXiv:2510.01555 on why k2 has the gradient wanted.
    Choice: no gradient where u is infinite.

    >>> log_probs, ref = jnp.array([-1.0]), jnp.array([-1.5])
    >>> jax.grad(lambda x: straight_through(x, ref).sum())(log_probs).tolist()
    [0.5]
    """
    reported = jax.lax.stop_gradient(value(log_probs, ref_log_probs))
    finite = jnp.isfinite(log_probs) & jnp.isfinite(ref_log_probs)
    followed = gradient(jnp.where(finite, log_probs, 0.0), jnp.where(finite, ref_log_probs, 0.0))
    # The difference is an exact zero, so that the value is not rounded twice.
    return reported + (followed - jax.lax.stop_gradient(followed))


def ratio_corrected(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    token_log_ratio: jax.Array,
    *,
    estimate: Estimate = k3,
) -> jax.Array:
    """r · estimate with r = π / π_old of the token, and the gradient of both factors.

    Under π_old this is unbiased: with k3 or k1 the expected gradient is that of
    KL(policy || reference) by token, on-policy too, where r = 1 but has a gradient.

    Args:
        log_probs: [..., T] float, of the policy.
        ref_log_probs: [..., T] float, of the reference.
        token_log_ratio: [..., T] float, δ of each token by itself, whatever ratio the policy's
            loss takes; with its gradient in log_probs.
        estimate: of the KL.

    Returns:
        [..., T] nats.

    Raises:
        AssertionError: while tracing, unless all are float arrays of one shape.

    Reference: DeepSeek-V3.2, arXiv:2512.02556 (unbiased KL estimate).
    Choice: r is capped at exp(40) and u held at -40 or more, without gradient beyond, so that the
    product stays finite. Where r is 0 the result is 0.

    >>> log_probs, ref = jnp.array([-1.0]), jnp.array([-1.5])
    >>> ratio_corrected(log_probs, ref, jnp.log(jnp.array([2.0]))).round(4)
    Array([0.2131], dtype=float32)
    """
    chex.assert_equal_shape([log_probs, ref_log_probs, token_log_ratio])
    ratio = ratios.ratio(jnp.minimum(token_log_ratio, 40.0))
    # Out of the estimate, not only out of the product: 0 · inf is NaN, and so is its gradient.
    policy, ref = (jnp.where(ratio > 0, x, 0.0) for x in (log_probs, ref_log_probs))
    return ratio * estimate(jnp.maximum(policy, ref - 40.0), ref)
