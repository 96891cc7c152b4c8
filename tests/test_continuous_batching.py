"""Completions that make room, against `sample_groups`, in which each keeps its place."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from grpo_jax import continuous_batching
from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.policy import Policy
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups

CONFIG = dataclasses.replace(
    networks.CONFIG, layers=networks.CONFIG.layers[:1], num_heads=2, num_kv_heads=1
)
POLICY = decoder_policy(CONFIG)
PARAMS = init_params(CONFIG, jax.random.key(0))
PARAMS["head"] *= 3  # some tokens are much likelier than others
LENGTHS = (7, 1, 4, 9, 2, 5, 3, 8, 6, 1, 4)
GROUP = 6
SHORT = Sampling(max_new_tokens=24, stop_ids=(3, 4, 5, 6), pad_id=3)
LONG = Sampling(max_new_tokens=150, stop_ids=(3,), pad_id=3)


@pytest.fixture
def moves(monkeypatch):
    """Seats are taken anew as soon as that spares a row; the (lanes, width, slots) taken."""
    monkeypatch.setattr(continuous_batching, "_FEWEST_ROWS", 8)
    monkeypatch.setattr(continuous_batching, "_FEWEST_TOKENS", 1)
    monkeypatch.setattr(continuous_batching, "_SMALLEST_CACHE", 9)
    taken, move = [], continuous_batching._move

    def spy(policy, prefixes, cache, places, lane, row, kept, *, capacity):
        taken.append((*kept.shape, len(prefixes), capacity))
        return move(policy, prefixes, cache, places, lane, row, kept, capacity=capacity)

    monkeypatch.setattr(continuous_batching, "_move", spy)
    return taken


def both(sampling, rows_at_once, *, group_size=GROUP, lengths=LENGTHS, key=0, width=None):
    prompts = networks.prompts(lengths, width=width)
    keys = prompt_keys(jax.random.key(key), 0, len(lengths))
    args = POLICY, PARAMS, prompts, keys
    plain = sample_groups(*args, group_size=group_size, sampling=sampling)
    found = sample_continuously(
        *args, group_size=group_size, sampling=sampling, rows_at_once=rows_at_once
    )
    return plain, found


def assert_token_for_token(plain, found):
    for field in dataclasses.fields(plain):
        expected, value = getattr(plain, field.name), getattr(found, field.name)
        if expected is None:
            assert value is None
        elif jnp.issubdtype(expected.dtype, jnp.floating):
            np.testing.assert_allclose(value, expected, atol=2e-5, err_msg=field.name)
        else:
            np.testing.assert_array_equal(value, expected, err_msg=field.name)
            assert value.dtype == expected.dtype


@pytest.mark.parametrize("rows_at_once", [0, 29])
@pytest.mark.parametrize(
    "sampling",
    [
        SHORT,
        dataclasses.replace(SHORT, temperature=0.7, top_k=9, keep_support=True),
        dataclasses.replace(SHORT, temperature=0.0),
        dataclasses.replace(SHORT, stop_ids=()),
        dataclasses.replace(SHORT, stop_ids=tuple(range(3, 53))),
        dataclasses.replace(SHORT, max_new_tokens=1),
        dataclasses.replace(SHORT, max_new_tokens=2),
    ],
    ids=["short", "support", "greedy", "endless", "ends_at_once", "one_token", "two_tokens"],
)
def test_token_for_token(moves, sampling, rows_at_once):
    assert_token_for_token(*both(sampling, rows_at_once))


@pytest.mark.parametrize(
    ("group_size", "count", "rows_at_once"), [(1, 5, 2), (8, 1, 0), (7, 4, 7), (5, 3, 10)]
)
def test_token_for_token_with_other_draws_and_shapes(moves, group_size, count, rows_at_once):
    for key in range(8):
        found = both(
            dataclasses.replace(SHORT, max_new_tokens=40),
            rows_at_once,
            group_size=group_size,
            lengths=LENGTHS[:count],
            key=key,
        )
        assert_token_for_token(*found)


def test_what_is_left_moves_into_fewer_rows(moves):
    assert_token_for_token(*both(LONG, 0))
    rows = [lanes * width for lanes, width, *_ in moves]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 12  # eleven lanes of six, halved three times and rounded up
    slots = [capacity for *_, capacity in moves]
    assert slots == sorted(slots)
    assert slots[-1] == 149  # one completion ran its length


def test_prompts_that_wait_take_the_lanes_that_become_free(moves):
    assert_token_for_token(*both(LONG, 12))
    refilled = [lanes * width for lanes, width, parts, _ in moves if parts == 2]
    assert len(refilled) == len(LENGTHS) - 2  # two groups at once, then one after the other
    assert set(refilled) == {12}


def test_a_cache_grows_with_the_longest_completion_and_not_with_the_queue(moves):
    sampling = dataclasses.replace(LONG, stop_ids=tuple(range(3, 30)))
    plain, found = both(sampling, 12)
    assert_token_for_token(plain, found)
    longest = int(plain.completion_mask.sum(axis=-1).max())
    assert longest < 30
    assert max(capacity for *_, capacity in moves) <= 38  # a quarter of what may come


def test_the_ring_of_slots_is_written_more_than_once(moves):
    """The last prompts are read when their lanes have long written more tokens than slots."""
    plain, found = both(dataclasses.replace(LONG, max_new_tokens=20), 6)
    assert_token_for_token(plain, found)
    assert int(plain.completion_mask.sum()) > 4 * 6 * 19


def test_fewer_rows_are_decoded(monkeypatch):
    """By a policy that counts the tokens it is asked for."""
    monkeypatch.setattr(continuous_batching, "_FEWEST_TOKENS", 1)
    asked = []

    def extend(params, prefix, tokens, cache=None):
        jax.debug.callback(lambda _: asked.append(tokens.size), tokens)
        return POLICY.extend(params, prefix, tokens, cache)

    policy = dataclasses.replace(POLICY, extend=extend)
    prompts, keys = networks.prompts(LENGTHS), prompt_keys(jax.random.key(0), 0, len(LENGTHS))
    counted = {}
    for name, sample, options in [
        ("plain", sample_groups, {}),
        ("compacted", sample_continuously, {}),
        ("queued", sample_continuously, {"rows_at_once": 24}),
    ]:
        asked.clear()
        rollout = sample(policy, PARAMS, prompts, keys, group_size=GROUP, sampling=LONG, **options)
        jax.effects_barrier()
        counted[name] = sum(asked)
    needed = int(rollout.completion_mask.sum())
    assert counted["plain"] >= 66 * 149
    assert counted["compacted"] < 0.7 * counted["plain"]
    assert counted["queued"] < 0.7 * counted["plain"]
    assert counted["queued"] >= needed - 66


def test_few_programs_are_compiled_and_then_none():
    functions = [
        getattr(continuous_batching, name) for name in ("_read", "_begin", "_decode", "_move")
    ]
    none = [function._cache_size() for function in functions]
    sampling = dataclasses.replace(SHORT, max_new_tokens=150, pad_id=4)
    for key in range(4):
        both(sampling, 24, key=key)
    compiled = [function._cache_size() for function in functions]
    assert all(after - before <= 8 for before, after in zip(none, compiled, strict=True))
    for key in range(4, 8):
        both(sampling, 24, key=key)
    assert [function._cache_size() for function in functions] == compiled


@pytest.mark.parametrize("rows_at_once", [0, 2, 5, 2000])
def test_a_policy_that_cannot_repack_samples_in_batches(rows_at_once):
    policy = dataclasses.replace(POLICY, repack=None)
    prompts, keys = networks.prompts(), prompt_keys(jax.random.key(0), 0, 3)
    args = policy, PARAMS, prompts, keys
    plain = sample_groups(*args, group_size=2, sampling=SHORT)
    found = sample_continuously(*args, group_size=2, sampling=SHORT, rows_at_once=rows_at_once)
    assert_token_for_token(plain, found)


def test_a_policy_that_keeps_nothing_is_sampled_all_at_once():
    policy = Policy(
        prefill=lambda params, tokens, mask: ((), params["embedding"][tokens[:, -1]]),
        extend=lambda params, prefix, tokens, cache=None: (params["embedding"][tokens], cache),
        unembed=lambda params, hidden: hidden @ params["embedding"].T,
        init_cache=lambda prefix, group_size, num_tokens: (),
        repack=lambda cache, *_: cache,
    )
    args = policy, PARAMS, networks.prompts(), prompt_keys(jax.random.key(0), 0, 3)
    plain = sample_groups(*args, group_size=2, sampling=SHORT)
    assert_token_for_token(plain, sample_continuously(*args, group_size=2, sampling=SHORT))


def test_what_a_place_held_before_does_not_reach_who_takes_it():
    """Not even as a weight of 0 times a NaN."""
    prompts = networks.prompts((3, 2))
    prefix, _ = POLICY.prefill(PARAMS, prompts.tokens, prompts.mask)
    tokens = jnp.ones([2, 2, 1], jnp.int32)
    _, cache = POLICY.extend(PARAMS, prefix, tokens, POLICY.init_cache(prefix, 2, 4))
    poisoned = dataclasses.replace(
        cache,
        keys=tuple(x.at[0].set(jnp.nan) for x in cache.keys),
        values=tuple(x.at[0].set(jnp.nan) for x in cache.values),
    )
    kept = jnp.array([[False, False], [True, False]])
    where = jnp.array([[0, 0], [1, 0]]), jnp.array([[0, 1], [1, 0]]), kept
    found = [
        POLICY.extend(PARAMS, prefix, tokens, POLICY.repack(c, *where, 6))[0]
        for c in (cache, poisoned)
    ]
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_ring_that_has_been_written_around_can_grow(more):
    """Six tokens in four slots, of which the last three are a completion's."""
    prompts = networks.prompts((3, 2))
    prefix, _ = POLICY.prefill(PARAMS, prompts.tokens, prompts.mask)
    tokens = jnp.arange(14, dtype=jnp.int32).reshape(2, 1, 7)
    cache = POLICY.init_cache(prefix, 1, 4)
    for t in range(3):
        _, cache = POLICY.extend(PARAMS, prefix, tokens[:, :, t : t + 1], cache)
    lane, row, none = jnp.array([[0], [1]]), jnp.zeros([2, 1], int), jnp.zeros([2, 1], bool)
    cache = POLICY.repack(cache, lane, row, none, 4)  # others take the places
    fresh = POLICY.init_cache(prefix, 1, 8)
    for t in range(3, 7):
        if t == 6:
            cache = POLICY.repack(cache, lane, row, ~none, 4 + more)
        found, cache = POLICY.extend(PARAMS, prefix, tokens[:, :, t : t + 1], cache)
        wanted, fresh = POLICY.extend(PARAMS, prefix, tokens[:, :, t : t + 1], fresh)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_less_than_a_group_at_once_is_refused():
    with pytest.raises(ValueError, match="rows_at_once is 5, less than the group size, 6"):
        both(SHORT, 5)
