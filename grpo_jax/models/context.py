"""What is kept of prompts and completions, and what the tokens of a pass see of it."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.models.attention import group_attention
from grpo_jax.models.flash import kernel_here
from grpo_jax.models.rotary import Rotary

Kept = tuple[jax.Array, jax.Array]
"""Keys and values of a layer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Of the prompts.

    Attributes:
        keys: [P, K, H, L] a layer.
        values: [P, K, L, V] a layer.
        mask: [P, L] bool, True on real tokens.
        routing: [P, L, M, k] uint, the experts that tokens took in M layers, where that is kept.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array
    routing: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Of the completions: keys and values in C slots, a ring.

    Completions that began at different times write into the same slot, so that a token is written
    as one slice; which slots hold tokens of a completion follows from its length.

    Attributes:
        keys: [P, K, G, H, C] a layer.
        values: [P, K, G, C, V] a layer.
        length: [P, G] int32, tokens of each completion so far.
        clock: int32 scalar, tokens written side by side since the start; the next go to slot
            clock mod C, and several at once must not run over the last.
        routing: [P, G, S, M, k] uint, the experts that the last S tokens took, where that is kept.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    clock: jax.Array
    routing: jax.Array | None = None

    @property
    def capacity(self) -> int:
        return self.values[0].shape[3]

    def visible(self, num_tokens: int, window: int = 0) -> jax.Array:
        """[P, G, S, C] bool: which slots each of the next S tokens sees, itself included."""
        token = jnp.arange(num_tokens)
        age = (self.clock + token[:, None] - jnp.arange(self.capacity)[None]) % self.capacity
        seen = age[None, None] <= (self.length[:, :, None] + token[None, None])[..., None]
        return seen & (age < window)[None, None] if window else seen


def empty_cache(prefix: Prefix, group_size: int, num_tokens: int) -> Cache:
    """A cache of so many slots for completions of these prompts, in the types of the prefix."""
    num_prompts = prefix.mask.shape[0]

    def zeros(like: jax.Array, width: int, *, slots_last: bool) -> jax.Array:
        last = (width, num_tokens) if slots_last else (num_tokens, width)
        return jnp.zeros([num_prompts, like.shape[1], group_size, *last], like.dtype)

    return Cache(
        tuple(zeros(x, x.shape[2], slots_last=True) for x in prefix.keys),
        tuple(zeros(x, x.shape[3], slots_last=False) for x in prefix.values),
        jnp.zeros([num_prompts, group_size], jnp.int32),
        jnp.zeros([], jnp.int32),
        _no_routing(prefix.routing, (num_prompts, group_size)),
    )


def repacked(
    cache: Cache, lanes: jax.Array, rows: jax.Array, kept: jax.Array, num_tokens: int
) -> Cache:
    """`Policy.repack` of a `Cache`."""
    age = (cache.clock - 1 - jnp.arange(num_tokens)) % num_tokens
    slot = (cache.clock - 1 - age) % cache.capacity  # where the token is that a new slot gets

    def taken(x: jax.Array, slots: int) -> jax.Array:
        head = jnp.arange(x.shape[1])[None, :, None]
        x = x[lanes[:, None], head, rows[:, None]]
        # What was there before is masked, but a weight of 0 times a NaN would not be 0.
        x = jnp.where(kept[:, None, :, None, None], x, 0)
        return x if num_tokens == cache.capacity else jnp.take(x, slot, axis=slots)

    return Cache(
        tuple(taken(x, 4) for x in cache.keys),
        tuple(taken(x, 3) for x in cache.values),
        jnp.where(kept, cache.length[lanes, rows], 0),
        cache.clock,
        _no_routing(cache.routing, kept.shape),
    )


def _no_routing(like: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """A place for that of one token a completion."""
    return None if like is None else jnp.zeros([*shape, 1, *like.shape[-2:]], like.dtype)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("angles", "own", "prompt"),
    meta_fields=("whole",),
)
@dataclasses.dataclass(frozen=True)
class Sight:
    """What S tokens of each completion see in a layer of one kind.

    Attributes:
        angles: of their positions; None in layers without.
        own: [P or 1, G or 1, S, C] bool, slots of their completion (`group_attention`).
        prompt: [P, G or 1, S or 1, L] bool, tokens of their prompt; None without one.
        whole: bool, all of the prompt and of what they wrote before: a kernel takes no other mask.
    """

    angles: tuple[jax.Array, jax.Array] | None
    own: jax.Array
    prompt: jax.Array | None
    whole: bool


