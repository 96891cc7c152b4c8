"""Grouped sampling in which completions that have ended make room: compaction and a queue.

A compiled program decodes lanes side by side until enough of their completions have ended. Then the
host moves the others together: into fewer rows, or to one side so that prompts that waited get the
free lanes. Lanes come in a few shapes, and so do caches: few programs are compiled.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.lanes import Lanes, halvings, moved
from grpo_jax.lengths import bucket
from grpo_jax.memory import groups_in_memory
from grpo_jax.ops import support
from grpo_jax.policy import Cache, Policy, Prefix
from grpo_jax.sampling import (
    Sampling,
    draw_tokens,
    followed,
    no_routing,
    row_keys,
    sample_groups,
)
from grpo_jax.types import Params, Prompts, Rollout

_HALVINGS = 3
_FEWEST_ROWS = 8
"""Fewer take as long: the weights are read all the same."""
_FEWEST_TOKENS = 32
"""For fewer than these still to come, fewer rows are not worth a program and a copy."""
_SMALLEST_CACHE = 64
"""Slots to begin with; attention reads all there are, filled or not."""

Drawn = dict[str, jax.Array]
"""Of all completions [P, G, T]: `tokens`, -1 where none was drawn; their `log_probs`; the
`log_mass` of their support; where they are kept, that `support` and the experts' `routing`."""


class _Goal(NamedTuple):
    """Decode until what is alive fits into so many lanes of this width, unless fewer than
    `to_come` tokens can still come; and at most `steps` tokens."""

    width: int
    num_lanes: int
    to_come: int
    steps: int


