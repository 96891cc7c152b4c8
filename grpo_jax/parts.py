"""Batches cut into parts of whole groups, so that few activations are held at once."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from grpo_jax.memory import micro_batch_tokens
from grpo_jax.types import Params, Rollout

Tree = TypeVar("Tree")


def groups_at_once(rollout: Rollout, params: Params, num_tokens: int) -> int:
    """How many groups go through the network together, at least one.

    Args:
        rollout: P groups of G completions of T tokens.
        params: of the network, or their shapes.
        num_tokens: held at once (prompts once, completions each, padding included); 0 chooses by
            the memory of the machine.
    """
    _, group_size, length = rollout.completion.shape
    group_tokens = rollout.prompt.shape[1] + group_size * length
    return max(1, (num_tokens or micro_batch_tokens(params)) // group_tokens)


def in_parts(tree: Tree, size: int) -> Tree:
    """[P, ...] -> [number of parts, at most size, ...], as equal as can be.

    The last is filled up with groups of the last prompt (a network of somebody's own may divide by
    the length of a prompt) in which all else is 0, masks and weights too.
    """
    count = jax.tree.leaves(tree)[0].shape[0]
    num_parts = -(-count // size)
    size = -(-count // num_parts)

    def cut(path: Any, x: jax.Array) -> jax.Array:
        widths = [(0, num_parts * size - count)] + [(0, 0)] * (x.ndim - 1)
        of_prompt = getattr(path[-1], "name", "") in ("prompt", "prompt_mask")
        x = jnp.pad(x, widths, mode="edge" if of_prompt else "constant")
        return x.reshape(num_parts, size, *x.shape[1:])

    return jax.tree.map_with_path(cut, tree)


def joined(tree: Tree, count: int) -> Tree:
    """What `in_parts` cut, again: [number of parts, size, ...] -> [P, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)
