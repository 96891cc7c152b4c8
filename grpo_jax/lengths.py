"""A few widths for all lengths, so that nothing is compiled for each."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.types import Rollout

_HALVINGS = 3
_PER_TOKEN = ("completion", "completion_mask", "sampler_log_probs", "support_log_mass")
_PER_TOKEN += ("support", "routing")
_PER_PROMPT_TOKEN = ("prompt", "prompt_mask", "prompt_routing")


def bucket(length: int, longest: int) -> int:
    """The smallest of `longest` and its halves, quarters and eighths that holds `length`.

    >>> [bucket(length, 256) for length in (1, 33, 64, 200)]
    [32, 64, 64, 256]
    """
    if not length <= longest:
        raise ValueError(f"length is {length}, more than the longest, {longest}")
    widths = [-(-longest // 2**halvings) for halvings in range(_HALVINGS, -1, -1)]
    return next(width for width in widths if width >= length)


def cut(rollout: Rollout) -> Rollout:
    """A rollout as wide as the longest of its completions asks for, [P, G, T'] with T' of `bucket`.

    What is cut away is padding. Waits for the rollout.
    """
    longest = rollout.completion.shape[-1]
    written = np.flatnonzero(np.asarray(rollout.completion_mask).any(axis=(0, 1)))
    width = bucket(int(written.max(initial=0)) + 1, longest)
    if width == longest:
        return rollout
    return _of_each_token(rollout, lambda x: x[:, :, :width])


def widened(rollout: Rollout, width: int) -> Rollout:
    """The opposite of `cut`: padding up to [P, G, width]."""

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, width - x.shape[2] if axis == 2 else 0) for axis in range(x.ndim)])

    return _of_each_token(rollout, padded)


def _of_each_token(rollout: Rollout, change: Callable[[jax.Array], jax.Array]) -> Rollout:
    arrays = {name: getattr(rollout, name) for name in _PER_TOKEN}
    changed = {name: change(x) for name, x in arrays.items() if x is not None}
    return dataclasses.replace(rollout, **changed)


def concatenated(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts of prompts of several widths as one, as wide as the widest."""
    width = max(rollout.prompt.shape[1] for rollout in rollouts)

    def widened(rollout: Rollout) -> Rollout:
        def padded(x: jax.Array) -> jax.Array:
            missing = width - rollout.prompt.shape[1]
            return jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)])

        arrays = {name: getattr(rollout, name) for name in _PER_PROMPT_TOKEN}
        changed = {name: padded(x) for name, x in arrays.items() if x is not None}
        return dataclasses.replace(rollout, **changed)

    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(widened, rollouts))