def sample_continuously(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    keys: jax.Array,
    *,
    group_size: int,
    sampling: Sampling,
    rows_at_once: int = 0,
) -> Rollout:
    """`sampling.sample_groups`, token for token, without the time that ended completions take.

    While prompts wait, lanes that have become free are given to the next of them; after that, what
    is left is moved into half as many rows whenever it fits. Runs on the host and waits for the
    device between programs: not to be called inside `jax.jit`.

    Args:
        policy: the network. Without a `repack`, batches of `rows_at_once` are sampled one after
            another, each to its end; or all prompts at once.
        params: its parameters.
        prompts: P prompts.
        keys: [P] typed PRNG keys, one a prompt (`sampling.prompt_keys`).
        group_size: G.
        sampling: how tokens are drawn.
        rows_at_once: completions decoded side by side, in whole groups, while other prompts wait;
            0 takes as many as the memory holds.

    Returns:
        As `sample_groups`, up to the rounding of matrix products of other shapes.

    Raises:
        ValueError: `rows_at_once` is below the group size.
    """
    num_prompts, max_new_tokens = prompts.tokens.shape[0], sampling.max_new_tokens
    if rows_at_once and rows_at_once < group_size:
        raise ValueError(
            f"rows_at_once is {rows_at_once}, less than the group size, {group_size}; a prompt is "
            f"read once for its whole group: give at least {group_size}, or 0 for what fits"
        )
    if policy.repack is None:
        at_once = min(num_prompts, rows_at_once // group_size or num_prompts)
        sample = functools.partial(sample_groups, group_size=group_size, sampling=sampling)
        return _in_batches(functools.partial(sample, policy, params), prompts, keys, at_once)
    longest = max(max_new_tokens - 1, 1)  # nothing follows the last token
    kept = _kept.eval_shape(policy, params, prompts, group_size=group_size, num_tokens=longest)
    prefix, cache, logits = kept
    if rows_at_once:
        at_once = min(num_prompts, rows_at_once // group_size)
    else:  # the prompt as often as narrow lanes may hold it
        group_bytes = (4 * _num_bytes(prefix) + _num_bytes(cache)) // num_prompts
        at_once = min(num_prompts, groups_in_memory(group_bytes))

    # Where prompts wait, lanes are narrow: one is free only when the last of its rows has ended.
    narrowest = -(-group_size // 4)
    width = group_size if at_once == num_prompts else narrowest
    lanes_of_group = -(-group_size // width)
    shape = at_once * lanes_of_group, width
    shapes = halvings(shape, narrowest=narrowest, fewest_rows=_FEWEST_ROWS, most=_HALVINGS)
    read_together = -(-at_once // 4)
    capacity = _capacity(1, longest)
    shape_of_all = (num_prompts, group_size, max_new_tokens)
    drawn = {"tokens": jnp.full(shape_of_all, -1, jnp.int32)}
    drawn |= {name: jnp.zeros(shape_of_all) for name in ("log_probs", "log_mass")}
    if sampling.keep_support:
        drawn["support"] = jnp.zeros((*shape_of_all, -(-logits.shape[-1] // 8)), jnp.uint8)
    routing, prompt_routing = no_routing(prefix, shape_of_all), []
    if routing is not None:
        drawn["routing"] = routing

    def read(first: int, count: int, drawn: Drawn) -> tuple[Prefix, Lanes, Drawn]:
        which = np.arange(first, first + count)
        prompt = jax.tree.map(lambda x: x[np.minimum(which, num_prompts - 1)], (prompts, keys))
        prefix, lanes, drawn = _read(policy, params, *prompt, which, drawn, sampling=sampling)
        if routing is not None:
            prompt_routing.append(prefix.routing)
        return prefix, jax.device_get(lanes), drawn

    prefix, new, drawn = read(0, at_once, drawn)
    lanes, places, *_ = moved([new], shape)
    prefix, cache = _begin(policy, prefix, places, width=width, capacity=capacity)
    next_prompt = at_once
    while lanes.alive.any() or next_prompt < num_prompts:
        waiting = next_prompt < num_prompts
        steps = capacity - _most_tokens(lanes) + 1  # until the longest has filled its slots
        if waiting:
            goal = _Goal(width, shape[0] - read_together * lanes_of_group, 0, steps)
        elif len(shapes) > 1:
            goal = _Goal(shapes[1][1], shapes[1][0], _FEWEST_TOKENS, steps)
        else:
            goal = _Goal(1, -1, 0, steps)
        on_device, cache, drawn, reached = _decode(
            policy, params, prefix, lanes, cache, drawn, keys, goal, sampling=sampling
        )
        lanes, reached = jax.device_get((on_device, reached))

        parts, prefixes, wider = [lanes], [prefix], capacity
        if reached and waiting:
            more, new, drawn = read(next_prompt, read_together, drawn)
            next_prompt += read_together
            parts, prefixes = [lanes, new], [prefix, more]
        elif reached:
            shapes.pop(0)
        if _most_tokens(lanes) > capacity:
            wider = _capacity(_most_tokens(lanes), longest)
        if (reached or wider > capacity) and any(part.alive.any() for part in parts):
            moves = moved(parts, shapes[0])
            prefix, cache = _move(policy, prefixes, cache, *moves[1:], capacity=wider)
            lanes, capacity = moves.lanes, wider
    rollout = _finished(prompts, drawn, sampling=sampling)
    if routing is None:
        return rollout
    of_prompts = jnp.concatenate(prompt_routing)[:num_prompts]
    return dataclasses.replace(rollout, prompt_routing=of_prompts)


@functools.partial(jax.jit, static_argnames=("policy", "sampling"), donate_argnames="drawn")
def _read(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    keys: jax.Array,
    which: jax.Array,
    drawn: Drawn,
    *,
    sampling: Sampling,
) -> tuple[Prefix, Lanes, Drawn]:
    """Reads prompts and draws the first token of each completion; `which` [A] they are of all,
    beyond the last for none."""
    prefix, last_hidden = policy.prefill(params, prompts.tokens, prompts.mask)
    num_prompts, group_size = len(which), drawn["tokens"].shape[1]
    hidden = jnp.broadcast_to(last_hidden[:, None], (num_prompts, group_size, last_hidden.shape[1]))
    shape = num_prompts, group_size
    lanes = Lanes(
        prompt=which.astype(jnp.int32),
        member=jnp.broadcast_to(jnp.arange(group_size), shape),
        count=jnp.zeros(shape, jnp.int32),
        token=jnp.zeros(shape, jnp.int32),
        alive=jnp.broadcast_to((which < len(drawn["tokens"]))[:, None], shape),
    )
    keys_of_rows = row_keys(keys, lanes.member)
    return prefix, *_draw(policy, params, hidden, keys_of_rows, lanes, drawn, sampling)


@functools.partial(jax.jit, static_argnames=("policy", "width", "capacity"))
def _begin(
    policy: Policy, prefix: Prefix, places: jax.Array, *, width: int, capacity: int
) -> tuple[Prefix, Cache]:
    prefix = jax.tree.map(lambda x: x[places], prefix)
    return prefix, policy.init_cache(prefix, width, capacity)


@functools.partial(
    jax.jit, static_argnames=("policy", "sampling"), donate_argnames=("cache", "drawn")
)
def _decode(
    policy: Policy,
    params: Params,
    prefix: Prefix,
    lanes: Lanes,
    cache: Cache,
    drawn: Drawn,
    keys: jax.Array,
    goal: _Goal,
    *,
    sampling: Sampling,
) -> tuple[Lanes, Cache, Drawn, jax.Array]:
    """Tokens of all lanes, one each at a time; also whether lanes are free as wished."""
    params = policy.read_often(params)
    keys_of_rows = row_keys(keys[lanes.prompt], lanes.member)

    def reached(lanes: Lanes) -> jax.Array:
        counts = jnp.where(lanes.alive, lanes.count, sampling.max_new_tokens)
        enough = sampling.max_new_tokens - counts.min() >= goal.to_come
        return (lanes.needed(goal.width) <= goal.num_lanes) & enough

    def unfinished(carry: tuple[jax.Array, Lanes, Cache, Drawn]) -> jax.Array:
        step, lanes, _, _ = carry
        return lanes.alive.any() & ~reached(lanes) & (step < goal.steps)

    def decode(
        carry: tuple[jax.Array, Lanes, Cache, Drawn],
    ) -> tuple[jax.Array, Lanes, Cache, Drawn]:
        step, lanes, cache, drawn = carry
        hidden, cache = policy.extend(params, prefix, lanes.token[..., None], cache)
        hidden = hidden[:, :, 0]
        if "routing" in drawn:  # of the token drawn before
            prompt, member, count = _place(lanes, drawn)
            place = prompt, member, count - 1
            took = drawn["routing"].at[place].set(cache.routing[:, :, 0], mode="drop")
            drawn = drawn | {"routing": took}
        lanes, drawn = _draw(policy, params, hidden, keys_of_rows, lanes, drawn, sampling)
        return step + 1, lanes, cache, drawn

    start = jnp.int32(0), lanes, cache, drawn
    _, lanes, cache, drawn = jax.lax.while_loop(unfinished, decode, start)
    return lanes, cache, drawn, reached(lanes)


def _draw(
    policy: Policy,
    params: Params,
    hidden: jax.Array,
    keys_of_rows: jax.Array,
    lanes: Lanes,
    drawn: Drawn,
    sampling: Sampling,
) -> tuple[Lanes, Drawn]:
    """The next token of each row [N, g], written where its completion is."""
    logits = policy.unembed(params, hidden).astype(jnp.float32)
    token, log_probs, log_mass, kept = draw_tokens(logits, keys_of_rows, lanes.count, sampling)
    values = {"tokens": token, "log_probs": log_probs, "log_mass": log_mass}
    if sampling.keep_support:
        values["support"] = support.pack(kept)
    place = _place(lanes, drawn)
    written = {name: drawn[name].at[place].set(v, mode="drop") for name, v in values.items()}
    drawn, count = drawn | written, lanes.count + lanes.alive
    stops = jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))
    alive = lanes.alive & ~stops & (count < sampling.max_new_tokens)
    return Lanes(lanes.prompt, lanes.member, count, token, alive), drawn


def _place(lanes: Lanes, drawn: Drawn) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the next token of each row goes; of idle rows nowhere: there is no such prompt."""
    prompt = jnp.where(lanes.alive, lanes.prompt[:, None], len(drawn["tokens"]))
    return prompt, lanes.member, lanes.count


@functools.partial(jax.jit, static_argnames=("policy", "capacity"))
def _move(
    policy: Policy,
    prefixes: list[Prefix],
    cache: Cache,
    places: jax.Array,
    lane: jax.Array,
    row: jax.Array,
    kept: jax.Array,
    *,
    capacity: int,
) -> tuple[Prefix, Cache]:
    assert policy.repack is not None
    prefix = jax.tree.map(lambda *parts: jnp.concatenate(parts)[places], *prefixes)
    return prefix, policy.repack(cache, lane, row, kept, capacity)


@functools.partial(jax.jit, static_argnames="sampling")
def _finished(prompts: Prompts, drawn: Drawn, *, sampling: Sampling) -> Rollout:
    tokens = drawn["tokens"]
    mask = tokens >= 0
    ended = jnp.isin(tokens[..., -1], jnp.array(sampling.stop_ids, jnp.int32))
    return Rollout(
        prompts.tokens,
        prompts.mask,
        jnp.where(mask, tokens, sampling.pad_id),
        mask,
        drawn["log_probs"],
        drawn["log_mass"],
        mask[..., -1] & ~ended,
        drawn.get("support"),
        routing=jnp.where(followed(mask), drawn["routing"], 0) if "routing" in drawn else None,
    )


@functools.partial(jax.jit, static_argnames=("policy", "group_size", "num_tokens"))
def _kept(
    policy: Policy, params: Params, prompts: Prompts, *, group_size: int, num_tokens: int
) -> tuple[Prefix, Cache, jax.Array]:
    """For its shapes alone: what is kept of the prompts and of their completions; the logits."""
    prefix, hidden = policy.prefill(params, prompts.tokens, prompts.mask)
    return prefix, policy.init_cache(prefix, group_size, num_tokens), policy.unembed(params, hidden)


def _in_batches(
    sample: Callable[[Prompts, jax.Array], Rollout], prompts: Prompts, keys: jax.Array, size: int
) -> Rollout:
    """So many prompts at a time; the last batch repeats some to keep its shape."""
    count = prompts.tokens.shape[0]
    parts = []
    for start in range(0, count, size):
        which = np.arange(start, start + size) % count
        parts.append(sample(*jax.tree.map(lambda x: x[which], (prompts, keys))))  # noqa: B023
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:count], *parts)


def _most_tokens(lanes: Lanes) -> int:
    """Of a completion that goes on."""
    return int(np.where(lanes.alive, lanes.count, 0).max())


def _num_bytes(tree: Prefix | Cache) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _capacity(needed: int, longest: int) -> int:
    """Slots of a cache: an eighth, a quarter, half or all of the longest."""
    return min(longest, max(_SMALLEST_CACHE, bucket(needed, longest)))
