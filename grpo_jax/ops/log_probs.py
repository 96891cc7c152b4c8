"""What a distribution says of given tokens: log-probabilities and entropies, float32 inside."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import support as supports
from grpo_jax.ops.precision import working_dtype

_KEPT_CHUNKS = 4
"""So few chunks keep their logits for the backward pass: a product of the head is saved."""


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
    return log_probs_and_entropy(logits, tokens)[0]


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of softmax(logits), from the full distribution.

        H = logsumexp(z) - Σ_v softmax(z)_v z_v

    Args:
        logits: [..., V] float; -inf takes a token out of the support.

    Returns:
        [...] float32 (float64 for float64 input), in nats; between 0 and log V. The gradient is
        -p_v (log p_v + H), and 0 for tokens outside the support.

    Raises:
        AssertionError: while tracing, unless `logits` is a float array.

    >>> entropy(jnp.zeros([1, 4])).round(4)
    Array([1.3863], dtype=float32)
    """
    chex.assert_type(logits, float)
    return log_probs_and_entropy(logits, jnp.zeros(logits.shape[:-1], jnp.int32))[1]


def log_probs_and_entropy(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_log_probs` and `entropy` by one look at the logits, and one more for the gradient.

        log π = z_token - m - log S,    H = log S - D / S,
        with m = max z, S = Σ_v exp(z_v - m) and D = Σ_v (z_v - m) exp(z_v - m)

    Args:
        logits: [..., V] float; -inf takes a token out of the support.
        tokens: [...] int, in 0..V-1.

    Returns:
        two arrays [...] float32 (float64 for float64 input), in nats. Gradients are of reverse mode
        (`jax.grad`, `jax.vjp`, one within another), here and in those two.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    >>> log_prob, entropy = log_probs_and_entropy(jnp.zeros([1, 4]), jnp.array([2]))
    >>> log_prob.round(4), entropy.round(4)
    (Array([-1.3863], dtype=float32), Array([1.3863], dtype=float32))
    """
    chex.assert_type([logits, tokens], [float, int])
    chex.assert_shape(tokens, logits.shape[:-1])
    log_prob, entropy, _ = _said(logits.astype(working_dtype(logits)), tokens)
    return log_prob, entropy


@jax.custom_vjp
def _said(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability, entropy, and what logits are normalised by: logsumexp."""
    # Sums over the long axis in columns of blocks, both in one pass: along a row XLA's on CPU go
    # number by number, and it would compute the exponentials again for each sum.
    size = logits.shape[-1]
    width = min(size & -size, 256)  # divides the size
    blocks = logits.reshape(*logits.shape[:-1], -1, width if width >= 16 else 1)
    top = blocks.max(axis=-2).max(axis=-1)
    below = blocks - top[..., None, None]
    mass = jnp.exp(below)
    # 0 · -inf is NaN: outside the support a token adds nothing.
    moment = mass * jnp.maximum(below, -1e4)
    zero = jnp.zeros([], logits.dtype)
    sums = jax.lax.reduce((mass, moment), (zero, zero), _add_pairs, (blocks.ndim - 2,))
    total, moment = (x.sum(axis=-1) for x in sums)
    log_total = jnp.log(total)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    entropy = log_total - moment / total
    norm = top + log_total
    return chosen - norm, entropy, norm


def _add_pairs(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return a[0] + b[0], a[1] + b[1]


def _said_forward(logits: jax.Array, tokens: jax.Array) -> tuple[Any, Any]:
    # By itself, so that a gradient of the gradient is taken by the same rule.
    said = _said(logits, tokens)
    return said, (logits, tokens, *said[1:])


def _said_backward(residuals: Any, cotangents: Any) -> tuple[jax.Array, None]:
    """(1[v = token] - π_v) of the log-probability, -π_v (log π_v + H) of the entropy, π_v of the
    norm."""
    logits, rows = residuals[0], residuals[1:]
    tokens, entropy, norm = (x[..., None] for x in rows)
    of_log_prob, of_entropy, of_norm = (x[..., None] for x in cotangents)
    log_probs = logits - norm
    probs = jnp.exp(log_probs)
    token = jax.lax.broadcasted_iota(tokens.dtype, probs.shape, probs.ndim - 1) == tokens
    surprise = jnp.where(probs > 0, log_probs, 0)
    by_prob = of_norm - of_log_prob - of_entropy * (surprise + entropy)
    return jnp.where(token, of_log_prob, 0) + by_prob * probs, None


_said.defvjp(_said_forward, _said_backward)


def sum_sq_probs(logits: jax.Array) -> jax.Array:
    """Σ_v softmax(logits)_v²: the probability that two draws are the same token.

    Args:
        logits: [..., V] float; -inf takes a token out of the support.

    Returns:
        [...] float32 (float64 for float64 input), between 1 / V and 1.

    Raises:
        AssertionError: while tracing, unless `logits` is a float array.

    Reference: the optimal token baseline, arXiv:2602.07078, needs it: with π that of the token,
    1 - 2 π + Σ_v π_v² is the squared length of the gradient of log π in the logits.

    >>> sum_sq_probs(jnp.zeros([1, 4])).tolist()
    [0.25]
    """
    chex.assert_type(logits, float)
    logits = logits.astype(working_dtype(logits))
    return jnp.square(jax.nn.softmax(logits, axis=-1)).sum(axis=-1)


class TokenStats(NamedTuple):
    """What `chunked` says of each token; None for what was not asked.

    Attributes:
        log_probs: [...] log-probabilities in nats, under the whole distribution.
        entropy: [...] in nats; gradients flow through it only if asked.
        sum_sq_probs: [...], without gradient (it is for a baseline).
        support_log_mass: [...] in nats, the log of the probability of the token's support;
            `log_probs - support_log_mass` is renormalised over it.
        balance: of a network of experts, how unevenly the tokens of each sequence fall on them
            (`routing.load_balance`).
    """

    log_probs: jax.Array
    entropy: jax.Array | None = None
    sum_sq_probs: jax.Array | None = None
    support_log_mass: jax.Array | None = None
    balance: jax.Array | None = None

    @property
    def drawn(self) -> jax.Array:
        """[...] log-probabilities under what was drawn from: renormalised where it was kept."""
        if self.support_log_mass is None:
            return self.log_probs
        return self.log_probs - self.support_log_mass


def chunked(
    unembed: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    tokens: jax.Array,
    *,
    support: jax.Array | None = None,
    chunk_tokens: int = 512,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
    with_sum_sq_probs: bool = False,
) -> TokenStats:
    """Token log-probabilities, and what else is asked, without ever holding all logits.

    The head runs on `chunk_tokens` tokens at a time. From the fifth chunk on the backward pass
    computes each chunk's logits again, so that memory grows with the chunk and not with the batch.

    Args:
        unembed: [N, D] -> [N, V] float logits, temperature included.
        hidden: [..., D] float, the state that predicts each token.
        tokens: [...] int, the tokens predicted.
        support: [..., ceil(V / 8)] uint8, what each token was drawn from (`support.pack`), for
            `support_log_mass`.
        chunk_tokens: tokens of a chunk; its logits take chunk_tokens · V · 4 bytes. The backward
            pass holds those of four, and two or three arrays of that size while it is at one.
        with_entropy: also the entropy of each distribution.
        entropy_gradient: let gradients flow through the entropy, as an entropy bonus needs.
        with_sum_sq_probs: also Σ_v π_v² of each distribution.

    Returns:
        float32 arrays [...] (float64 for float64 logits).

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.
        ValueError: a gradient of the entropy without the entropy.

    >>> hidden, tokens = jnp.eye(3), jnp.arange(3)
    >>> stats = chunked(lambda h: h, hidden, tokens, chunk_tokens=2)
    >>> bool(jnp.allclose(stats.log_probs, token_log_probs(hidden, tokens)))
    True
    """
    chex.assert_type([hidden, tokens], [float, int])
    chex.assert_shape(tokens, hidden.shape[:-1])
    if entropy_gradient and not with_entropy:
        raise ValueError("entropy_gradient is True without an entropy; set with_entropy=True")
    shape = tokens.shape
    rows = (hidden, tokens[..., None])
    if support is not None:
        chex.assert_type(support, jnp.uint8)
        chex.assert_shape(support, (*shape, None))
        rows = (*rows, support)
    rows = tuple(x.reshape(-1, x.shape[-1]) for x in rows)
    count = tokens.size

    def head(chunk: tuple[jax.Array, ...]) -> TokenStats:
        logits, token = unembed(chunk[0]), chunk[1][:, 0]
        constant = jax.lax.stop_gradient(logits)
        log_prob, spread = log_probs_and_entropy(logits, token)
        if not entropy_gradient:
            spread = jax.lax.stop_gradient(spread)
        log_mass = None
        if support is not None:
            kept = supports.unpack(chunk[2], size=logits.shape[-1])
            log_mass = supports.log_mass(logits, kept, token)
        return TokenStats(
            log_prob,
            spread if with_entropy else None,
            sum_sq_probs(constant) if with_sum_sq_probs else None,
            log_mass,
        )

    if count <= chunk_tokens:
        stats = head(rows)  # its logits are kept: the backward pass comes right after
    else:
        # Chunks of equal size as near to chunk_tokens as the count allows; few padded tokens.
        num_chunks = -(-count // chunk_tokens)
        width = -(-count // num_chunks)
        padding = num_chunks * width - count
        chunks = tuple(
            jnp.pad(x, ((0, padding), (0, 0))).reshape(num_chunks, width, -1) for x in rows
        )
        body = head if num_chunks <= _KEPT_CHUNKS else jax.checkpoint(head)
        stats = jax.lax.map(body, chunks)
        stats = jax.tree.map(lambda x: x.reshape(-1)[:count], stats)
    return jax.tree.map(lambda x: x.reshape(shape), stats)
