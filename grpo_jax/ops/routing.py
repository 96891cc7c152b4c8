"""Mixtures of experts: how evenly tokens fall on them."""

import chex
import jax
import jax.numpy as jnp


def load_balance(scores: jax.Array, chosen: jax.Array, mask: jax.Array) -> jax.Array:
    """How unevenly the tokens of a sequence fall on experts: 1 where evenly, up to E / k.

        E · Σ_e (share of the sequence's choices that fall on e) · (mean share of e in the scores)

    averaged over layers. A sequence counts by itself, so that parts of a batch add up. The gradient
    flows through the scores, away from experts that were chosen often.

    Args:
        scores: [M, P, G, T, E] float, of all experts in M layers, as shares of their sum.
        chosen: [M, P, G, T, k] int, the experts taken.
        mask: [P, G, T] bool, tokens that count.

    Returns:
        [P, G] float32; 0 where no token counts.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: the sequence-wise balance loss of DeepSeek-V3, arXiv:2412.19437, equations 17 to 20,
    without its coefficient.

    >>> scores = jnp.full([1, 1, 1, 2, 4], 0.25)
    >>> load_balance(scores, jnp.array([[[[[0], [3]]]]]), jnp.ones([1, 1, 2], bool)).tolist()
    [[1.0]]
    """
    chex.assert_type([scores, chosen, mask], [float, int, bool])
    chex.assert_shape(scores, (None, *mask.shape, None))
    chex.assert_shape(chosen, (*scores.shape[:-1], None))
    count = scores.shape[-1]
    taken = jax.nn.one_hot(chosen, count).mean(axis=-2)  # shares of a token's choices
    counted = mask[None, ..., None]
    total = jnp.maximum(mask.sum(axis=-1), 1)[None, ..., None]
    fractions = jnp.where(counted, taken, 0).sum(axis=-2) / total
    shares = jnp.where(counted, scores.astype(jnp.float32), 0).sum(axis=-2) / total
    return count * (jax.lax.stop_gradient(fractions) * shares).sum(axis=-1).mean(axis=0)
