"""Which groups carry a signal at all."""

import chex
import jax
import jax.numpy as jnp


def zero_signal(rewards: jax.Array) -> jax.Array:
    """Groups whose scored completions all have the same reward: their advantages are all zero.

    Args:
        rewards: [..., G] float, NaN where a completion has no reward.

    Returns:
        [...] bool; True also for a group with one scored completion or none.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: DAPO, arXiv:2503.14476, section 3.2 (which samples until no such group is left).

    >>> zero_signal(jnp.array([[1.0, 1.0], [0.0, 1.0]])).tolist()
    [True, False]
    """
    chex.assert_type(rewards, float)
    chex.assert_axis_dimension_gteq(rewards, -1, 1)
    scored = ~jnp.isnan(rewards)
    highest = jnp.where(scored, rewards, -jnp.inf).max(axis=-1)
    lowest = jnp.where(scored, rewards, jnp.inf).min(axis=-1)
    return highest <= lowest
