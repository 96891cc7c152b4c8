"""Factors of the policy term for tokens that another policy than the anchor has drawn.

The sampler μ (another engine, lower precision, older parameters) and the anchor π_old of the ratio
differ by ρ = π_old / μ. Each function turns log-probabilities into factors for the per-token loss
of the policy, not of the KL term. They are constants: no gradient flows through them. A factor is 1
outside the mask, and for a completion without tokens.

Log ratios are cut at 80 before exp, so that a factor is finite. A token that both call impossible
(-inf and -inf) has ρ = 1. Where a product meets 0 and infinity, 0 wins: what the anchor cannot say
is not learned from.

Do not combine two factors by ρ, nor one with a surrogate whose ratio is already π / μ: ρ counts
once.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops.precision import working_dtype


def truncated(
    old_log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    mask: jax.Array,
    *,
    max_ratio: float = 2.0,
) -> jax.Array:
    """min(ρ, max_ratio) for each token by itself: truncated importance sampling.

    Args:
        old_log_probs: [..., T] float, of the policy that the ratio is anchored to.
        sampler_log_probs: [..., T] float, as the tokens were drawn.
        mask: [..., T] bool, True where the token counts.
        max_ratio: the cap, 1 or more. At infinity this is the plain weight of decoupled PPO.

    Returns:
        [..., T] float32 (float64 for float64 input), without gradient.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.
        ValueError: `max_ratio` is below 1, which would scale down tokens that both agree on.

    Reference: F. Yao et al., "Your efficient RL framework secretly brings you off-policy RL
    training", 2025; uncapped: arXiv:2110.00641 and AReaL, arXiv:2505.24298.
    Choice: a product of token ratios would be the unbiased weight; one ratio a token has less
    variance and a bias that grows with the length.

    >>> old = jnp.log(jnp.array([0.5, 0.9, 0.2]))
    >>> truncated(old, jnp.log(jnp.array([0.5, 0.1, 0.4])), jnp.ones(3, bool)).round(3).tolist()
    [1.0, 2.0, 0.5]
    """
    _check_cap(max_ratio)
    return jnp.minimum(_exp(_log_ratio(old_log_probs, sampler_log_probs, mask)), max_ratio)


def masked(
    old_log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    mask: jax.Array,
    *,
    min_ratio: float = 0.5,
    max_ratio: float = 5.0,
) -> jax.Array:
    """ρ where min_ratio ≤ ρ ≤ max_ratio, else 0: tokens of too large a mismatch are dropped.

    Args:
        old_log_probs: [..., T] float, of the policy that the ratio is anchored to.
        sampler_log_probs: [..., T] float, as the tokens were drawn.
        mask: [..., T] bool, True where the token counts.
        min_ratio: lower end of the interval, in [0, 1].
        max_ratio: upper end, 1 or more.

    Returns:
        [..., T] float32 (float64 for float64 input), without gradient. Dropped tokens still count
        in the weights.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.
        ValueError: 1 is not in the interval, or it reaches below 0.

    Reference: IcePop, arXiv:2510.18855.

    >>> old = jnp.log(jnp.array([0.5, 0.9, 0.1]))
    >>> masked(old, jnp.log(jnp.array([0.4, 0.1, 0.4])), jnp.ones(3, bool)).round(3).tolist()
    [1.25, 0.0, 0.0]
    """
    _check_interval(min_ratio, max_ratio)
    ratio = _exp(_log_ratio(old_log_probs, sampler_log_probs, mask))
    return jnp.where(_within(ratio, min_ratio, max_ratio), ratio, 0.0)


def sequence_truncated(
    old_log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    mask: jax.Array,
    *,
    max_ratio: float = 2.0,
) -> jax.Array:
    """min(Π_t ρ_t, max_ratio): the ratio of whole completions, capped.

    Args:
        old_log_probs: [..., T] float, of the policy that the ratio is anchored to.
        sampler_log_probs: [..., T] float, as the tokens were drawn.
        mask: [..., T] bool, True where the token counts.
        max_ratio: the cap, 1 or more; infinity leaves the unbiased weight.

    Returns:
        [..., 1] float32 (float64 for float64 input), without gradient.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.
        ValueError: `max_ratio` is below 1, which would scale down what both agree on.

    Reference: J. Liu et al., "When speed kills stability: demystifying RL collapse from the
    training-inference mismatch", 2025 (Seq-TIS).

    >>> old = jnp.log(jnp.array([[0.5, 0.5], [0.6, 0.5]]))
    >>> sampler = jnp.log(jnp.array([[0.1, 0.2], [0.5, 0.5]]))
    >>> sequence_truncated(old, sampler, jnp.ones([2, 2], bool)).round(3).tolist()
    [[2.0], [1.2000000476837158]]
    """
    _check_cap(max_ratio)
    total = _sum(_log_ratio(old_log_probs, sampler_log_probs, mask))
    return jnp.minimum(_exp(total), max_ratio)


def sequence_masked(
    old_log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    mask: jax.Array,
    *,
    min_ratio: float = 0.0,
    max_ratio: float = 3.0,
) -> jax.Array:
    """Π_t ρ_t where it is between the two bounds, else 0: whole completions are dropped.

    Args:
        old_log_probs: [..., T] float, of the policy that the ratio is anchored to.
        sampler_log_probs: [..., T] float, as the tokens were drawn.
        mask: [..., T] bool, True where the token counts.
        min_ratio: lower end of the interval, in [0, 1].
        max_ratio: upper end, 1 or more.

    Returns:
        [..., 1] float32 (float64 for float64 input), without gradient.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.
        ValueError: 1 is not in the interval, or it reaches below 0.

    Reference: J. Liu et al., "When speed kills stability: demystifying RL collapse from the
    training-inference mismatch", 2025 (Seq-MIS).
    Choice: the bounds are the defaults of huggingface/trl. A product grows with the length: of two
    completions with the same mismatch by token, the longer is dropped first.

    >>> old = jnp.log(jnp.array([[0.5, 0.5], [0.6, 0.5]]))
    >>> sampler = jnp.log(jnp.array([[0.1, 0.2], [0.5, 0.5]]))
    >>> sequence_masked(old, sampler, jnp.ones([2, 2], bool)).round(3).tolist()
    [[0.0], [1.2000000476837158]]
    """
    _check_interval(min_ratio, max_ratio)
    ratio = _exp(_sum(_log_ratio(old_log_probs, sampler_log_probs, mask)))
    return jnp.where(_within(ratio, min_ratio, max_ratio), ratio, 0.0)


def geometric_masked(
    old_log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    mask: jax.Array,
    *,
    min_ratio: float,
    max_ratio: float,
) -> jax.Array:
    """1 where the geometric mean of ρ over the completion is between the two bounds, else 0.

    Args:
        old_log_probs: [..., T] float, of the policy that the ratio is anchored to.
        sampler_log_probs: [..., T] float, as the tokens were drawn.
        mask: [..., T] bool, True where the token counts.
        min_ratio: lower end of the interval, in [0, 1].
        max_ratio: upper end, 1 or more. No default for either: published bounds go from
            (0.99, 1.01) to (0.5, 5).

    Returns:
        [..., 1] float32 (float64 for float64 input), 0 or 1, without gradient.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.
        ValueError: 1 is not in the interval, or it reaches below 0.

    Reference: J. Liu et al., "When speed kills stability: demystifying RL collapse from the
    training-inference mismatch", 2025 (geometric sequence mask).
    Choice: a mask, not a weight, so it may be multiplied by a weight for each token: with
    `truncated(max_ratio=inf)` that is the "seq-mask-tis" of OpenRLHF and NVIDIA-NeMo/RL.

    >>> old = jnp.log(jnp.array([[0.5, 0.5], [0.6, 0.5]]))
    >>> sampler, mask = jnp.log(jnp.array([[0.1, 0.2], [0.5, 0.5]])), jnp.ones([2, 2], bool)
    >>> geometric_masked(old, sampler, mask, min_ratio=0.5, max_ratio=2.0).tolist()
    [[0.0], [1.0]]
    """
    _check_interval(min_ratio, max_ratio)
    log_ratio = _log_ratio(old_log_probs, sampler_log_probs, mask)
    ratio = _exp(_mean(log_ratio, mask))
    return _within(ratio, min_ratio, max_ratio).astype(ratio.dtype)


def off_policy_sequences(
    log_probs: jax.Array,
    sampler_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    max_drift: float = 0.5,
) -> jax.Array:
    """0 for bad completions that the policy has drifted away from, else 1.

        M_i = 0 if A_i < 0 and 1/L_i Σ_t log(μ / π) > max_drift, else 1

    Args:
        log_probs: [..., T] float, of the policy being trained (not of the anchor).
        sampler_log_probs: [..., T] float, as the tokens were drawn.
        advantages: [..., 1] or [..., T] float.
        mask: [..., T] bool, True where the token counts.
        max_drift: δ, in nats a token, 0 or more.

    Returns:
        [..., 1] float32 (float64 for float64 input), 0 or 1, without gradient.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.
        ValueError: `max_drift` is negative, which would drop what has not drifted at all.

    Reference: DeepSeek-V3.2, arXiv:2512.02556, section 3.1 (off-policy sequence masking).
    Choice: the paper does not publish δ; 0.5 is what huggingface/trl suggests. It masks by
    completion and writes A with a token index; advantages by token are reduced to the sign of
    their mean over the completion.

    >>> sampler = jnp.log(jnp.array([[0.9, 0.9], [0.9, 0.9]]))
    >>> now = jnp.log(jnp.array([[0.3, 0.3], [0.3, 0.3]]))
    >>> advantages = jnp.array([[-1.0], [1.0]])
    >>> off_policy_sequences(now, sampler, advantages, jnp.ones([2, 2], bool)).tolist()
    [[0.0], [1.0]]
    """
    chex.assert_type(advantages, float)
    chex.assert_equal_rank([advantages, mask])
    if not max_drift >= 0:
        raise ValueError(f"max_drift is {max_drift}; it must be 0 or more (infinity drops nothing)")
    drift = -_mean(_log_ratio(log_probs, sampler_log_probs, mask), mask)
    advantages = jax.lax.stop_gradient(advantages)
    if advantages.shape[-1] == mask.shape[-1]:
        advantages = jnp.where(mask, advantages, 0.0).sum(axis=-1, keepdims=True)
    chex.assert_equal_shape([advantages, drift])
    return jnp.where((advantages < 0) & (drift > max_drift), 0.0, 1.0).astype(drift.dtype)


def _log_ratio(log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """log(π / μ) of each token, 0 outside the mask and where both are equal, -inf included."""
    chex.assert_type([log_probs, sampler_log_probs, mask], [float, float, bool])
    chex.assert_equal_shape([log_probs, sampler_log_probs, mask])
    dtype = working_dtype(log_probs, sampler_log_probs)
    numerator = jax.lax.stop_gradient(log_probs).astype(dtype)
    denominator = jax.lax.stop_gradient(sampler_log_probs).astype(dtype)
    return jnp.where(mask & (numerator != denominator), numerator - denominator, 0.0)


def _sum(log_ratio: jax.Array) -> jax.Array:
    """Σ over the completion, [..., 1]; -inf and inf together make -inf."""
    impossible = (log_ratio == -jnp.inf).any(axis=-1, keepdims=True)
    # Left in, -inf would meet inf in the sum and make NaN.
    total = jnp.where(log_ratio == -jnp.inf, 0.0, log_ratio).sum(axis=-1, keepdims=True)
    return jnp.where(impossible, -jnp.inf, total)


def _mean(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    return _sum(log_ratio) / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)


def _exp(log_ratio: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(log_ratio, 80.0))


def _within(ratio: jax.Array, low: float, high: float) -> jax.Array:
    return (ratio >= low) & (ratio <= high)


def _check_cap(max_ratio: float) -> None:
    if not max_ratio >= 1:
        raise ValueError(
            f"max_ratio is {max_ratio}; it must be 1 or more, or it scales down what both policies "
            "agree on (for smaller steps lower the learning rate; infinity caps nothing)"
        )


def _check_interval(min_ratio: float, max_ratio: float) -> None:
    if not 0 <= min_ratio <= 1 <= max_ratio:
        raise ValueError(
            f"min_ratio is {min_ratio} and max_ratio {max_ratio}; they must hold 1 between them, "
            "and min_ratio be 0 or more: a ratio of 1 is where both policies agree"
        )
