"""Trust regions: log importance ratios and advantages -> per-token losses (to be minimised)."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def clipped(
    log_ratio: jax.Array,
    advantages: jax.Array,
    *,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
) -> jax.Array:
    """PPO's clipped surrogate, a pessimistic bound for advantages of either sign.

        loss = -min(ρ A, clip(ρ, 1 - clip_eps_low, 1 + clip_eps_high) A),   ρ = exp(log_ratio)

    Args:
        log_ratio: [..., T] float, log(policy / old policy).
        advantages: [..., T] or [..., 1] float.
        clip_eps_low: lower half-width; above 1 there is no lower clip.
        clip_eps_high: upper half-width.

    Returns:
        [..., T] float32 (float64 for float64 input), in units of advantage.

    Raises:
        AssertionError: while tracing, unless both are float arrays of one rank.

    Reference: PPO, arXiv:1707.06347, equation 7; separate widths: DAPO, arXiv:2503.14476.

    Outside the interval the gradient vanishes on the side that the advantage pushes towards:

    >>> up, down = jnp.log(jnp.array([1.5])), jnp.log(jnp.array([0.5]))
    >>> [clipped(up, jnp.array([a])).item() for a in (1.0, -1.0)]
    [-1.2000000476837158, 1.5]
    >>> [clipped(down, jnp.array([a])).item() for a in (1.0, -1.0)]
    [-0.5, 0.800000011920929]
    """
    chex.assert_type([log_ratio, advantages], float)
    chex.assert_equal_rank([log_ratio, advantages])
    log_ratio = log_ratio.astype(jnp.promote_types(log_ratio.dtype, jnp.float32))
    advantages = advantages.astype(log_ratio.dtype)
    # exp(80) is far outside any interval and still finite: an advantage of 0 must not meet inf.
    ratio = jnp.exp(jnp.minimum(log_ratio, 80.0))
    bounded = jnp.clip(ratio, 1.0 - clip_eps_low, 1.0 + clip_eps_high)
    return -jnp.minimum(ratio * advantages, bounded * advantages)


def clip_sides(
    surrogate: Callable[[jax.Array, jax.Array], jax.Array],
    log_ratio: jax.Array,
    advantages: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Where a surrogate lets no gradient through although the advantage is not zero.

    Read off the surrogate's own slope, so that it holds for any trust region.

    Args:
        surrogate: (log_ratio, advantages) -> per-token losses.
        log_ratio: [..., T] float.
        advantages: [..., T] or [..., 1] float.

    Returns:
        two [..., T] bool: below a ratio of 1, and above it. Their means over tokens are the
        metrics `clip_ratio/low_mean` and `clip_ratio/high_mean`.

    >>> low, high = clip_sides(clipped, jnp.log(jnp.array([0.5, 1.5])), jnp.array([-1.0, -1.0]))
    >>> low.tolist(), high.tolist()
    ([True, False], [False, False])
    """
    slope = jax.grad(lambda x: surrogate(x, advantages).sum())(log_ratio)
    flat = (slope == 0) & (advantages != 0)
    return flat & (log_ratio < 0), flat & (log_ratio > 0)
