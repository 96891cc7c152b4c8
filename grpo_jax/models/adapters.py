"""Networks of somebody's own as a `Policy`: a function, a Flax NNX model, an Equinox module.

What is asked of them is one pass over whole sequences. The prompt is then computed again for each
completion and each token: right, and slow; a network with a cache of its own is a `Policy` by
itself, as `decoder.policy_of` has it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.policy import Policy
from grpo_jax.types import Params, Prompts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Written:
    """Tokens [P, G, C] of completions so far, and how many of each, [P, G]."""

    tokens: jax.Array
    length: jax.Array


def causal_policy(
    hidden: Callable[[Params, jax.Array], jax.Array],
    unembed: Callable[[Params, jax.Array], jax.Array] = lambda _, hidden: hidden,
) -> Policy:
    """A policy of a causal network that is a function over a parameter tree.

    Args:
        hidden: (params, tokens [B, S] int32) -> hidden [B, S, D]. What it gives at a position may
            depend on the tokens up to there and on no later ones; rows are padded on the right.
            Logits will do.
        unembed: (params, hidden [..., D]) -> logits [..., V]; by default they are that already.

    >>> def bigrams(params, tokens):
    ...     return params["logits"][tokens]
    >>> policy = causal_policy(bigrams)
    """

    def prefill(params: Params, tokens: jax.Array, mask: jax.Array) -> tuple[Prompts, jax.Array]:
        last = jnp.maximum(mask.sum(axis=1) - 1, 0)
        states = hidden(params, tokens)
        last_hidden = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        return Prompts(tokens, mask), last_hidden

    def extend(
        params: Params, prefix: Prompts, tokens: jax.Array, cache: _Written | None = None
    ) -> tuple[jax.Array, _Written | None]:
        num_prompts, group_size, count = tokens.shape
        before = jnp.zeros(tokens.shape[:2], jnp.int32) if cache is None else cache.length
        written = tokens
        if cache is not None:
            at = before[..., None] + jnp.arange(count)[None, None]
            rows = jnp.arange(num_prompts)[:, None, None], jnp.arange(group_size)[None, :, None]
            written = cache.tokens.at[(*rows, at)].set(tokens)
            cache = _Written(written, before + count)
        lengths = prefix.mask.sum(axis=1)
        width = prefix.tokens.shape[1]
        # Each completion directly after its prompt, whose padding it overwrites.
        slot = jnp.arange(width + written.shape[2])[None] - lengths[:, None]
        own = jnp.take_along_axis(written, jnp.clip(slot, 0, written.shape[2] - 1)[:, None], axis=2)
        padded = jnp.pad(prefix.tokens, [(0, 0), (0, written.shape[2])])
        whole = jnp.where((slot < 0)[:, None], padded[:, None], own)
        states = hidden(params, whole.reshape(-1, whole.shape[2]))
        states = states.reshape(*whole.shape, -1)
        place = lengths[:, None, None] + before[..., None] + jnp.arange(count)[None, None]
        return jnp.take_along_axis(states, place[..., None], axis=2), cache

    def init_cache(prefix: Prompts, group_size: int, num_tokens: int) -> _Written:
        shape = (prefix.tokens.shape[0], group_size)
        return _Written(jnp.zeros([*shape, num_tokens], jnp.int32), jnp.zeros(shape, jnp.int32))

    def repack(
        cache: _Written, lanes: jax.Array, rows: jax.Array, kept: jax.Array, num_tokens: int
    ) -> _Written:
        tokens, slots = cache.tokens[lanes, rows], cache.tokens.shape[2]
        widened = jnp.pad(tokens, [(0, 0), (0, 0), (0, max(num_tokens - slots, 0))])
        length = jnp.where(kept, cache.length[lanes, rows], 0)
        return _Written(widened[..., :num_tokens], length)

    return Policy(prefill, extend, unembed, init_cache, repack)


def from_nnx(model: Any) -> tuple[Policy, Params]:
    """A Flax NNX model of tokens [B, S] -> logits [B, S, V], split once.

    Its `nnx.Param` are the parameters; all else in it stays as it is now.

    Returns:
        the policy, and the parameters as a nested dict of arrays.
    """
    from flax import nnx

    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def logits(values: Params, tokens: jax.Array) -> jax.Array:
        replaced = jax.tree.map(lambda x: x, params)
        nnx.replace_by_pure_dict(replaced, values)
        return nnx.merge(graph, replaced, rest)(tokens)

    return causal_policy(logits), nnx.to_pure_dict(params)


def from_module(module: Any) -> tuple[Policy, Params]:
    """A module that is a pytree and a function of tokens [B, S] -> logits [B, S, V] (Equinox).

    Its leaves of floating-point numbers are the parameters; all else in it stays as it is now.

    Returns:
        the policy, and the parameters by their paths.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(module)
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]

    def trained(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)

    params = {path: leaf for path, (_, leaf) in zip(paths, leaves, strict=True) if trained(leaf)}

    def logits(values: Params, tokens: jax.Array) -> jax.Array:
        whole = [values.get(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)]
        return jax.tree.unflatten(tree, whole)(tokens)

    return causal_policy(logits), params
