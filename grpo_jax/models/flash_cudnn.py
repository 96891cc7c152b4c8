"""A group's attention on NVIDIA GPUs: cuDNN over the prompt and over the completions, merged.

P prompts, G completions, S tokens each, L prompt tokens; K key/value heads, R query heads to each,
H channels a head.

Not run on a GPU yet. The tests run the merging on CPU, in float64 and through JAX's cuDNN code with
the two cuDNN calls themselves replaced.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.attention import check_kernel_shapes

# (query, key, value, lengths or None, *, is_causal) -> out, log-sum-exp; see cudnn_part
Part = Callable[..., tuple[jax.Array, jax.Array]]


def cudnn_part(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
    *,
    is_causal: bool,
) -> tuple[jax.Array, jax.Array]:
    """Attention by cuDNN and its natural log-sum-exp; no gradient flows through the latter.

    Under a gradient T and U must be even: jax 0.10 to 0.12 ask for it whether or not there is a
    bias, since they pass an empty one.

    Args:
        query: [B, T, N, H] bfloat16; head n reads the keys of head n // (N / K).
        key: [B, U, K, H] bfloat16.
        value: [B, U, K, H] bfloat16.
        lengths: [B] int32, how many of the U keys are there, at least 1; None for all.
        is_causal: query t sees the keys 0..t alone.

    Returns:
        [B, T, N, H] and [B, T, N], both in the type of `query`.

    Raises:
        RuntimeError: while tracing, where JAX finds no cuDNN.
    """
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=is_causal,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
        return_residual=True,
    )


def merged_group_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    prompt_keys: jax.Array | None = None,
    prompt_values: jax.Array | None = None,
    prompt_mask: jax.Array | None = None,
    *,
    part: Part = cudnn_part,
) -> jax.Array:
    """Two attentions, over the prompt and over the completion, merged to their common softmax.

        out = w · shared + (1 - w) · own,    w = sigmoid(lse_shared - lse_own)

    All queries of a group read the prompt in one call, as if they were one long completion.

    Args:
        query: [P, G, S, K, R, H] float.
        keys: [P, G, K, S, H] float, the completions' own; token t sees the slots 0..t.
        values: [P, G, K, S, H] float.
        prompt_keys: [P, K, L, H] float, or None where no prompt comes before (in the prompt).
        prompt_values: [P, K, L, H] float.
        prompt_mask: [P, L] bool, True on real tokens, which come first; a prompt may have none.
        part: attends over one of the two, as `cudnn_part` does.

    Returns:
        [P, G, S, K, R, H], in the type of `query`.

    Raises:
        AssertionError: while tracing, unless the shapes are these.

    Reference: Hydragen, arXiv:2402.05099, merges over a shared prefix by the log-sum-exp of
    FlashAttention-2, arXiv:2307.08691, section 3.1.1.
    Choice: a gradient takes each part forward and backward twice, the second time for the
    log-sum-exp (`_attend_bwd`), for which JAX has no public gradient.
    """
    check_kernel_shapes(query, keys, values, prompt_keys, prompt_values, prompt_mask)
    if query.shape[2] % 2:  # see `cudnn_part`; a later key is hidden from the real queries
        query = jnp.pad(query, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0), (0, 0)])
        keys, values = (
            jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, 1), (0, 0)]) for x in (keys, values)
        )
        prompt = (prompt_keys, prompt_values, prompt_mask)
        return merged_group_attention(query, keys, values, *prompt, part=part)[:, :, :-1]
    num_prompts, group_size, num_queries, kv_heads, repeats, head_dim = query.shape
    rows, heads = num_prompts * group_size, kv_heads * repeats
    own_query = query.reshape(rows, num_queries, heads, head_dim)
    own_key, own_value = (
        x.swapaxes(2, 3).reshape(rows, num_queries, kv_heads, head_dim) for x in (keys, values)
    )
    if prompt_keys is None or prompt_values is None or prompt_mask is None:
        return part(own_query, own_key, own_value, None, is_causal=True)[0].reshape(query.shape)
    own, own_lse = _attend(part, True, own_query, own_key, own_value, None)
    # Nothing in padding may matter, nor get a gradient that the kernel left unwritten.
    shared_key, shared_value = (
        jnp.where(prompt_mask[:, None, :, None], x, 0).swapaxes(1, 2)
        for x in (prompt_keys, prompt_values)
    )
    if prompt_mask.shape[1] % 2:
        shared_key, shared_value = (
            jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (shared_key, shared_value)
        )
    # Over no keys at all there is no softmax: an empty prompt is read as one token of no weight.
    lengths = jnp.maximum(prompt_mask.sum(axis=1, dtype=jnp.int32), 1)
    empty = ~prompt_mask.any(axis=1)[:, None, None, None, None]
    long_query = query.reshape(num_prompts, group_size * num_queries, heads, head_dim)
    shared, shared_lse = _attend(part, False, long_query, shared_key, shared_value, lengths)
    own_lse, shared_lse = (x.reshape(query.shape[:-1]) for x in (own_lse, shared_lse))
    weight = jnp.where(empty, 0, jax.nn.sigmoid(shared_lse - own_lse))[..., None]
    own, shared = (x.reshape(query.shape) for x in (own, shared))
    return (weight * shared + (1 - weight) * own).astype(query.dtype)


def _attend_primal(part, is_causal, query, key, value, lengths) -> tuple[jax.Array, jax.Array]:
    """What `part` returns, with gradients through the log-sum-exp too, in at least float32."""
    return _attend_fwd(part, is_causal, query, key, value, lengths)[0]


def _attend_fwd(part, is_causal, query, key, value, lengths):
    attend = functools.partial(part, lengths=lengths, is_causal=is_causal)
    out, pull, lse = jax.vjp(attend, query, key, value, has_aux=True)
    return (out, _unrounded(lse, pull)), (pull, query, key, lengths)


def _attend_bwd(part, is_causal, residuals, cotangents):
    """The part's own gradient, and that of lse = log Σ_j exp(scale · q·k_j) with cotangent c.

        dq += c · scale · Σ_j p_j k_j        dk_j += Σ_q p_qj · c_q · scale · q

    The sums are those of the attention that has the keys for its values: its output, and the
    gradient with respect to the values when c · scale · q comes back.
    """
    pull, query, key, lengths = residuals
    d_out, d_lse = cotangents
    d_query, d_key, d_value = pull(d_out)

    def average(values):
        return part(query, key, values, lengths, is_causal=is_causal)[0]

    scaled = (d_lse * query.shape[-1] ** -0.5)[..., None]
    average_key, pull_values = jax.vjp(average, key)
    (more,) = pull_values((scaled * query).astype(query.dtype))
    d_query += (scaled * average_key).astype(query.dtype)
    return d_query, d_key + more, d_value, None


_attend = jax.custom_vjp(_attend_primal, nondiff_argnums=(0, 1))
_attend.defvjp(_attend_fwd, _attend_bwd)


def _unrounded(lse: jax.Array, pull: Any) -> jax.Array:
    """`lse` [B, T, N] as it was before `jax.nn.dot_product_attention` rounded it, in float32.

    In bfloat16 a number between 8 and 16 is off by up to 0.03, and so is the logarithm of a
    part's weight. The gradient keeps what the kernel wrote, as [B, N, T]. If it is there it is
    taken from there: whatever else has that shape does not round to `lse`.
    """
    if lse.dtype.itemsize >= 4:
        return lse
    wide = lse.astype(jnp.float32)
    shape = (lse.shape[0], lse.shape[2], lse.shape[1])
    for kept in jax.tree.leaves(pull):
        if jnp.shape(kept) == shape and jnp.result_type(kept) == jnp.float32:
            exact = kept.swapaxes(1, 2)
            wide = jnp.where(exact.astype(lse.dtype) == lse, exact, wide)
    return wide
