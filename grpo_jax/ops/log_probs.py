"""What a distribution says of given tokens: log-probabilities and entropies, float32 inside."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def token_log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """log softmax(logits)[token], without the [..., V] log-softmax.

    Args:
        logits: [..., V] float; -inf takes a token out of the support.
        tokens: [...] int, in 0..V-1.

    Returns:
        [...] float32 (float64 for float64 input), in nats.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    >>> token_log_probs(jnp.array([[0.0, 0.0]]), jnp.array([1])).round(4)
    Array([-0.6931], dtype=float32)
    """
    chex.assert_type([logits, tokens], [float, int])
    chex.assert_shape(tokens, logits.shape[:-1])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of softmax(logits), from the full distribution.

        H = logsumexp(z) - Σ_v softmax(z)_v z_v

    Args:
        logits: [..., V] float; -inf takes a token out of the support.

    Returns:
        [...] float32 (float64 for float64 input), in nats; between 0 and log V.

    Raises:
        AssertionError: while tracing, unless `logits` is a float array.

    >>> entropy(jnp.zeros([1, 4])).round(4)
    Array([1.3863], dtype=float32)
    """
    chex.assert_type(logits, float)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    probs = jax.nn.softmax(logits, axis=-1)
    # 0 · -inf is NaN: outside the support a token adds nothing.
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(
        probs * jnp.where(probs > 0, logits, 0.0), axis=-1
    )


def chunked(
    unembed: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    tokens: jax.Array,
    *,
    chunk_tokens: int = 512,
    with_entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Token log-probabilities (and entropies) without ever holding all logits.

    The head runs on `chunk_tokens` tokens at a time; the backward pass computes each chunk's
    logits again, so that memory grows with the chunk and not with the batch.

    Args:
        unembed: [N, D] -> [N, V] float logits, temperature included.
        hidden: [..., D] float, the state that predicts each token.
        tokens: [...] int, the tokens predicted.
        chunk_tokens: tokens whose logits are held at once; chunk_tokens · V · 4 bytes.
        with_entropy: also the entropy of each distribution, which no gradient flows through.

    Returns:
        [...] float32 log-probabilities in nats, and [...] float32 entropies or None.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    >>> hidden, tokens = jnp.eye(3), jnp.arange(3)
    >>> log_probs, _ = chunked(lambda h: h, hidden, tokens, chunk_tokens=2)
    >>> bool(jnp.allclose(log_probs, token_log_probs(hidden, tokens)))
    True
    """
    chex.assert_type([hidden, tokens], [float, int])
    chex.assert_shape(tokens, hidden.shape[:-1])
    shape = tokens.shape
    hidden, tokens = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
    count = tokens.size

    @jax.checkpoint
    def head(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        logits = unembed(chunk[0])
        entropies = entropy(jax.lax.stop_gradient(logits)) if with_entropy else None
        return token_log_probs(logits, chunk[1]), entropies

    if count <= chunk_tokens:
        log_probs, entropies = head((hidden, tokens))
    else:
        # Chunks of equal size as near to chunk_tokens as the count allows; few padded tokens.
        num_chunks = -(-count // chunk_tokens)
        width = -(-count // num_chunks)
        padding = num_chunks * width - count
        hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(num_chunks, width, -1)
        tokens = jnp.pad(tokens, (0, padding)).reshape(num_chunks, width)
        log_probs, entropies = jax.tree.map(
            lambda x: x.reshape(-1)[:count], jax.lax.map(head, (hidden, tokens))
        )
    return jax.tree.map(lambda x: x.reshape(shape), (log_probs, entropies))
