"""Fewer or dearer updates where a likely token has a high advantage, which costs entropy most.

    cov_t = (A_t - mean A) (log π_t - mean log π)

The means and the choice of tokens are statistics of all tokens of one optimizer step, all axes
together: of a micro-batch they would be others. No gradient flows through them. Tokens of
probability 0 enter neither.
"""

from fractions import Fraction

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import surrogates
from grpo_jax.ops.precision import working_dtype


def clip_cov(
    log_ratio: jax.Array,
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    share: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
) -> jax.Array:
    """PPO's clipped surrogate, but for a few tokens of high covariance drawn at random: those 0.

        candidates: cov_low < cov < cov_high, and not clipped;   max(⌊share · tokens⌋, 1) are drawn

    Args:
        log_ratio: [..., T] or [..., 1] float, log(policy / old policy).
        log_probs: [..., T] float, of the policy.
        advantages: [..., T] or [..., 1] float.
        mask: [..., T] bool, True where the token counts.
        key: PRNG key. One uniform number is drawn for each token, padding included; the smallest
            win. So the draw depends on the padded shape.
        share: of all counting tokens, in (0, 1].
        cov_low: lower end of the interval, in units of advantage times nats.
        cov_high: upper end.
        clip_eps_low: as for `surrogates.clipped`.
        clip_eps_high: likewise.

    Returns:
        [..., T] float32 (float64 for float64 input). Tokens drawn have no loss and no slope, but
        still count in the weights.

    Raises:
        AssertionError: while tracing, unless types and shapes are these.
        ValueError: `share` is not in (0, 1], the interval is empty, or a half-width negative.

    Reference: Clip-Cov, arXiv:2505.22617, and the authors' code (PRIME-RL/Entropy-Mechanism-of-RL).
    Choice: at least one token is drawn if there is a candidate, as in that code.

    >>> log_probs, log_ratio = jnp.array([-3.0, -1.0, -1.0, -3.0]), jnp.zeros(4)
    >>> advantages, mask = jnp.array([1.0, 3.0, -3.0, -1.0]), jnp.ones(4, bool)  # cov -1, 3, -3, 1
    >>> clip_cov(log_ratio, log_probs, advantages, mask, jax.random.key(0)).tolist()
    [-1.0, 0.0, 3.0, 1.0]
    """
    if not cov_low < cov_high:
        raise ValueError(
            f"cov_low is {cov_low} and cov_high {cov_high}; no covariance lies between them: "
            "take 1 and 5"
        )
    bounds = {"clip_eps_low": clip_eps_low, "clip_eps_high": clip_eps_high}
    log_ratio = _by_token(log_ratio, mask)
    losses = surrogates.clipped(log_ratio, advantages, **bounds)
    clips = losses > surrogates.importance_weighted(log_ratio, advantages)
    covariances, scored = _covariances(log_ratio, log_probs, advantages, mask)
    candidates = scored & ~clips & (covariances > cov_low) & (covariances < cov_high)
    draws = jax.random.uniform(key, mask.shape)
    dropped = _largest(-draws, candidates, mask, share)
    return jnp.where(dropped, 0.0, losses)


def kl_cov(
    log_ratio: jax.Array,
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    share: float = 2e-4,
    coef: float = 1.0,
) -> jax.Array:
    """-ρ A, and coef · |log ρ| more for the tokens of highest covariance: no clip.

    Args:
        log_ratio: [..., T] or [..., 1] float, log(policy / old policy).
        log_probs: [..., T] float, of the policy.
        advantages: [..., T] or [..., 1] float.
        mask: [..., T] bool, True where the token counts.
        share: of all counting tokens, in (0, 1]; at least one token is taken.
        coef: of the penalty, in units of advantage per nat.

    Returns:
        [..., T] float32 (float64 for float64 input).

    Raises:
        AssertionError: while tracing, unless types and shapes are these.
        ValueError: `share` is not in (0, 1], or `coef` is negative.

    Reference: KL-Cov, arXiv:2505.22617, and the authors' code (PRIME-RL/Entropy-Mechanism-of-RL).
    Choice: among equal covariances the first token wins. The penalty has no gradient at ρ = 1.

    >>> log_probs, log_ratio = jnp.array([-3.0, -1.0, -1.0, -3.0]), jnp.full([4], 0.1)
    >>> advantages, mask = jnp.array([1.0, 3.0, -3.0, -1.0]), jnp.ones(4, bool)  # cov -1, 3, -3, 1
    >>> penalised = kl_cov(log_ratio, log_probs, advantages, mask)
    >>> (penalised > surrogates.importance_weighted(log_ratio, advantages)).tolist()
    [False, True, False, False]
    """
    if not coef >= 0:
        raise ValueError(f"coef is {coef}; a penalty has 0 or more: take 1")
    log_ratio = _by_token(log_ratio, mask)
    losses = surrogates.importance_weighted(log_ratio, advantages)
    covariances, scored = _covariances(log_ratio, log_probs, advantages, mask)
    penalised = _largest(covariances, scored, mask, share)
    held = jnp.where(penalised, log_ratio, 0.0)
    # |δ|, with a slope of 0 at 0, where that of jnp.abs is 1.
    return losses + coef * jax.lax.stop_gradient(jnp.sign(held)) * held


def _by_token(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """[..., T], 0 outside the mask."""
    chex.assert_type([log_ratio, mask], [float, bool])
    chex.assert_equal_rank([log_ratio, mask])
    return jnp.where(mask, log_ratio, 0.0)


def _covariances(
    log_ratio: jax.Array, log_probs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """cov_t [..., T], without gradient, and which tokens have one."""
    chex.assert_type([log_probs, advantages], float)
    chex.assert_equal_shape([log_probs, mask])
    chex.assert_equal_rank([advantages, mask])
    scored = mask & jnp.isfinite(log_probs) & jnp.isfinite(log_ratio)
    dtype = working_dtype(log_probs, advantages)
    count = jnp.maximum(scored.sum(), 1)

    def centred(x: jax.Array) -> jax.Array:
        x = jnp.where(scored, x, 0.0).astype(dtype)
        return x - x.sum() / count

    return jax.lax.stop_gradient(centred(advantages) * centred(log_probs)), scored


def _largest(scores: jax.Array, candidates: jax.Array, mask: jax.Array, share: float) -> jax.Array:
    """The max(⌊share · tokens⌋, 1) candidates of largest score; [..., T] bool."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it is a share of the tokens, in (0, 1]: take 2e-4")
    # In whole numbers: as a float32 the product may fall short of the number meant.
    part = Fraction(str(float(share)))
    if part.numerator * part.denominator >= 2**31:
        part = part.limit_denominator(2**15)
    whole, rest = jnp.divmod(mask.sum(), part.denominator)
    wanted = whole * part.numerator + rest * part.numerator // part.denominator
    most = max(int(part * mask.size), 1)
    scores = jnp.where(candidates, scores, -jnp.inf).ravel()
    _, places = jax.lax.top_k(scores, most)
    chosen = jnp.arange(most) < jnp.maximum(wanted, 1)
    taken = jnp.zeros(mask.size, bool).at[places].set(chosen)
    return taken.reshape(mask.shape) & candidates
