"""Batches cut into parts of whole groups, so that few activations are held at once."""

from typing import TypeVar

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
    """[P, ...] -> [number of parts, at most size, ...], as equal as can be; the last is filled up
    with zeros, and so with groups whose mask and weights are 0."""
    count = jax.tree.leaves(tree)[0].shape[0]
    num_parts = -(-count // size)
    size = -(-count // num_parts)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, num_parts * size - count)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(num_parts, size, *x.shape[1:])

    return jax.tree.map(cut, tree)


def joined(tree: Tree, count: int) -> Tree:
    """What `in_parts` cut, again: [number of parts, size, ...] -> [P, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)
