"""Attention of a group's completions over their shared prompt and themselves.

K key/value heads, R query heads to each, H channels a key, V a value.
"""

import functools

import chex
import jax
import jax.numpy as jnp


def group_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    prompt_keys: jax.Array | None = None,
    prompt_values: jax.Array | None = None,
    prompt_visible: jax.Array | None = None,
    *,
    scale: float,
    cap: float = 0.0,
) -> jax.Array:
    """One softmax over the prompt's keys, shared by the group, and each completion's own.

    The prompt's keys are contracted against as they are, never repeated for the G completions. Axes
    are in the order in which both products are plain batches of matrix products.

    Args:
        query: [P, G, S, K, R, H] float, the queries of S consecutive tokens.
        keys: [P, K, G, H, T] float, the completions' own, in any order of slots.
        values: [P, K, G, T, V] float.
        visible: [P or 1, G or 1, S, T] bool, the slots that each query sees; at least one.
        prompt_keys: [P, K, H, L] float, or None where no prompt comes before (in the prompt).
        prompt_values: [P, K, L, V] float.
        prompt_visible: [P, G or 1, S or 1, L] bool, the tokens of the prompt that each query sees.
        scale: scores are multiplied by it.
        cap: c of c · tanh(score / c), which scores go through before the softmax; 0 for none.

    Returns:
        [P, G, S, K, R, V], in the type of `values`.
    """
    num_prompts, group_size, num_queries, kv_heads, ratio, width = query.shape
    query = query.transpose(0, 3, 1, 2, 4, 5)  # [P, K, G, S, R, H]
    own = query.reshape(num_prompts, kv_heads, group_size, num_queries * ratio, width)
    parts = [(own, keys, values, visible[:, None, :, :, None])]
    if prompt_keys is not None and prompt_values is not None and prompt_visible is not None:
        shared = own.reshape(num_prompts, kv_heads, -1, width)
        mask = prompt_visible[:, None, :, :, None]
        parts.append((shared, prompt_keys, prompt_values, mask))

    rows = (num_prompts, kv_heads, group_size, num_queries, ratio)
    lowest = jnp.finfo(jnp.float32).min
    scores = []
    for queries, part_keys, _, mask in parts:
        product = jnp.matmul(queries, part_keys, preferred_element_type=jnp.float32)
        score = product.reshape(*rows, -1) * scale
        score = cap * jnp.tanh(score / cap) if cap else score
        scores.append(jnp.where(mask, score, lowest))
    # One softmax over the parts: a common maximum, a common sum, and no copy to put them in a row.
    highest = functools.reduce(jnp.maximum, [s.max(axis=-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(highest)) for s in scores]
    total = functools.reduce(jnp.add, [w.sum(axis=-1, keepdims=True) for w in weights])
    attended = [
        jnp.matmul(
            weight.reshape(*queries.shape[:-1], -1).astype(part_values.dtype),
            part_values,
            preferred_element_type=jnp.float32,
        ).reshape(*rows, values.shape[-1])
        for weight, (queries, _, part_values, _) in zip(weights, parts, strict=True)
    ]
    out = functools.reduce(jnp.add, attended) / total
    return out.astype(values.dtype).transpose(0, 2, 3, 1, 4, 5)


def check_kernel_shapes(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    prompt_keys: jax.Array | None,
    prompt_values: jax.Array | None,
    prompt_mask: jax.Array | None,
) -> None:
    """Raises AssertionError unless the shapes are those that a kernel in the place of
    `group_attention` takes: tokens before channels, and slots that are the queries' own."""
    chex.assert_rank(query, 6)
    num_prompts, group_size, num_queries, kv_heads, _, head_dim = query.shape
    own = (num_prompts, group_size, kv_heads, num_queries, head_dim)
    chex.assert_shape([keys, values], own)
    chex.assert_equal(prompt_keys is None, prompt_mask is None)
    chex.assert_equal(prompt_keys is None, prompt_values is None)
    if prompt_keys is not None:
        prompt = (num_prompts, kv_heads, prompt_keys.shape[2], head_dim)
        chex.assert_shape([prompt_keys, prompt_values], prompt)
        chex.assert_shape(prompt_mask, (num_prompts, prompt[2]))
