"""DPPO: tokens are dropped by how far the policy has moved, not by their ratio.

    loss = -sg(min(r, max_ratio)) keep · A log π,   r = π / π_old of the token

The divergence is that of two outcomes, the sampled token and all others, so that the sampled
token's probability is enough. A token is dropped where the divergence is above the threshold and A
pushes π further away; it then has no loss and no slope, but still counts in the weights.

The paper anchors the trust region to the sampler, and finds a recomputed π_old worse: pass the
sampler's log-probabilities as `old_log_probs` to follow it.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import ratios, surrogates
from grpo_jax.ops.precision import working_dtype


def dppo_tv(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_low: float = 0.15,
    eps_high: float = 0.15,
    max_ratio: float = 20.0,
) -> jax.Array:
    """DPPO with the total variation of two outcomes, |π - π_old|.

        keep = π - π_old ≤ eps_high for A > 0,   π - π_old ≥ -eps_low for A < 0

    Args:
        log_probs: [..., T] float, of the policy.
        old_log_probs: [..., T] float, of the anchor.
        advantages: [..., T] or [..., 1] float.
        mask: [..., T] bool, True where the token counts.
        eps_low: how far a token's probability may fall, as a difference of probabilities.
        eps_high: how far it may rise.
        max_ratio: largest weight; a small one would favour frequent tokens.

    Returns:
        [..., T] float32 (float64 for float64 input), 0 outside the mask; the slope in log π is
        -min(r, max_ratio) A where the token is kept.

    Raises:
        AssertionError: while tracing, unless types and shapes are these.
        ValueError: a threshold is negative, or `max_ratio` not above 1.

    Reference: DPPO, arXiv:2602.04879, binary total variation.
    Choice: thresholds of the authors' example in verl, max_ratio as in verl; the paper's largest
    runs have 0.2 and 5 (`objectives.dppo_tv`).

    >>> log_probs, old = jnp.log(jnp.array([0.9, 0.02])), jnp.log(jnp.array([0.6, 0.01]))
    >>> loss = lambda x: dppo_tv(x, old, jnp.array([1.0]), jnp.ones(2, bool)).sum()
    >>> jax.grad(loss)(log_probs).round(4).tolist()  # a ratio of 2 moves a rare token little
    [0.0, -2.0]
    """
    _check(eps_low, eps_high, max_ratio)
    policy, old = _masked(log_probs, old_log_probs, advantages, mask)
    moved = jnp.exp(policy) - jnp.exp(old)
    keep = jnp.where(advantages > 0, moved <= eps_high, moved >= -eps_low)
    return _kept(policy, old, advantages, mask & keep, max_ratio)


def dppo_kl(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps_low: float = 0.05,
    eps_high: float = 0.05,
    max_ratio: float = 20.0,
) -> jax.Array:
    """DPPO with the divergence KL(π_old || π) of two outcomes.

        D = π_old log(π_old / π) + (1 - π_old) log((1 - π_old) / (1 - π))
        keep = D ≤ eps_high or π ≤ π_old for A > 0,   D ≤ eps_low or π ≥ π_old for A < 0

    Arguments, result and errors as for `dppo_tv`, and:

    Args:
        eps_low: largest divergence, in nats, of a token that has become less likely.
        eps_high: likewise, more likely.

    Reference: DPPO, arXiv:2602.04879, binary KL.
    Choice: thresholds of the authors' example in verl and of the paper, whose max_ratio is 5. As in
    verl, 1e-8 is added to both complements: a log-probability rounded to 0 must not look like an
    infinite divergence.

    >>> log_probs, old = jnp.log(jnp.array([0.9, 0.02])), jnp.log(jnp.array([0.6, 0.01]))
    >>> loss = lambda x: dppo_kl(x, old, jnp.array([1.0]), jnp.ones(2, bool)).sum()
    >>> jax.grad(loss)(log_probs).round(4).tolist()
    [0.0, -2.0]
    """
    _check(eps_low, eps_high, max_ratio)
    policy, old = _masked(log_probs, old_log_probs, advantages, mask)
    # Where the anchor gives probability 0 its term is 0, and not 0 · inf.
    chosen = jnp.exp(old) * jnp.where(jnp.isneginf(old), 0.0, old - policy)
    # 1 - exp(x) as -expm1(x): exact for likely tokens.
    others = jnp.log((1e-8 - jnp.expm1(old)) / (1e-8 - jnp.expm1(policy)))
    divergence = chosen - jnp.expm1(old) * others
    rising = (divergence <= eps_high) | (policy <= old)
    falling = (divergence <= eps_low) | (policy >= old)
    keep = jnp.where(advantages > 0, rising, falling)
    return _kept(policy, old, advantages, mask & keep, max_ratio)


def _masked(
    log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both, 0 outside the mask and at most 0: rounding may leave a probability above 1."""
    chex.assert_type([log_probs, old_log_probs, advantages, mask], [float, float, float, bool])
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    chex.assert_equal_rank([advantages, mask])
    chex.assert_equal_shape_prefix([advantages, mask], mask.ndim - 1)
    dtype = working_dtype(log_probs, old_log_probs)
    policy, old = (jnp.where(mask, x, 0.0).astype(dtype) for x in (log_probs, old_log_probs))
    over = jax.lax.stop_gradient(jnp.maximum(policy, 0.0))
    return policy - over, jnp.minimum(old, 0.0)


def _kept(
    policy: jax.Array, old: jax.Array, advantages: jax.Array, keep: jax.Array, max_ratio: float
) -> jax.Array:
    ratio = ratios.ratio(ratios.token(policy, old, keep))
    weights = jax.lax.stop_gradient(jnp.where(keep, jnp.minimum(ratio, max_ratio), 0.0))
    return surrogates.policy_gradient(policy, weights * advantages)


def _check(eps_low: float, eps_high: float, max_ratio: float) -> None:
    for name, eps in (("eps_low", eps_low), ("eps_high", eps_high)):
        if not eps >= 0:
            raise ValueError(f"{name} is {eps}; it is a divergence, 0 or more: take 0.15")
    if not max_ratio > 1:
        raise ValueError(
            f"max_ratio is {max_ratio}; at 1 or below it weights on-policy tokens too: it bounds "
            "the ratio itself, take 20"
        )
