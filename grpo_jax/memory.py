"""How much is held at once, where nobody says: from the size of the machine's memory.

Never from what is free at the moment: sums would then be cut in other places, and a resumed run
would not repeat its bits.
"""

import os
from pathlib import Path

import jax

from grpo_jax.types import STACK, Params

_HEAD_SHARE = 128
"""Part of the memory that one chunk of logits may take; a backward pass holds about six."""
_CPU_TOKENS = 1024
"""Where the products of a 135 M decoder on two cores are as fast as they get; beyond, only the
memory grows, and with it the time that the system takes to hand it out."""
_ACTIVATION_SHARE = 3
_CONTAINER_LIMITS = tuple(
    Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")
)
_DECODING_SHARE = 4
"""Part of the memory for keys and values; moving them takes as much again for a moment."""


def device_bytes() -> int:
    """Memory of one device: what the allocator may use on an accelerator, the machine's on CPU."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return int(limit) if limit else host_bytes()


def host_bytes() -> int:
    """The machine's memory, or what its container may use of it."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CONTAINER_LIMITS:
        if path.is_file() and path.read_text().strip().isdecimal():  # and not "max"
            found.append(int(path.read_text()))
    return min(found)


def head_chunk_tokens(vocab_size: int) -> int:
    """Tokens whose logits [tokens, V] float32 are held at once."""
    return max(16, device_bytes() // _HEAD_SHARE // (4 * vocab_size))


def groups_in_memory(group_bytes: int) -> int:
    """How many groups are decoded at once, of which each keeps so many bytes; at least one."""
    return max(1, device_bytes() // _DECODING_SHARE // max(1, group_bytes))


def micro_batch_tokens(params: Params) -> int:
    """Tokens whose activations are held at once in a forward and backward pass.

    On an accelerator as many as fill a third of its memory, by what each matrix product reads and
    writes; a matrix much wider than deep is taken for the head, which has chunks of its own.

    Args:
        params: of the network, or their shapes.
    """
    if jax.default_backend() == "cpu":
        return _CPU_TOKENS
    held = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        stacked = leaf.ndim > 2 and any(getattr(key, "key", None) == STACK for key in path)
        if leaf.ndim >= 2 and max(leaf.shape[-2:]) <= 8 * min(leaf.shape[-2:]):
            # A stack counts for each of its layers, experts for one: a token takes few of them.
            held += (leaf.shape[0] if stacked else 1) * sum(leaf.shape[-2:])
    return max(_CPU_TOKENS, device_bytes() // _ACTIVATION_SHARE // max(4 * held, 1))
