"""A group's attention without its matrix of scores: cuDNN on NVIDIA GPUs, splash on TPUs.

Each kernel here is the function of `attention.group_attention` where the slots are the queries'
own tokens (scoring, training, prefill), and takes its arguments without the offset. The prompt's
keys are read once for the group, never repeated for its G completions. P prompts, G completions,
S tokens each, L prompt tokens; K key/value heads, R query heads to each, H channels a head.

Not run on a GPU or a TPU yet. What the tests run on CPU: the merging of the cuDNN parts, in
float64 and through JAX's cuDNN code with the two cuDNN calls themselves replaced; the splash
kernels in Pallas' interpreter. scripts/tpu_attention_compiles.py compiles those for TPUs.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

# (query, keys, values, prompt_keys=None, prompt_values=None, prompt_mask=None) -> attended
Kernel = Callable[..., jax.Array]
# (query, key, value, lengths or None, *, is_causal) -> out, log-sum-exp; see cudnn_part
Part = Callable[..., tuple[jax.Array, jax.Array]]

_LANES = 128  # the splash kernels' blocks are whole multiples of a TPU's lanes
# Of queries times of keys. Their table is made on the host, this one in 7 s, and lies in the TPU's
# scalar memory, where one four times as large still found room in a v5e's compiler.
_MAX_BLOCKS = 2**14


def kernel_for(
    platform: str,
    *,
    dtype: Any,
    head_dim: int,
    num_queries: int,
    group_size: int = 1,
    prompt_len: int = 0,
    compute_capability: str = "8.0",
) -> Kernel | None:
    """The kernel for these shapes, or None where `group_attention` itself is to serve.

    Args:
        platform: as `jax.default_backend()` says: "gpu" (taken for NVIDIA's) or "cuda", "tpu".
        dtype: of queries, keys and values alike.
        head_dim: H.
        num_queries: S, tokens of one completion; 1 in decoding.
        group_size: G.
        prompt_len: L, padding included; 0 where no prompt comes before.
        compute_capability: of the GPU, as `jax.Device.compute_capability` says.

    Returns:
        `merged_group_attention`, `splash_group_attention` or None.

    >>> kernel_for("gpu", dtype=jnp.bfloat16, head_dim=128, num_queries=1024).__name__
    'merged_group_attention'
    >>> kernel_for("cpu", dtype=jnp.float32, head_dim=128, num_queries=1024) is None
    True
    """
    dtype = jnp.dtype(dtype)
    if platform in ("gpu", "cuda"):
        numbers = compute_capability.split(".")
        if not all(number.isdecimal() for number in numbers):  # AMD's, as gfx90a
            return None
        capability = tuple(map(int, numbers))
        # cuDNN's rules (jax/_src/cudnn/fused_attention_stablehlo.py): half precision; whole
        # multiples of 8 channels, 128 of them before Hopper; even lengths, to which the kernel
        # pads. The flash kernels need Ampere. float16 is left out: its range is too short for
        # the products in `_attend_bwd`.
        widest = 256 if capability >= (9, 0) else 128
        fits = head_dim % 8 == 0 and head_dim <= widest and capability >= (8, 0)
        pays = num_queries > 1  # one query after a cache is not causal from the first slot
        return merged_group_attention if fits and pays and dtype == jnp.bfloat16 else None
    if platform == "tpu":
        padded, prompt, block = _blocks(num_queries, prompt_len)
        queries = group_size * padded // block
        fits = queries * (prompt // block + queries) <= _MAX_BLOCKS
        fits &= head_dim % 8 == 0 and head_dim <= 256  # more was not compiled
        # Fewer queries than fill half a block are mostly padding.
        pays = 2 * num_queries >= _LANES
        kinds = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
        return splash_group_attention if fits and pays and dtype in kinds else None
    return None


def kernel_here(query: jax.Array, prompt_len: int) -> Kernel | None:
    """`kernel_for` the default backend and the shape of queries [P, G, S, K, R, H]."""
    platform = jax.default_backend()
    on_gpu = platform == "gpu"
    return kernel_for(
        platform,
        dtype=query.dtype,
        head_dim=query.shape[-1],
        num_queries=query.shape[2],
        group_size=query.shape[1],
        prompt_len=prompt_len,
        compute_capability=jax.devices()[0].compute_capability if on_gpu else "8.0",
    )


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
    _check_shapes(query, keys, values, prompt_keys, prompt_values, prompt_mask)
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


def splash_group_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    prompt_keys: jax.Array | None = None,
    prompt_values: jax.Array | None = None,
    prompt_mask: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """One call for a group, over the prompt and then all completions' keys, by splash attention.

    A static mask lets a completion see the prompt and its own past; blocks of keys that it leaves
    empty are not computed. Each completion is padded to whole blocks, so that the mask has one
    partial block, the diagonal one. A padded query sees its completion's real keys, hence no row
    is empty; a padded key comes after all real queries. The prompt's padding goes by segments.

    Lengths S and L that are multiples of 512 run fastest. XLA does not partition the kernel: over
    several devices the call belongs into a `jax.shard_map` over prompts or key heads.

    Args:
        query: [P, G, S, K, R, H] bfloat16 or float32; scaled in that type, as the kernel does not.
        keys: [P, G, K, S, H], likewise; the completions' own, token t sees the slots 0..t.
        values: [P, G, K, S, H].
        prompt_keys: [P, K, L, H], or None where no prompt comes before (in the prompt).
        prompt_values: [P, K, L, H].
        prompt_mask: [P, L] bool, True on real tokens; a prompt may have none.
        interpret: run in Pallas' interpreter, on any platform and slowly.

    Returns:
        [P, G, S, K, R, H], in the type of `query`.

    Raises:
        AssertionError: while tracing, unless the shapes are these.

    Reference: jax.experimental.pallas.ops.tpu.splash_attention.
    """
    # Pallas takes 0.2 s to import; only those who call this wait.
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    _check_shapes(query, keys, values, prompt_keys, prompt_values, prompt_mask)
    num_prompts, group_size, num_queries, kv_heads, repeats, head_dim = query.shape
    prompt_len = 0 if prompt_keys is None else prompt_keys.shape[2]
    padded, padded_prompt, block = _blocks(num_queries, prompt_len)

    def one_after_another(x, heads):
        """[P, G, heads, S, H] -> [P, heads, G · padded S, H]."""
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, padded - num_queries), (0, 0)])
        return x.swapaxes(1, 2).reshape(num_prompts, heads, group_size * padded, head_dim)

    scaled = (query * head_dim**-0.5).astype(query.dtype)
    scaled = scaled.reshape(*query.shape[:3], kv_heads * repeats, head_dim).swapaxes(2, 3)
    scaled = one_after_another(scaled, kv_heads * repeats)
    key, value = (one_after_another(x, kv_heads) for x in (keys, values))
    segments = None
    if prompt_keys is not None and prompt_values is not None and prompt_mask is not None:
        padding = padded_prompt - prompt_len
        key, value = (
            jnp.concatenate([jnp.pad(x, [(0, 0), (0, 0), (0, padding), (0, 0)]), own], axis=2)
            for x, own in ((prompt_keys, key), (prompt_values, value))
        )
        real = jnp.ones([num_prompts, group_size * padded], jnp.int32)
        prompt = jnp.pad(prompt_mask.astype(jnp.int32), [(0, 0), (0, padding)])
        segments = SegmentIds(q=real, kv=jnp.concatenate([prompt, real], axis=1))
    kernel = _splash_kernel(kv_heads * repeats, group_size, padded, padded_prompt, block, interpret)
    out = jax.vmap(kernel)(scaled, key, value, segments)
    out = out.reshape(num_prompts, kv_heads, repeats, group_size, padded, head_dim)
    return out.transpose(0, 3, 4, 1, 2, 5)[:, :, :num_queries]


def _blocks(num_queries: int, prompt_len: int) -> tuple[int, int, int]:
    """Completion and prompt length padded to whole blocks, and the length of a block.

    The block is the longest that makes the completion no longer than blocks of 128 would: it is
    the completion whose padding is repeated G times.
    """
    padded = -(-num_queries // _LANES) * _LANES
    block = next(size for size in (512, 256, _LANES) if padded % size == 0)
    return padded, -(-prompt_len // block) * block, block


@functools.lru_cache(maxsize=64)
def _splash_kernel(
    num_heads: int,
    group_size: int,
    num_queries: int,
    prompt_len: int,
    block: int,
    interpret: bool,
) -> Any:
    """The splash kernel of one group: [heads, G · S, H] over [K, L + G · S, H]."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    class GroupMask(splash.Mask):
        """The prompt, and of the completions one's own past; built a block at a time."""

        @property
        def shape(self):
            return group_size * num_queries, prompt_len + group_size * num_queries

        def __getitem__(self, index):
            # A block lies in the prompt or in one completion: both are whole blocks. Most are all
            # one thing, and there are too many of those to compare each by elements.
            rows, columns = (range(*x.indices(n)) for x, n in zip(index, self.shape, strict=True))
            first, last = columns[0] - prompt_len, columns[-1] - prompt_len
            shape = len(rows), len(columns)
            if last < 0:
                return np.broadcast_to(np.True_, shape)
            if first > rows[-1] or last < rows[0] // num_queries * num_queries:
                return np.broadcast_to(np.False_, shape)
            return np.array(rows)[:, None] >= np.array(columns)[None] - prompt_len

    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    # The tables of blocks must outlive the trace that first asks for them.
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha_single_device(
            splash.MultiHeadMask([GroupMask()] * num_heads),
            block_sizes=sizes,
            interpret=interpret,
        )


def _check_shapes(query, keys, values, prompt_keys, prompt_values, prompt_mask):
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
