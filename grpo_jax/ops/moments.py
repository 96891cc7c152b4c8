"""Means and standard deviations of what counts: over a group, or over a whole batch."""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops.precision import working_dtype


def scored(rewards: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rewards in the type they are computed with, and which of them are there.

    Args:
        rewards: [..., G] float, NaN where there is none.

    Returns:
        [..., G] float32 (float64 for float64 input), and [..., G] bool.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    >>> scored(jnp.array([1.0, jnp.nan]))[1].tolist()
    [True, False]
    """
    chex.assert_type(rewards, float)
    chex.assert_axis_dimension_gteq(rewards, -1, 1)
    rewards = rewards.astype(working_dtype(rewards))
    return rewards, ~jnp.isnan(rewards)


def deviations(values: jax.Array, counted: jax.Array, *, axis: int | None = None) -> jax.Array:
    """Deviations from the mean of the values that count.

        d = x - mean(x)

    Args:
        values: [...] float32 or float64; what does not count may be anything, NaN included.
        counted: [...] bool.
        axis: over which the mean is taken; None: over all.

    Returns:
        [...] of the type of `values`; exact zeros where all that count are equal, and wherever
        something does not count.

    >>> deviations(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    """
    # Sixteen rewards of 1.1 have a rounded mean: unshifted, each would get an advantage of 0.1.
    lowest = jnp.where(counted, values, jnp.inf).min(axis=axis, keepdims=True)
    shifted = jnp.where(counted, values - lowest, 0.0)
    # Finite values as far apart as the type allows: their sum must not leave it.
    far = jnp.finfo(values.dtype).max / max(values.size, 1)
    shifted = jnp.where(jnp.isinf(values), shifted, jnp.minimum(shifted, far))
    count = jnp.maximum(counted.sum(axis=axis, keepdims=True), 1)
    return jnp.where(counted, shifted - shifted.sum(axis=axis, keepdims=True) / count, 0.0)


def std(
    centred: jax.Array, counted: jax.Array, *, axis: int | None = None, ddof: int = 0
) -> jax.Array:
    """Standard deviation from deviations: the root of their squares' sum over n - ddof.

    Args:
        centred: [...] float, as `deviations` gives them.
        counted: [...] bool; n of them count.
        axis: over which it is taken; None: over all.
        ddof: 0 divides by n (numpy's and JAX's default), 1 by n - 1 (torch's).

    Returns:
        as `centred`, with 1 in place of the axes. Exactly 0, with gradient 0, where fewer than two
        count or all are equal.

    Raises:
        ValueError: `ddof` is neither 0 nor 1.

    >>> std(jnp.array([-1.0, 1.0]), jnp.array([True, True])).tolist()
    [1.0]
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}; it must be 0 (divide by n) or 1 (divide by n - 1)")
    count = counted.sum(axis=axis, keepdims=True)
    # In units of the largest, so that no square leaves the range of the type.
    largest = jnp.abs(jax.lax.stop_gradient(centred)).max(axis=axis, keepdims=True)
    units = centred / jnp.where(largest == 0, 1.0, largest)
    mean = jnp.square(units).sum(axis=axis, keepdims=True) / jnp.maximum(count - ddof, 1)
    # √ has no slope at 0: what is not taken must not be computed from 0 either.
    root = jnp.sqrt(jnp.where(mean == 0, 1.0, mean))
    return jnp.where(mean == 0, 0.0, largest * root)


def over_std(values: jax.Array, std: jax.Array, *, eps: float) -> jax.Array:
    """values / (std + eps), and 0 where the standard deviation is 0, whatever eps is.

    Args:
        values: [...] float.
        std: of the same rank, with 1 where it is shared.
        eps: added to it; 0 is allowed.

    Returns:
        [...] float; neither it nor its gradient is ever NaN for finite arguments. A standard
        deviation that is NaN (of infinite values) makes it NaN: that must not pass for no spread.

    Raises:
        ValueError: `eps` is negative.

    >>> over_std(jnp.array([3.0, 3.0]), jnp.array([2.0, 0.0]), eps=0.0).tolist()
    [1.5, 0.0]
    """
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it is added to a standard deviation: give 0 or more")
    none = std == 0
    return jnp.where(none, 0.0, values / (jnp.where(none, 1.0, std) + eps))
