"""Drawing a token from logits: the support that is kept, and one uniform number per row."""

import chex
import jax
import jax.numpy as jnp

_BLOCK = 256


def keep_support(
    logits: jax.Array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> jax.Array:
    """Takes unlikely tokens out of the support: their logits become -inf.

    In this order, each on what the one before has left: the `top_k` most likely tokens; the
    smallest set of most likely tokens with at least `top_p` of the probability; the tokens at
    least `min_p` times as likely as the likeliest. The likeliest token always stays.

    Args:
        logits: [..., V] float, temperature included.
        top_k: number of tokens; 0 keeps all.
        top_p: share of the probability, in (0, 1]; 1 keeps all.
        min_p: in [0, 1); 0 keeps all.

    Returns:
        [..., V] float32. Tokens as likely as the last one kept are kept as well.

    Raises:
        AssertionError: while tracing, unless `logits` is a float array.

    Reference: top-p: arXiv:1904.09751; min-p: arXiv:2407.01082.
    Choice: the order of the Hugging Face transformers library.

    >>> jnp.exp(keep_support(jnp.log(jnp.array([0.5, 0.3, 0.2])), top_p=0.7)).round(3)
    Array([0.5, 0.3, 0. ], dtype=float32)
    """
    chex.assert_type(logits, float)
    logits = logits.astype(jnp.float32)
    if 0 < top_k < logits.shape[-1]:
        lowest = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    if top_p < 1:
        probs = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(probs >= _nucleus_edge(probs, top_p), logits, -jnp.inf)
    if min_p > 0:
        edge = logits.max(axis=-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits >= edge, logits, -jnp.inf)
    return logits


def _nucleus_edge(probs: jax.Array, top_p: float) -> jax.Array:
    """The largest p such that tokens of probability >= p hold at least top_p; [..., 1].

    Found by bisection over the bit patterns of positive floats, which are ordered as the floats
    are: exact after 31 halvings, and without sorting a vocabulary.
    """

    def bits(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, jnp.int32)

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        edge = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.where(probs >= edge, probs, 0.0).sum(axis=-1, keepdims=True) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    highest = bits(probs.max(axis=-1, keepdims=True))
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(highest), highest + 1))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def inverse_cdf(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """The token at which the cumulative probability passes `uniform`: one number draws one token.

    In two levels: the block of 256 tokens, then the token in it. One variate a row instead of one
    for each token of the vocabulary, and no cumulative sum over all of it.

    Args:
        logits: [..., V] float; -inf takes a token out of the support, one must be left in.
        uniform: [...] float32 in [0, 1). Its steps of 2^-23 bound how finely rare tokens are drawn.

    Returns:
        [...] int32, never a token of probability zero.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    >>> inverse_cdf(jnp.log(jnp.array([0.25, 0.25, 0.5])), jnp.array(0.4)).tolist()
    1
    """
    chex.assert_type([logits, uniform], float)
    chex.assert_shape(uniform, logits.shape[:-1])
    size = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    mass = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    padding = [(0, 0)] * uniform.ndim + [(0, -size % _BLOCK)]
    blocks = jnp.pad(mass, padding).reshape(*uniform.shape, -1, _BLOCK)
    cumulative = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = uniform * cumulative[..., -1]
    block = _first_above(blocks.sum(axis=-1), cumulative, target)
    before = jnp.where(block > 0, _at(cumulative, jnp.maximum(block - 1, 0)), 0.0)
    within = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    token = _first_above(within, jnp.cumsum(within, axis=-1), target - before)
    # Of logits that are all NaN no entry has mass; the token is still one of the vocabulary.
    return jnp.minimum(block * _BLOCK + token, size - 1).astype(jnp.int32)


def _first_above(mass: jax.Array, cumulative: jax.Array, target: jax.Array) -> jax.Array:
    """Index of the first entry of positive mass whose cumulative sum is above the target; [...].

    Where rounding has put the target at or past the end, that of the last entry of positive mass.
    A cumulative sum need not be flat over entries of no mass (it is not summed in order), so that
    these are left out by what they are.
    """
    positive = mass > 0
    above = positive & (cumulative > target[..., None])
    last = mass.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
    return jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]
