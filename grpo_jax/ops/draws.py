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


def inverse_cdf(logits: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The token at which the cumulative probability passes `uniform`: one number draws one token.

    In two levels: the block of 256 tokens, then the token in it. One variate a row instead of one
    for each token of the vocabulary, no cumulative sum over all of it, and the log-probability of
    the token from the same sums.

    Args:
        logits: [..., V] float; -inf takes a token out of the support, one must be left in.
        uniform: [...] float32 in [0, 1). Its steps of 2^-23 bound how finely rare tokens are drawn.

    Returns:
        the tokens [...] int32, never one of probability zero; their log-probabilities [...]
        float32, in nats.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    >>> token, log_prob = inverse_cdf(jnp.log(jnp.array([0.25, 0.25, 0.5])), jnp.array(0.4))
    >>> int(token), round(float(log_prob), 4)
    (1, -1.3863)
    """
    chex.assert_type([logits, uniform], float)
    chex.assert_shape(uniform, logits.shape[:-1])
    size, shape = logits.shape[-1], uniform.shape
    # The vocabulary first: sums over it then run over whole vectors of rows, and the product that
    # the logits come from need not be transposed where few rows have it so.
    logits, uniform = logits.reshape(-1, size).T.astype(jnp.float32), uniform.reshape(-1)
    top = logits.max(axis=0)
    padded = jnp.pad(logits, [(0, -size % _BLOCK), (0, 0)], constant_values=-jnp.inf)
    blocks = jnp.exp(padded.reshape(-1, _BLOCK, len(uniform)) - top[None, None]).sum(axis=1)
    cumulative = jnp.cumsum(blocks, axis=0)
    total = cumulative[-1]
    target = uniform * total
    block = _first_above(blocks, cumulative, target)
    before = jnp.where(block > 0, _at(cumulative, jnp.maximum(block - 1, 0)), 0.0)
    inside = block[None] * _BLOCK + jnp.arange(_BLOCK)[:, None]
    within = jnp.take_along_axis(logits, jnp.minimum(inside, size - 1), axis=0)
    within = jnp.where(inside < size, jnp.exp(within - top[None]), 0.0)
    token = block * _BLOCK + _first_above(within, jnp.cumsum(within, axis=0), target - before)
    # Of logits that are all NaN no entry has mass; the token is still one of the vocabulary.
    token = jnp.minimum(token, size - 1).astype(jnp.int32)
    log_prob = _at(logits, token) - top - jnp.log(total)
    return token.reshape(shape), log_prob.reshape(shape)


def _first_above(mass: jax.Array, cumulative: jax.Array, target: jax.Array) -> jax.Array:
    """Index of the first of n entries of positive mass whose cumulative sum is above the target;
    mass and sums [n, N], target and index [N].

    Where rounding has put the target at or past the end, that of the last entry of positive mass.
    A cumulative sum need not be flat over entries of no mass (it is not summed in order), so that
    these are left out by what they are.
    """
    positive = mass > 0
    above = positive & (cumulative > target[None])
    last = mass.shape[0] - 1 - jnp.argmax(positive[::-1], axis=0)
    return jnp.where(above.any(axis=0), jnp.argmax(above, axis=0), last)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[None], axis=0)[0]
