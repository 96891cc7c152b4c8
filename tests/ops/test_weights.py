import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import weights as oracles

from grpo_jax.ops import weights

RULES = {
    "seq_mean_token_mean": {},
    "seq_mean_token_sum": {"constant": 7},
    "token_mean": {},
    "token_mean_of_parts": {"num_parts": 2},
    "prompt_mean": {},
}
every_rule = pytest.mark.parametrize("name", RULES)


def rule(name):
    return functools.partial(getattr(weights, name), **RULES[name])


def random_mask(seed, shape=(4, 3, 6)):
    """Holes included, as in tool use, and completions and a prompt without a token."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < rng.random((*shape[:2], 1))
    mask[1, 2] = False
    mask[3] = False
    return mask


LENGTHS = np.array([[5, 3], [1, 0]])
MASK = np.arange(5) < LENGTHS[..., None]


@every_rule
def test_weights_equal_a_loop(name, transform):
    weigh = transform(rule(name))
    for seed in range(3):
        mask = random_mask(seed)
        found = weigh(jnp.array(mask))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(
            found, getattr(oracles, name)(mask, **RULES[name]), rtol=1e-6, atol=0
        )


@every_rule
def test_weights_are_float64_where_floats_are(name):
    mask = random_mask(3)
    with jax.enable_x64(True):
        found = jax.jit(rule(name))(mask)
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(
        found, getattr(oracles, name)(mask, **RULES[name]), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [  # one weight for each completion, of 5, 3, 1 and 0 tokens
        ("seq_mean_token_mean", [1 / 15, 1 / 9, 1 / 3]),
        ("seq_mean_token_sum", [1 / 21, 1 / 21, 1 / 21]),
        ("token_mean", [1 / 9, 1 / 9, 1 / 9]),
        ("token_mean_of_parts", [1 / 16, 1 / 16, 1 / 2]),
        ("prompt_mean", [1 / 16, 1 / 16, 1 / 2]),
    ],
)
def test_weights_by_hand(name, wanted):
    wanted = np.array([*wanted, 0.0]).reshape(2, 2, 1)
    np.testing.assert_allclose(jax.jit(rule(name))(MASK), np.where(MASK, wanted, 0), rtol=1e-6)


@every_rule
def test_weights_do_not_see_padding_or_order(name):
    weigh = jax.jit(rule(name))
    found = np.asarray(weigh(MASK))
    wider = weigh(np.pad(MASK, [(0, 0), (0, 0), (0, 4)]))
    np.testing.assert_array_equal(wider[..., :5], found)
    assert not np.any(wider[..., 5:])
    np.testing.assert_array_equal(weigh(MASK[::-1, ::-1, ::-1]), found[::-1, ::-1, ::-1])
    more = weigh(np.pad(MASK, [(0, 0), (0, 3), (0, 0)]))  # completions that count nothing
    np.testing.assert_array_equal(more[:, :2], found)
    assert not np.any(more[:, 2:])


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"token_mean_of_parts"}))
def test_prompts_without_a_token_change_nothing(name):
    weigh = jax.jit(rule(name))
    more = weigh(np.pad(MASK, [(0, 3), (0, 0), (0, 0)]))
    np.testing.assert_array_equal(more[:2], weigh(MASK))
    assert not np.any(more[2:])


@every_rule
def test_a_mask_of_nothing_gives_zeros(name):
    np.testing.assert_array_equal(jax.jit(rule(name))(MASK & False), np.zeros(MASK.shape))


@every_rule
def test_rules_hold_under_vmap(name):
    masks = np.array([random_mask(seed) for seed in range(2)])
    found = jax.jit(jax.vmap(rule(name)))(masks)
    for one, mask in zip(found, masks, strict=True):
        wanted = getattr(oracles, name)(mask, **RULES[name])
        np.testing.assert_allclose(one, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["seq_mean_token_mean", "token_mean", "prompt_mean"])
def test_means_sum_to_one(name):
    np.testing.assert_allclose(jax.jit(rule(name))(random_mask(4)).sum(), 1.0, rtol=1e-6)


def test_parts_are_the_average_of_micro_batches():
    rng = np.random.default_rng(0)
    mask, losses = random_mask(5, (6, 3, 6)), rng.normal(size=(6, 3, 6))
    wanted = np.mean(
        [
            losses[n : n + 2][mask[n : n + 2]].sum() / max(mask[n : n + 2].sum(), 1)
            for n in (0, 2, 4)
        ]
    )
    found = jax.jit(functools.partial(weights.token_mean_of_parts, num_parts=3))(mask)
    np.testing.assert_allclose((np.asarray(found) * losses).sum(), wanted, rtol=1e-5)


def test_a_part_without_tokens_counts_as_a_part():
    found = jax.jit(rule("token_mean_of_parts"))(np.pad(MASK, [(0, 2), (0, 0), (0, 0)]))
    np.testing.assert_allclose(found[:2], np.where(MASK, 1 / 9 / 2, 0), rtol=1e-6)


def test_one_part_is_the_token_mean_and_one_a_prompt_the_prompt_mean():
    def both(mask, num_parts, other):
        return weights.token_mean_of_parts(mask, num_parts=num_parts), other(mask)

    for num_parts, other in ((1, weights.token_mean), (3, weights.prompt_mean)):
        found, wanted = jax.jit(both, static_argnums=(1, 2))(random_mask(6)[:3], num_parts, other)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("constant", [0, -1, float("nan")])
def test_constant_must_be_positive(constant):
    with pytest.raises(ValueError, match=f"constant is {constant}"):
        weights.seq_mean_token_sum(MASK, constant=constant)


@pytest.mark.parametrize("num_parts", [0, 3, -1])
def test_parts_must_be_equal(num_parts):
    with pytest.raises(ValueError, match=f"num_parts is {num_parts}; the first axis \\(2 prompts"):
        weights.token_mean_of_parts(MASK, num_parts=num_parts)


@every_rule
def test_a_mask_is_bool(name):
    with pytest.raises(AssertionError):
        rule(name)(MASK.astype(np.float32))


@pytest.mark.parametrize("name", ["token_mean_of_parts", "prompt_mean"])
def test_a_group_axis_is_needed(name):
    with pytest.raises(AssertionError):
        rule(name)(np.ones(4, bool))
