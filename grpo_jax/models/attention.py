"""Attention of a group's completions over their shared prompt and themselves, and rotary positions.

K key/value heads, R query heads to each, H channels a head.
"""

import jax
import jax.numpy as jnp


def rotary(x: jax.Array, positions: jax.Array, *, theta: float) -> jax.Array:
    """Turns each pair of channels (i, i + H/2) by the angle position · theta^(-2i/H).

    Args:
        x: [..., S, heads, H] float, H even.
        positions: [..., S] int.
        theta: the base of the frequencies (`rope_theta`).

    Returns:
        As `x`.

    Reference: RoFormer, arXiv:2104.09864, equation 34, in the half-split layout of Llama
    checkpoints on the Hugging Face hub.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    # A product of scalars and not a matrix product: on TPU that would round angles to bfloat16.
    frequencies = jnp.expand_dims(frequencies, range(positions.ndim + 1))
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    low, high = x[..., :half], x[..., half:]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def group_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    offset: jax.Array | int,
    prompt_keys: jax.Array | None = None,
    prompt_values: jax.Array | None = None,
    prompt_mask: jax.Array | None = None,
) -> jax.Array:
    """One softmax over the prompt's keys, shared by the group, and each completion's own (causal).

    The prompt's keys are contracted against as they are, never repeated for the G completions.

    Args:
        query: [P, G, S, K, R, H] float, the queries of S consecutive tokens.
        keys: [P, G, K, T, H] float, the completions' own; slot t holds token t.
        values: [P, G, K, T, H] float.
        offset: how many tokens come before the first query; it sees the slots 0..offset.
        prompt_keys: [P, K, L, H] float, or None where no prompt comes before (in the prompt).
        prompt_values: [P, K, L, H] float.
        prompt_mask: [P, L] bool, True on real tokens.

    Returns:
        [P, G, S, K, R, H], in the type of `values`.
    """
    scale = query.shape[-1] ** -0.5
    num_queries, num_slots = query.shape[2], keys.shape[3]
    lowest = jnp.finfo(jnp.float32).min
    own = jnp.einsum("pgskrh,pgkth->pgksrt", query, keys, preferred_element_type=jnp.float32)
    causal = jnp.arange(num_slots)[None] <= offset + jnp.arange(num_queries)[:, None]
    scores = jnp.where(causal[None, None, None, :, None, :], own * scale, lowest)
    if prompt_keys is not None and prompt_values is not None and prompt_mask is not None:
        shared = jnp.einsum(
            "pgskrh,pklh->pgksrl", query, prompt_keys, preferred_element_type=jnp.float32
        )
        shared = jnp.where(prompt_mask[:, None, None, None, None, :], shared * scale, lowest)
        scores = jnp.concatenate([shared, scores], axis=-1)
    probs = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    out = jnp.einsum("pgksrt,pgkth->pgskrh", probs[..., -num_slots:], values)
    if prompt_values is not None:
        out += jnp.einsum("pgksrl,pklh->pgskrh", probs[..., :-num_slots], prompt_values)
    return out
