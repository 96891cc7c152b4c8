"""The precision that the mathematics is done in."""

import functools

import jax
import jax.numpy as jnp


def working_dtype(*arrays: jax.Array) -> jnp.dtype:
    """float32, or float64 as soon as one of the arrays is.

    From the dtypes alone: a float64 array that came of a Python number counts as float64, too.

    >>> working_dtype(jnp.zeros(2, jnp.bfloat16), jnp.zeros(2, bool))
    dtype('float32')
    """
    dtypes = (x.dtype for x in arrays)
    return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))
