"""A group's attention on TPUs: splash attention over the prompt and then all completions' keys.

P prompts, G completions, S tokens each, L prompt tokens; K key/value heads, R query heads to each,
H channels a head.

Not run on a TPU yet. The tests run the kernels in Pallas' interpreter, and
scripts/tpu_attention_compiles.py compiles them for TPUs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.attention import check_kernel_shapes

LANES = 128
"""The kernels' blocks are whole multiples of a TPU's lanes."""


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

    check_kernel_shapes(query, keys, values, prompt_keys, prompt_values, prompt_mask)
    num_prompts, group_size, num_queries, kv_heads, repeats, head_dim = query.shape
    prompt_len = 0 if prompt_keys is None else prompt_keys.shape[2]
    padded, padded_prompt, block = blocks(num_queries, prompt_len)

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


def blocks(num_queries: int, prompt_len: int) -> tuple[int, int, int]:
    """Completion and prompt length padded to whole blocks, and the length of a block.

    The block is the longest that makes the completion no longer than blocks of 128 would: it is
    the completion whose padding is repeated G times.
    """
    padded = -(-num_queries // LANES) * LANES
    block = next(size for size in (512, 256, LANES) if padded % size == 0)
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
