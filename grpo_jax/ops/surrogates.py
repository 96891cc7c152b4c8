"""Trust regions by token: log importance ratios and advantages -> losses (to be minimised).

ρ = exp(log_ratio), of a token or of its whole completion. All are finite for any log ratio: beyond
80 it counts as 80, without gradient. Where ρ = 1 the slope of each in log π is -A, and with the
ratio of a sequence of L tokens -A / L.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import ratios
from grpo_jax.ops.precision import working_dtype


def clipped(
    log_ratio: jax.Array,
    advantages: jax.Array,
    *,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
) -> jax.Array:
    """PPO's clipped surrogate, a pessimistic bound for advantages of either sign.

        loss = -min(ρ A, clip(ρ, 1 - clip_eps_low, 1 + clip_eps_high) A)

    Args:
        log_ratio: [..., T] or [..., 1] float, log(policy / old policy).
        advantages: [..., T] or [..., 1] float.
        clip_eps_low: lower half-width; above 1 there is no lower clip.
        clip_eps_high: upper half-width.

    Returns:
        [..., T], or [..., 1] if both are; float32 (float64 for float64 input), in units of
        advantage.

    Raises:
        AssertionError: while tracing, unless both are float arrays with the same leading axes.
        ValueError: a half-width is negative.

    Reference: PPO, arXiv:1707.06347, equation 7; separate widths: DAPO, arXiv:2503.14476; with the
    ratio of a sequence: GSPO, arXiv:2507.18071.

    Outside the interval the gradient vanishes on the side that the advantage pushes towards:

    >>> up, down = jnp.log(jnp.array([1.5])), jnp.log(jnp.array([0.5]))
    >>> [clipped(up, jnp.array([a])).item() for a in (1.0, -1.0)]
    [-1.2000000476837158, 1.5]
    >>> [clipped(down, jnp.array([a])).item() for a in (1.0, -1.0)]
    [-0.5, 0.800000011920929]
    """
    ratio, advantages = _ratio_and(log_ratio, advantages)
    bounded = _clip(ratio, clip_eps_low, clip_eps_high)
    return -jnp.minimum(ratio * advantages, bounded * advantages)


def dual_clipped(
    log_ratio: jax.Array,
    advantages: jax.Array,
    *,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    max_ratio: float = 3.0,
) -> jax.Array:
    """The clipped surrogate, which for A < 0 grows no further than -max_ratio · A.

        loss = -max(min(ρ A, clip(ρ) A), max_ratio · A) for A < 0, as `clipped` else

    Arguments and errors as for `clipped`, and:

    Args:
        max_ratio: largest ratio that counts for a negative advantage (the paper's c).

    Raises:
        ValueError: `max_ratio` is not above 1.

    Reference: dual-clip PPO, arXiv:1912.09729.
    Choice: the paper's c is 3.

    >>> dual_clipped(jnp.log(jnp.array([2.0, 9.0])), jnp.array([-1.0, -1.0])).tolist()
    [2.0, 3.0]
    """
    if not max_ratio > 1:
        raise ValueError(
            f"max_ratio is {max_ratio}; at 1 or below it would stop the gradient on-policy: "
            "it bounds the ratio itself, the paper's value is 3"
        )
    loss = clipped(log_ratio, advantages, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)
    advantages = advantages.astype(loss.dtype)
    return jnp.where(advantages < 0, jnp.minimum(loss, -max_ratio * advantages), loss)


def two_sided_clipped(
    log_ratio: jax.Array,
    advantages: jax.Array,
    *,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    max_ratio: float = 4.0,
) -> jax.Array:
    """The clipped surrogate with a bound on the unclipped ratio too.

        loss = -min(min(ρ, max_ratio) A, clip(ρ, 1 - clip_eps_low, 1 + clip_eps_high) A)

    Arguments and errors as for `clipped`, and:

    Args:
        max_ratio: largest unclipped ratio (the paper's δ).

    Raises:
        ValueError: `max_ratio` is not above 1 + clip_eps_high.

    Reference: INTELLECT-2, arXiv:2505.07291, section 4.1, with δ = 4.
    Choice: for A > 0 the clip is the tighter bound, so that this is `dual_clipped` by another name
    and with another bound.

    >>> two_sided_clipped(jnp.log(jnp.array([9.0, 9.0])), jnp.array([-1.0, 1.0])).tolist()
    [4.0, -1.2000000476837158]
    """
    if not max_ratio > 1 + clip_eps_high:
        raise ValueError(
            f"max_ratio is {max_ratio}; it must be above 1 + clip_eps_high = {1 + clip_eps_high}, "
            "or it would replace the clip: it bounds the ratio itself, the paper's value is 4"
        )
    ratio, advantages = _ratio_and(log_ratio, advantages)
    bounded = _clip(ratio, clip_eps_low, clip_eps_high)
    return -jnp.minimum(jnp.minimum(ratio, max_ratio) * advantages, bounded * advantages)


def importance_weighted(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    """-ρ A: the surrogate without a trust region. Arguments and errors as for `clipped`.

    Reference: TRPO, arXiv:1502.05477 (its objective, without the constraint).

    >>> importance_weighted(jnp.log(jnp.array([9.0])), jnp.array([1.0])).round(3).tolist()
    [-9.0]
    """
    ratio, advantages = _ratio_and(log_ratio, advantages)
    return -ratio * advantages


def policy_gradient(log_probs: jax.Array, advantages: jax.Array) -> jax.Array:
    """-A log π: no ratio, so that every update counts as on-policy.

    Args:
        log_probs: [..., T] float, of the policy.
        advantages: [..., T] or [..., 1] float.

    Returns:
        [..., T] float32 (float64 for float64 input). Its value says nothing, its slope is -A.

    Raises:
        AssertionError: while tracing, unless both are float arrays with the same leading axes.

    Reference: REINFORCE, R. J. Williams, Machine Learning 8, 1992; GPG, arXiv:2504.02546.
    Choice: exactly 0 where A = 0. Elsewhere an impossible token (-inf) has an infinite loss with a
    finite slope.

    >>> policy_gradient(jnp.array([-0.5]), jnp.array([2.0])).tolist()
    [1.0]
    """
    log_probs, advantages = _promoted(log_probs, advantages)
    # 0 · -inf is NaN.
    return -advantages * jnp.where(advantages == 0, 0.0, log_probs)


def cispo(
    log_ratio: jax.Array,
    log_probs: jax.Array,
    advantages: jax.Array,
    *,
    max_ratio: float = 5.0,
    min_ratio: float = 0.0,
) -> jax.Array:
    """-sg(clip(ρ, min_ratio, max_ratio)) A log π: a bounded weight, and no token without gradient.

    Args:
        log_ratio: [..., T] or [..., 1] float, log(policy / old policy).
        log_probs: [..., T] float, of the policy.
        advantages: [..., T] or [..., 1] float.
        max_ratio: largest weight, a bound on the ratio itself.
        min_ratio: smallest weight.

    Returns:
        [..., T] float32 (float64 for float64 input). sg stops the gradient: the slope in log π is
        -clip(ρ) A.

    Raises:
        AssertionError: while tracing, unless all are float arrays with the same leading axes.
        ValueError: 1 is not between `min_ratio` and `max_ratio`.

    Reference: CISPO in MiniMax-M1, arXiv:2506.13585.
    Choice: the paper gives no value for the upper bound, and has no lower one in effect; 5 is that
    of ScaleRL, arXiv:2510.13786. Where code has ε = 0.28 the bound here is 1.28.

    >>> log_ratio, log_probs = jnp.log(jnp.array([2.0, 9.0])), jnp.array([-1.0, -1.0])
    >>> cispo(log_ratio, log_probs, jnp.array([1.0, 1.0])).tolist()
    [2.0, 5.0]
    """
    if not (max_ratio > 1 and min_ratio < 1):
        raise ValueError(
            f"min_ratio is {min_ratio} and max_ratio {max_ratio}; 1 must lie between them, or "
            "on-policy tokens are weighted too: they bound the ratio itself, not its distance "
            "from 1; take 1 - ε and 1 + ε"
        )
    ratio, advantages = _ratio_and(log_ratio, advantages)
    weights = jax.lax.stop_gradient(jnp.clip(ratio, min_ratio, max_ratio))
    return policy_gradient(log_probs, weights * advantages)


def sapo(
    log_ratio: jax.Array,
    advantages: jax.Array,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> jax.Array:
    """A sigmoid gate in place of a clip: -(4/τ) σ(τ (ρ - 1)) A.

    Arguments and errors as for `clipped`, and:

    Args:
        tau_positive: τ for A > 0; the larger, the sooner the gradient fades.
        tau_negative: τ for A < 0.

    Returns:
        as `clipped`. At ρ = 1 the slope is -A, but the value -2 A / τ: not to be compared with
        others.

    Raises:
        ValueError: a τ is not positive.

    Reference: SAPO, arXiv:2511.20347.

    >>> sapo(jnp.array([0.0, 0.0]), jnp.array([1.0, -1.0]), tau_negative=2.0).tolist()
    [-2.0, 1.0]
    """
    for name, tau in (("tau_positive", tau_positive), ("tau_negative", tau_negative)):
        if not tau > 0:
            raise ValueError(f"{name} is {tau}; the gate has a width of 1/τ: take 1")
    ratio, advantages = _ratio_and(log_ratio, advantages)
    tau = jnp.where(advantages > 0, tau_positive, tau_negative).astype(ratio.dtype)
    return -4 / tau * jax.nn.sigmoid(tau * (ratio - 1)) * advantages


def _clip(ratio: jax.Array, clip_eps_low: float, clip_eps_high: float) -> jax.Array:
    for name, eps in (("clip_eps_low", clip_eps_low), ("clip_eps_high", clip_eps_high)):
        if not eps >= 0:
            raise ValueError(f"{name} is {eps}; it is a half-width, 0 or more: take 0.2")
    # A ratio on a bound is inside: jnp.clip would let half of the gradient through.
    bounded = jnp.where(ratio > 1.0 + clip_eps_high, 1.0 + clip_eps_high, ratio)
    return jnp.where(ratio < 1.0 - clip_eps_low, 1.0 - clip_eps_low, bounded)


def _ratio_and(log_ratio: jax.Array, advantages: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_ratio, advantages = _promoted(log_ratio, advantages)
    return ratios.ratio(log_ratio), advantages


def _promoted(values: jax.Array, advantages: jax.Array) -> tuple[jax.Array, jax.Array]:
    chex.assert_type([values, advantages], float)
    chex.assert_equal_rank([values, advantages])
    chex.assert_equal_shape_prefix([values, advantages], values.ndim - 1)
    dtype = working_dtype(values, advantages)
    return values.astype(dtype), advantages.astype(dtype)
