"""When the reference policy follows the policy: (ref_params, params, step) -> ref_params.

Bind the settings with `functools.partial`. Results never share a buffer with `params`, so that a
state that holds both can be donated; under jit a donated `ref_params` is written in place.
"""

from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from grpo_jax.ops.precision import working_dtype

Params = TypeVar("Params")  # any pytree of arrays


def refresh(ref_params: Params, params: Params, step: ArrayLike, *, every: int) -> Params:
    """Takes the policy's parameters as the reference at every so manieth step.

        ref' = params if step mod every = 0 else ref

    Args:
        ref_params: pytree of arrays.
        params: pytree of the same structure and shapes, after the step.
        step: scalar int, of steps taken: 1 after the first.
        every: steps between two refreshes, 1 or more.

    Returns:
        pytree as `ref_params`, of its types.

    Raises:
        AssertionError: while tracing, unless the trees agree and `step` is a scalar int.
        ValueError: `every` is less than 1.

    Reference: DeepSeek-R1, arXiv:2501.12948 (every 400 steps); once each outer iteration in
    DeepSeekMath, arXiv:2402.03300, algorithm 1.

    >>> refresh(jnp.array([0.0]), jnp.array([1.0]), 400, every=400).tolist()
    [1.0]
    """
    due = _due(ref_params, params, step, every)
    return jax.tree.map(
        lambda ref, new: jnp.where(due, new.astype(ref.dtype), ref), ref_params, params
    )


def polyak(
    ref_params: Params, params: Params, step: ArrayLike, *, rate: float, every: int = 1
) -> Params:
    """Moves the reference a part of the way to the policy at every so manieth step.

        ref' = rate · params + (1 - rate) · ref if step mod every = 0 else ref

    Args:
        ref_params: pytree of float arrays.
        params: pytree of the same structure and shapes, after the step.
        step: scalar int, of steps taken: 1 after the first.
        rate: in (0, 1]; 1 is `refresh`.
        every: steps between two moves, 1 or more.

    Returns:
        pytree as `ref_params`, of its types; mixed in float32 or wider.

    Raises:
        AssertionError: while tracing, unless the trees agree and `step` is a scalar int.
        ValueError: `every` is less than 1, or `rate` outside (0, 1].

    Reference: as "ref_model_mixup_alpha" (0.6) and "ref_model_sync_steps" (512) in huggingface/trl,
    after TR-DPO, arXiv:2404.09656.
    Choice: a reference in bfloat16 has 8 bits: moves smaller than half of its last one are lost,
    which a small rate at every step can be; keep it in float32 then.

    >>> polyak(jnp.array([0.0]), jnp.array([1.0]), 3, rate=0.25).tolist()
    [0.25]
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it must be above 0 and at most 1 (1: take the policy)")
    due = _due(ref_params, params, step, every)

    def mix(ref: jax.Array, new: jax.Array) -> jax.Array:
        chex.assert_type([ref, new], float)
        dtype = working_dtype(ref, new)
        mixed = rate * new.astype(dtype) + (1.0 - rate) * ref.astype(dtype)
        return jnp.where(due, mixed.astype(ref.dtype), ref)

    return jax.tree.map(mix, ref_params, params)


def _due(ref_params: Params, params: Params, step: ArrayLike, every: int) -> jax.Array:
    if every < 1:
        raise ValueError(f"every is {every}; it counts steps: give 1 or more")
    chex.assert_trees_all_equal_shapes(ref_params, params)
    step = jnp.asarray(step)
    chex.assert_type(step, int)
    chex.assert_rank(step, 0)
    return step % every == 0
