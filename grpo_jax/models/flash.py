"""Which kernel takes the place of `attention.group_attention`: cuDNN, splash, or none.

A kernel is the same function where the slots are the queries' own tokens (scoring, training,
prefill), without the matrix of scores; it takes its arguments without the mask. The prompt's keys
are read once for the group, never repeated for its G completions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.flash_cudnn import merged_group_attention
from grpo_jax.models.flash_splash import LANES, blocks, splash_group_attention

# (query, keys, values, prompt_keys=None, prompt_values=None, prompt_mask=None) -> attended
Kernel = Callable[..., jax.Array]

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
        padded, prompt, block = blocks(num_queries, prompt_len)
        queries = group_size * padded // block
        fits = queries * (prompt // block + queries) <= _MAX_BLOCKS
        fits &= head_dim % 8 == 0 and head_dim <= 256  # more was not compiled
        # Fewer queries than fill half a block are mostly padding.
        pays = 2 * num_queries >= LANES
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