class Kind(NamedTuple):
    """In what the sight of a layer's tokens differs from another's."""

    rotary: Rotary | None
    window: int


def sights(
    kinds: Iterable[Kind],
    positions: jax.Array,
    prefix: Prefix | None,
    cache: Cache | None,
    *,
    longest: int,
) -> dict[Kind, Sight]:
    """What the tokens at these positions [P, G, S] see, once for all layers of a kind.

    `longest` is the longest sequence there will be, for `Rotary.frequencies`.
    """
    num_tokens = positions.shape[2]
    # Not sets: in another order another process would trace, and compile, another program.
    kinds, found = dict.fromkeys(kinds), {}
    angles = {
        rotary: rotary.angles(positions, length=longest)
        for rotary in dict.fromkeys(kind.rotary for kind in kinds)
        if rotary
    }
    for kind in kinds:
        if cache is None:
            age = jnp.arange(num_tokens)[:, None] - jnp.arange(num_tokens)[None]
            own = (age >= 0) & (age < kind.window) if kind.window else age >= 0
            own = own[None, None]
        else:  # the barrier: once for all layers
            own = jax.lax.optimization_barrier(cache.visible(num_tokens, kind.window))
        prompt = None
        if prefix is not None:
            prompt = prefix.mask[:, None, None]
            if kind.window:
                slots = jnp.arange(prefix.mask.shape[1])[None, None, None]
                prompt = prompt & (slots > positions[..., None] - kind.window)
        seen = num_tokens + (0 if prefix is None else prefix.mask.shape[1])
        whole = not kind.window or (cache is None and seen <= kind.window)
        turned = angles[kind.rotary] if kind.rotary else None
        found[kind] = Sight(turned, own, prompt, whole)
    return found


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sight: Sight,
    prefix: Kept | None,
    prompt_mask: jax.Array | None,
    slots: Kept | None,
    slot: jax.Array | int,
    *,
    scale: float,
    cap: float,
    kernels: bool,
) -> tuple[jax.Array, Kept]:
    """Attention of S tokens a completion over what they see, by a kernel where one fits.

    Args:
        query: [P, G, S, K, R, H], turned.
        key: [P, G, S, K, H], turned.
        value: [P, G, S, K, V].
        sight: what they see.
        prefix: keys and values of their prompts; None without.
        prompt_mask: [P, L] bool, with `prefix`.
        slots: keys and values of a `Cache` to write into from `slot` on, or None.
        slot: int32 scalar.
        scale: of the scores.
        cap: of the scores; 0 for none.
        kernels: a kernel may be taken.

    Returns:
        [P, G, S, K, R, V], and the completions' keys and values with these tokens in.
    """
    keys, values = key.transpose(0, 3, 1, 4, 2), value.transpose(0, 3, 1, 2, 4)
    if slots is not None:
        write = jax.lax.dynamic_update_slice_in_dim
        keys = write(slots[0], keys.astype(slots[0].dtype), slot, 4)
        values = write(slots[1], values.astype(slots[1].dtype), slot, 3)
    written = keys, values
    # What is kept may be of another type (`Compute.cache_dtype`).
    keys, values = keys.astype(key.dtype), values.astype(key.dtype)
    prompt_keys, prompt_values = (x.astype(key.dtype) for x in prefix) if prefix else (None, None)
    kernel, width = None, query.shape[-1]
    fits = kernels and slots is None and sight.whole and not cap and value.shape[-1] == width
    if fits:
        kernel = kernel_here(query, 0 if prompt_mask is None else prompt_mask.shape[1])
    if kernel is None:
        attended = group_attention(
            query,
            keys,
            values,
            sight.own,
            prompt_keys,
            prompt_values,
            sight.prompt,
            scale=scale,
            cap=cap,
        )
    else:
        if scale != width**-0.5:  # which kernels multiply by
            query = (query.astype(jnp.float32) * (scale * width**0.5)).astype(query.dtype)
        prompt = () if prompt_keys is None else (prompt_keys.swapaxes(2, 3), prompt_values)
        prompt = (*prompt, prompt_mask) if prompt else ()
        attended = kernel(query, key.swapaxes(2, 3), value.swapaxes(2, 3), *prompt)
    return attended, written
