"""The support a token was drawn from (top-k, top-p, min-p), kept from sampling for training.

A sampler that cuts the support draws from a renormalised distribution. To train on what was drawn,
the policy is renormalised over the same tokens, whatever it thinks of them by then:
`token_log_probs(logits, tokens) - log_mass(logits, support, tokens)`.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops.precision import working_dtype


def pack(kept: jax.Array) -> jax.Array:
    """One bit for each token of the vocabulary, eight in a byte.

    Args:
        kept: [..., V] bool, True on the tokens that could be drawn.

    Returns:
        [..., ceil(V / 8)] uint8; the bits beyond V are 0.

    Raises:
        AssertionError: while tracing, unless `kept` is a bool array.

    >>> pack(jnp.array([True, False, False, False, False, False, False, True, True])).tolist()
    [129, 128]
    """
    chex.assert_type(kept, bool)
    return jnp.packbits(kept, axis=-1)


def unpack(packed: jax.Array, *, size: int) -> jax.Array:
    """The support that `pack` packed.

    Args:
        packed: [..., ceil(size / 8)] uint8.
        size: V, the size of the vocabulary.

    Returns:
        [..., V] bool.

    Raises:
        AssertionError: while tracing, unless `packed` is a uint8 array.
        ValueError: it is not as wide as `size` needs.

    >>> unpack(pack(jnp.array([True, False, True])), size=3).tolist()
    [True, False, True]
    """
    chex.assert_type(packed, jnp.uint8)
    if packed.shape[-1] != -(-size // 8):
        raise ValueError(
            f"size is {size}; a support of {packed.shape[-1]} bytes holds "
            f"{packed.shape[-1] * 8 - 7} to {packed.shape[-1] * 8} tokens: give the vocabulary "
            "that it was packed with"
        )
    return jnp.unpackbits(packed, axis=-1, count=size).astype(bool)


def log_mass(logits: jax.Array, support: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log of the probability that the policy gives to a support.

        log Σ_{v in support or v = token} softmax(logits)_v

    Subtracted from the token's log-probability it renormalises it over the support; the gradient
    is that of a softmax over the support alone.

    Args:
        logits: [..., V] float, temperature included; -inf takes a token out.
        support: [..., V] bool, True on the tokens that could be drawn.
        tokens: [...] int, the tokens drawn, in 0..V-1.

    Returns:
        [...] float32 (float64 for float64 input), in nats, 0 or less (up to rounding); exactly 0
        for the whole vocabulary.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: DeepSeek-V3.2, arXiv:2512.02556, section 3.1 (keep sampling mask).
    Choice: the token drawn always belongs to its support, as in THUDM/slime: it was drawn, and a
    support that was cut by another rounding must not call it impossible. Where nothing of the
    support has any probability there is nothing to renormalise: 0, without gradient, so that the
    difference is the token's own -inf and not NaN.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> jnp.exp(log_mass(logits, jnp.array([True, False, False]), jnp.array(1))).round(3)
    Array(0.8, dtype=float32)
    """
    chex.assert_type([logits, support, tokens], [float, bool, int])
    chex.assert_equal_shape([logits, support])
    chex.assert_shape(tokens, logits.shape[:-1])
    logits = logits.astype(working_dtype(logits))
    drawn = jax.nn.one_hot(tokens, logits.shape[-1], dtype=bool)
    kept = support | drawn
    # logsumexp of nothing but -inf has a gradient of NaN.
    possible = (kept & (logits > -jnp.inf)).any(axis=-1, keepdims=True)
    kept = jnp.where(kept | ~possible, logits, -jnp.inf)
    return jax.nn.logsumexp(kept, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
