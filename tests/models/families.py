"""Fixtures of the families, and their logits by every way through the network."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.decoder import decoder_policy
from grpo_jax.models.directory import open_directory
from grpo_jax.models.layers import Compute
from grpo_jax.models.loading import load_params

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"
NAMES = sorted(path.name for path in FAMILIES.iterdir()) if FAMILIES.is_dir() else []
# Positions that scale with the length are turned by one length for all of a batch.
SCALED_BY_LENGTH = ("llama_dynamic", "phi3_long")


@functools.cache
def opened(name):
    directory = open_directory(FAMILIES / name)
    return directory, load_params(directory)


def said(name):
    """Rows of tokens and the logits [length, V] of each."""
    stored = np.load(FAMILIES / name / "said.npz")
    ends = np.cumsum(stored["lengths"])
    logits = np.split(stored["logits"], ends[:-1])
    rows = [row[:n] for row, n in zip(stored["tokens"], stored["lengths"], strict=True)]
    return list(zip(rows, logits, strict=True))


@functools.cache
def policy(name, longest=0):
    found = decoder_policy(open_directory(FAMILIES / name).config, Compute(longest=longest))
    return dataclasses.replace(
        found,
        prefill=jax.jit(found.prefill),
        extend=jax.jit(found.extend),
        unembed=jax.jit(found.unembed),
    )


def prompts_of(rows, cut, width):
    """The first `cut` tokens of each row, padded on the right to a width."""
    tokens = np.zeros([len(rows), width], np.int32)
    lengths = np.minimum([len(row) for row in rows], cut)
    for place, row, length in zip(tokens, rows, lengths, strict=True):
        place[:length] = row[:length]
    return jnp.array(tokens), jnp.array(np.arange(width) < lengths[:, None])


def logits_in_a_group(policy, params, rows, cut):
    """Logits [tokens after the prompt, V] of each row: its end as the first of a group, whose other
    completion has other tokens."""
    longest = max(len(row) for row in rows)
    tokens, mask = prompts_of(rows, cut, cut + 2)
    rest = np.zeros([len(rows), 2, max(longest - cut, 1)], np.int32)
    for place, row in zip(rest, rows, strict=True):
        place[0, : max(len(row) - cut, 0)] = row[cut:]
        place[1] = (place[0] + 7) % 90
    prefix, _ = policy.prefill(params, tokens, mask)
    hidden, _ = policy.extend(params, prefix, jnp.array(rest))
    logits = np.asarray(policy.unembed(params, hidden))[:, 0]
    return [x[: len(row) - cut] for x, row in zip(logits, rows, strict=True)]


def logits_in_steps(policy, params, rows, cut):
    """The same, a token of each row at a time through a cache with room for more, until the first
    row has ended."""
    tokens, mask = prompts_of(rows, cut, cut + 3)
    prefix, _ = policy.prefill(params, tokens, mask)
    steps = min(len(row) for row in rows) - cut
    cache = policy.init_cache(prefix, 2, steps + 2)
    found = []
    for step in range(steps):
        new = np.array([row[cut + step] for row in rows])[:, None, None]
        new = jnp.array(np.concatenate([new, (new + 7) % 90], axis=1), jnp.int32)
        hidden, cache = policy.extend(params, prefix, new, cache)
        found.append(np.asarray(policy.unembed(params, hidden[:, 0, 0])))
    return np.stack(found, axis=1)
