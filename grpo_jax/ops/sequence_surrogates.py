"""Trust regions by completion: the log ratios of all its tokens -> losses (to be minimised)."""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import ratios, surrogates
from grpo_jax.ops.precision import working_dtype


def gmpo(
    log_ratio: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_log_low: float = 0.4,
    clip_log_high: float = 0.4,
) -> jax.Array:
    """The geometric mean of token ratios, each clipped on the side that A pushes towards.

        loss = -A exp(1/L Σ_t δ'),   δ' = min(δ, clip_log_high) for A > 0,
                                     δ' = max(δ, -clip_log_low) for A < 0

    Args:
        log_ratio: [..., T] float, δ by token.
        advantages: [..., 1] float, one for the completion.
        mask: [..., T] bool, True where the token counts.
        clip_log_low: lower half-width, of the log of the ratio: 0.4 is a ratio of 0.67.
        clip_log_high: upper half-width, likewise: 0.4 is a ratio of 1.49.

    Returns:
        [..., 1] float32 (float64 for float64 input), in units of advantage. The slope in log π of
        a token is loss / L, and 0 where it is clipped.

    Raises:
        AssertionError: while tracing, unless types and shapes are these.
        ValueError: a half-width is negative.

    Reference: GMPO, arXiv:2507.20673: clipped before the mean, to (exp(-0.4), exp(0.4)).
    Choice: the minimum is taken of the log ratios and not of the products with A, which is the
    same. An empty completion has the loss -A, without gradient. Ratios beyond exp(80) as in
    `ratios.ratio`.

    >>> log_ratio, mask = jnp.array([[1.0, 0.0]]), jnp.ones([1, 2], bool)
    >>> round(gmpo(log_ratio, jnp.array([[1.0]]), mask).item(), 4)  # -exp((0.4 + 0) / 2)
    -1.2214
    """
    for name, width in (("clip_log_low", clip_log_low), ("clip_log_high", clip_log_high)):
        if not width >= 0:
            raise ValueError(f"{name} is {width}; it is a half-width, 0 or more: take 0.4")
    _check(log_ratio, advantages, mask)
    dtype = working_dtype(log_ratio, advantages)
    delta = jnp.where(mask, log_ratio, 0.0).astype(dtype)
    advantages = advantages.astype(dtype)
    # A log ratio on a bound is inside: a minimum would let half of the gradient through.
    held = jnp.where(
        advantages > 0,
        jnp.where(delta > clip_log_high, clip_log_high, delta),
        jnp.where(delta < -clip_log_low, -clip_log_low, delta),
    )
    length = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    return -advantages * ratios.ratio(ratios.summed(held, mask) / length)


def vespo(
    log_ratio: jax.Array,
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> jax.Array:
    """A weight that fades for completions of too small and too large a ratio: -sg(φ(W)) A log π.

        W = exp(Σ_t log_ratio),   φ(W) = W^k exp(λ (1 - W)),   φ(1) = 1

    Args:
        log_ratio: [..., T] float, by token. In the paper W is π / μ, to the sampler: pass the
            ratio to its log-probabilities where they are not those of π_old.
        log_probs: [..., T] float, of the policy.
        advantages: [..., 1] float, one for the completion.
        mask: [..., T] bool, True where the token counts.
        k_positive: k for A ≥ 0: how fast the weight falls towards W = 0.
        lambda_positive: λ for A ≥ 0: how fast it falls for large W.
        k_negative: k for A < 0.
        lambda_negative: λ for A < 0.

    Returns:
        [..., T] float32 (float64 for float64 input), 0 outside the mask. sg stops the gradient: the
        slope in log π is -φ(W) A for every token.

    Raises:
        AssertionError: while tracing, unless types and shapes are these.
        ValueError: a k or a λ is negative.

    Reference: VESPO, arXiv:2602.10693.
    Choice: the numbers are those that the authors' code computes with (its docstring has others).
    log W is held in [-20, 20]; their code holds the log ratio of each token there first. A
    completion that the policy calls impossible has φ = 0.

    >>> log_probs, mask = jnp.array([[-1.0, -1.0]]), jnp.ones([1, 2], bool)
    >>> log_ratio = jnp.log(jnp.array([[2.0, 1.0]]))
    >>> round(vespo(log_ratio, log_probs, jnp.array([[1.0]]), mask)[0, 0].item(), 4)  # 2² exp(-3)
    0.1991
    """
    shapes = {"k_positive": k_positive, "lambda_positive": lambda_positive}
    shapes |= {"k_negative": k_negative, "lambda_negative": lambda_negative}
    for name, value in shapes.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it must be 0 or more, or φ grows without bound")
    _check(log_ratio, advantages, mask)
    chex.assert_equal_shape([log_probs, mask])
    log_w = ratios.summed(log_ratio, mask)
    possible, log_w = ~jnp.isneginf(log_w), jnp.clip(log_w, -20.0, 20.0)
    k = jnp.where(advantages >= 0, k_positive, k_negative).astype(log_w.dtype)
    lam = jnp.where(advantages >= 0, lambda_positive, lambda_negative).astype(log_w.dtype)
    # 1 - W as -expm1: exact where the policies are close.
    phi = jnp.where(possible, ratios.ratio(k * log_w - lam * jnp.expm1(log_w)), 0.0)
    weighted = jnp.where(mask, jax.lax.stop_gradient(phi) * advantages, 0.0)
    return surrogates.policy_gradient(jnp.where(mask, log_probs, 0.0), weighted)


def _check(log_ratio: jax.Array, advantages: jax.Array, mask: jax.Array) -> None:
    chex.assert_type([log_ratio, advantages, mask], [float, float, bool])
    chex.assert_equal_shape([log_ratio, mask])
    chex.assert_equal_rank([advantages, mask])
    chex.assert_equal_shape_prefix([advantages, mask], mask.ndim - 1)
    chex.assert_axis_dimension(advantages, -1, 1)
