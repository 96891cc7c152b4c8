import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import returns as oracles
from oracles.numeric import slope

from grpo_jax.ops import process, returns, token_baseline

P, G, T, J, V = 2, 4, 5, 3, 4


class Case(NamedTuple):
    """What a function takes; which of it gradients are checked of, and whether it is linear."""

    arrays: tuple[str, ...]
    settings: dict
    linear: bool = True
    of_the_batch: bool = False


def function(name):
    """The rule of that name, wherever it lives."""
    return next(getattr(m, name) for m in (returns, process, token_baseline) if hasattr(m, name))


CASES = {
    "to_go": Case(("token_penalty", "mask"), {"discount": 0.7}),
    "terminal": Case(("rewards", "mask"), {}),
    "penalized": Case(("rewards", "mask", "token_penalty"), {}),
    "kl_to_go": Case(("advantages", "mask", "token_penalty"), {}),
    "reinforce_plus_plus": Case(("rewards", "mask", "token_penalty"), {}, False, True),
    "reinforce_plus_plus_baseline": Case(("rewards", "mask"), {}, False, True),
    "process_supervision": Case(("step_rewards", "step_ends", "mask"), {"ddof": 1}, False),
    "optimal_token_baseline": Case(("rewards", "mask", "old_log_probs", "sum_sq_probs"), {}, False),
}
EAGERLY = ("to_go", "process_supervision", "optimal_token_baseline")
every = pytest.mark.parametrize("name", CASES)
baselines = pytest.mark.parametrize(
    "name", ["reinforce_plus_plus_baseline", "optimal_token_baseline"]
)


@functools.cache
def ours(name):
    return functools.partial(function(name), **CASES[name].settings)


@functools.cache
def compiled(name):
    """One compilation for all tests that take inputs of these shapes."""
    return jax.jit(ours(name))


@functools.cache
def value_and_gradients(name):
    """(arrays, weights) -> results, and the gradients of their weighted sum in the float arrays."""
    floats = tuple(
        n for n, key in enumerate(CASES[name].arrays) if key not in ("mask", "step_ends")
    )

    def total(*arrays_and_weights):
        *arrays, weights = arrays_and_weights
        found = ours(name)(*arrays)
        # A NaN stays a NaN where a reward is missing; it has no part in any slope.
        return jnp.where(jnp.isnan(found), 0.0, weights * found).sum(), found

    return floats, jax.value_and_grad(total, floats, has_aux=True)


def oracle(name):
    settings = {
        "penalty" if k == "token_penalty" else k: v for k, v in CASES[name].settings.items()
    }
    return functools.partial(getattr(oracles, name), **settings)


def inputs(name, seed, dtype=np.float32):
    """Holes in the masks, an empty completion, one without a reward, junk wherever it may be."""
    rng = np.random.default_rng(seed)
    mask = rng.random((P, G, T)) < 0.7
    mask[0, 1] = False
    mask[1, 2, :3] = True
    probs = rng.dirichlet(np.ones(V), size=(P, G, T))
    batch = {
        "rewards": rng.normal(size=(P, G)),
        "advantages": rng.normal(size=(P, G, 1)),
        "token_penalty": rng.normal(size=(P, G, T)),
        "old_log_probs": np.log(probs[..., 0]),
        "sum_sq_probs": (probs**2).sum(-1),
        "step_rewards": rng.normal(size=(P, G, J)),
    }
    batch["rewards"][0, 2] = np.nan
    batch["step_rewards"][0, 0, 1:] = np.nan
    batch["step_rewards"][1, 1] = np.nan
    for by_token in ("token_penalty", "old_log_probs", "sum_sq_probs"):
        batch[by_token][~mask] = np.nan
    batch = {key: value.astype(dtype) for key, value in batch.items()}
    batch |= {"mask": mask, "step_ends": rng.integers(-1, T + 2, size=(P, G, J))}
    return [batch[array] for array in CASES[name].arrays]


@every
def test_equals_a_plain_loop(name, transform):
    f = transform(ours(name))
    for seed in range(3):
        arrays = inputs(name, seed)
        found = f(*map(jnp.array, arrays))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, oracle(name)(*arrays), rtol=1e-5, atol=1e-5)


@every
def test_gradient_is_the_slope_of_the_loop(name):
    """Compiled for float64 below."""
    arrays = inputs(name, 4)
    weights = np.random.default_rng(5).normal(size=oracle(name)(*arrays).shape).astype(np.float32)
    floats, f = value_and_gradients(name)
    f = f if name in EAGERLY else jax.jit(f)  # op by op is slow
    _, found = f(*map(jnp.array, arrays), jnp.array(weights))
    check_slopes(name, arrays, weights, floats, found, tolerance=1e-5)


@every
def test_float64_values_and_gradients(name):
    arrays = inputs(name, 5, np.float64)
    weights = np.random.default_rng(6).normal(size=oracle(name)(*arrays).shape)
    floats, f = value_and_gradients(name)
    with jax.enable_x64(True):
        (_, value), found = jax.device_get(jax.jit(f)(*arrays, weights))
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, oracle(name)(*arrays), rtol=1e-10, atol=1e-10)
    # Differences are exact for a linear function, and good to about 1e-9 for the others.
    tolerance = 1e-10 if CASES[name].linear else 1e-7
    check_slopes(name, arrays, weights, floats, found, tolerance)


def check_slopes(name, arrays, weights, floats, gradients, tolerance):
    arrays = [x.astype(np.float64) if x.dtype == np.float32 else x for x in arrays]
    for n, found in zip(floats, gradients, strict=True):

        def loop(x, n=n):
            return np.nansum(weights * oracle(name)(*arrays[:n], x, *arrays[n + 1 :]))

        for index in np.ndindex(arrays[n].shape):
            wanted = 0.0
            if not np.isnan(arrays[n][index]):
                wanted = slope(loop, arrays[n], index, 1e-3 if CASES[name].linear else 1e-5)
            np.testing.assert_allclose(found[index], wanted, rtol=tolerance, atol=tolerance)


@every
def test_padding_order_and_leading_axes(name):
    arrays = inputs(name, 7)
    found = np.asarray(compiled(name)(*arrays))
    # The axis of tokens grows by three of padding, full of junk.
    padding = [(0, 0), (0, 0), (0, 3)]
    wider = [
        np.pad(x, padding, constant_values=False if x.dtype == bool else np.nan)
        if x.shape[-1] == T
        else x
        for x in arrays
    ]
    wider = np.asarray(compiled(name)(*wider))
    width = found.shape[-1]
    np.testing.assert_allclose(wider[..., :width], found, rtol=1e-5, atol=1e-6)
    assert not np.any(wider[..., width:])
    order = np.array([2, 0, 3, 1])
    shuffled = compiled(name)(*[x[:, order] for x in arrays])
    np.testing.assert_allclose(shuffled, found[:, order], rtol=1e-5, atol=1e-6)
    if CASES[name].of_the_batch:
        more = compiled(name)(*[x[None] for x in arrays])[0]
        np.testing.assert_allclose(more, found, rtol=1e-6, atol=1e-6)
    else:  # one prompt at a time, without its axis
        swept = jax.jit(jax.vmap(ours(name)))(*arrays)
        np.testing.assert_allclose(swept, found, rtol=1e-5, atol=1e-6)


@every
def test_half_precision_is_promoted(name):
    arrays = [x.astype(jnp.bfloat16) if x.dtype == np.float32 else x for x in inputs(name, 8)]
    assert jax.eval_shape(ours(name), *arrays).dtype == jnp.float32


def test_rewards_by_hand():
    mask = np.array([True, False, True, True, False])
    rewards = np.float32([1.0, np.nan, 2.0, 4.0, np.nan])
    advantages = np.float32([1.0, 9.0, 2.0, 3.0, 9.0])

    @jax.jit
    def results(rewards, mask, advantages):
        return (
            *(returns.to_go(rewards, mask, discount=share) for share in (0.5, 0.0, 1.0)),
            returns.terminal(jnp.array([5.0]), mask[None])[0],
            returns.kl_to_go(advantages, mask, rewards),
            returns.penalized(jnp.array([5.0]), mask[None], rewards[None]),
        )

    assert [x.tolist() for x in results(rewards, mask, advantages)] == [
        [3.0, 0.0, 4.0, 4.0, 0.0],  # the tool's token in between neither adds nor discounts
        [1.0, 0.0, 2.0, 4.0, 0.0],
        [7.0, 0.0, 6.0, 4.0, 0.0],
        [0.0, 0.0, 0.0, 5.0, 0.0],
        [-6.0, 0.0, -4.0, -1.0, 0.0],
        [-2.0],
    ]


def test_carry_back_by_hand():
    found = returns.carry_back(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 10.0, jnp.nan]))
    assert found.tolist() == [17.0, 32.0, 3.0]


def test_whitened_advantages_have_mean_0_and_deviation_1_over_tokens():
    for name in ("reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        arrays = inputs(name, 9)
        found = np.asarray(compiled(name)(*arrays))
        counted = oracles.with_reward(*arrays[:2])
        inside = found[counted]
        np.testing.assert_allclose([inside.mean(), inside.std()], [0.0, 1.0], atol=1e-3)
        assert not np.any(found[~counted])


def test_reinforce_plus_plus_without_a_penalty():
    rewards, mask, _ = inputs("reinforce_plus_plus", 10)
    wanted = oracles.reinforce_plus_plus(rewards, mask)
    found = jax.jit(returns.reinforce_plus_plus)(rewards, mask)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@functools.cache
def of_equal_rewards():
    """The four that compare, of groups of 16 with one reward for all: [3] -> their results."""
    mask = np.random.default_rng(0).random([3, 16, T]) < 0.7
    probs = np.full(mask.shape, 0.3, np.float32)
    arrays = mask, np.log(probs), probs, np.tile([1, 4], (3, 16, 1)), np.arange(mask.size)

    def results(values, mask, log_probs, probs, ends, _):
        rewards = jnp.broadcast_to(values[:, None], (3, 16))
        steps = jnp.broadcast_to(values[:, None, None], (3, 16, 2))
        return (
            token_baseline.optimal_token_baseline(rewards, mask, log_probs, probs),
            process.process_supervision(steps, ends, mask, eps=0.0),
            returns.reinforce_plus_plus_baseline(rewards, mask, eps=0.0),
            returns.reinforce_plus_plus(rewards, mask, eps=0.0),
        )

    def total(values, *arrays):
        found = results(values, *arrays)
        return sum((arrays[-1] * x.reshape(-1)).sum() for x in found[1:3]), found

    f = jax.jit(jax.value_and_grad(total, has_aux=True))
    return lambda values: f(np.float32(values), *arrays)


@pytest.mark.parametrize("value", [1.1, -3.3, 1e6, 1e-6])
def test_equal_rewards_give_exact_zeros(value):
    (_, results), slopes = of_equal_rewards()([value] * 3)
    for found in results:
        assert not np.any(found)
    assert np.isfinite(slopes).all()


def test_equal_rewards_in_each_group_alone():
    (_, (*by_group, over_the_batch)), _ = of_equal_rewards()([1.1, -3.3, 1e6])
    for found in by_group:
        assert not np.any(found)
    assert np.any(over_the_batch)  # REINFORCE++ does not tell prompts apart


@baselines
def test_shift_and_scale_of_rewards(name):
    rewards, *others = inputs(name, 11)
    found = compiled(name)(rewards, *others)
    np.testing.assert_allclose(compiled(name)(rewards + 7.0, *others), found, atol=2e-5)
    scale = 1.0 if CASES[name].of_the_batch else 8.0
    scaled = compiled(name)(8.0 * rewards, *others)
    np.testing.assert_allclose(scaled, scale * found, rtol=1e-3, atol=1e-4)


@every
def test_a_batch_without_rewards_or_tokens_is_all_zeros(name):
    arrays = inputs(name, 12)
    nothing = [
        np.full_like(x, np.nan) if n in ("rewards", "step_rewards") else x
        for n, x in zip(CASES[name].arrays, arrays, strict=True)
    ]
    if {"rewards", "step_rewards"} & set(CASES[name].arrays):
        found = np.asarray(compiled(name)(*nothing))
        assert np.isnan(found).all() if name == "penalized" else not np.any(found)
    empty = [np.zeros_like(x) if x.dtype == bool else x for x in arrays]
    found = np.asarray(compiled(name)(*empty))
    if name == "penalized":
        np.testing.assert_array_equal(found, arrays[0])
    else:
        assert not np.any(found)


# -- process supervision -------------------------------------------------------------------------


def test_step_rewards_by_hand():
    # The pool 3, 1, 1, 3: mean 2, deviation 1; steps end at tokens 1, 3 and at 0, 9.
    rewards, ends = jnp.array([[3.0, 1.0], [1.0, 3.0]]), jnp.array([[1, 3], [0, 9]])
    f = jax.jit(functools.partial(process.process_supervision, eps=0.0))
    found = f(rewards, ends, np.ones([2, 5], bool))
    assert found.tolist() == [[0.0, 0.0, -1.0, -1.0, 0.0], [0.0, 1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_step_at_the_end_is_outcome_supervision(ddof):
    rewards = np.random.default_rng(0).normal(size=[P, G, 1]).astype(np.float32)
    rewards[0, 1:] = np.nan  # a step alone in its group
    ends, mask = np.full([P, G, 1], T - 1), np.ones([P, G, T], bool)
    found = jax.jit(functools.partial(process.process_supervision, ddof=ddof))(rewards, ends, mask)
    wanted = (rewards[1] - rewards[1].mean()) / rewards[1].std(ddof=ddof)
    np.testing.assert_allclose(found[1], np.broadcast_to(wanted, [G, T]), rtol=1e-4, atol=1e-6)
    assert not np.any(found[0])


# -- the optimal token baseline ------------------------------------------------------------------


@functools.cache
def baseline():
    return jax.jit(token_baseline.optimal_token_baseline)


def test_equal_energies_give_the_mean_of_those_that_have_the_token():
    rewards = np.float32([1.0, 0.0, 5.0])
    mask = np.array([[True, True], [True, True], [True, False]])
    half = np.full([3, 2], 0.5, np.float32)
    found = baseline()(rewards, mask, np.log(half), half)
    wanted = np.array([[-1.0, 0.5], [-2.0, -0.5], [3.0, 0.0]])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_baseline_by_hand():
    # Energies 0.5 and 1.5 at the first token, 1 and 2 after the second.
    log_probs = np.log(np.float32([[0.5, 0.5], [0.25, 0.5]]))
    squares = np.float32([[0.5, 0.5], [1.0, 0.5]])
    found = baseline()(np.float32([4.0, 0.0]), np.ones([2, 2], bool), log_probs, squares)
    np.testing.assert_allclose(found, [[3.0, 4 - 4 / 3], [-1.0, -4 / 3]], rtol=1e-6)


def test_energy_is_the_squared_gradient_in_the_logits():
    """The proxy of the paper: |∇_z log π|² = 1 - 2 π + Σ π², with ∇_z log π = onehot - π."""
    probs = np.array([0.1, 0.2, 0.3, 0.4])
    energy = np.square(np.eye(4)[1] - probs).sum()
    # Two completions, of this energy and of 1/2: the baseline weighs them so.
    log_probs = np.log(np.float32([[probs[1]], [0.5]]))
    squares = np.float32([[np.square(probs).sum()], [0.5]])
    found = baseline()(np.float32([1.0, 0.0]), np.ones([2, 1], bool), log_probs, squares)
    np.testing.assert_allclose(1 - found[0, 0], energy / (energy + 0.5), rtol=1e-6)


def test_certain_and_impossible_tokens():
    ones, mask = np.ones([2, 1], np.float32), np.ones([2, 1], bool)
    rewards = np.float32([1.0, 0.0])
    # Certain ones carry no gradient: the plain mean. So do those whose energy rounds below 0.
    for log_prob, squares in ((0.0, ones), (0.0, 0.99 * ones), (-1e4, ones), (-np.inf, ones)):
        found = baseline()(rewards, mask, np.float32(log_prob) + 0 * ones, squares)
        np.testing.assert_allclose(found, [[0.5], [-0.5]], rtol=1e-6)


def test_alone_in_the_group():
    mask, log_probs = np.ones([1, 3], bool), np.log(np.full([1, 3], 0.3, np.float32))
    assert not np.any(baseline()(np.float32([1.1]), mask, log_probs, log_probs + 2.0))


# -- the KL in the reward ------------------------------------------------------------------------


def test_kl_in_the_reward_has_the_gradient_of_the_sequence_kl():
    """R1, for sequences: all 9 completions of two tokens of three, the second after the first.

    k1 to go is exact, as is k1 of the whole completion; k1 of each token alone is not."""
    tokens = np.array(list(itertools.product(range(3), repeat=2)))
    mask = np.ones([9, 2], bool)

    def log_probs(z):
        """[9, 2]; row 0 of z is for the first token, row 1 + a for the one after a."""
        table = z - jnp.log(jnp.exp(z).sum(axis=-1, keepdims=True))
        return jnp.stack([table[0, tokens[:, 0]], table[1 + tokens[:, 0], tokens[:, 1]]], axis=1)

    def gradients(params, reference):
        """Of the KL, and -Σ_o P(o) Σ_t A_t ∇ log π(o_t) with each credit A held fixed."""
        own = log_probs(params)
        chances = jnp.exp(own.sum(axis=1))
        penalty = own - log_probs(reference)
        zeros = jnp.zeros([9])

        def divergence(z):
            by_token = log_probs(z) - log_probs(reference)
            return (jnp.exp(log_probs(z).sum(axis=1)) * by_token.sum(axis=1)).sum()

        to_go = returns.kl_to_go(zeros[:, None], mask, penalty)
        whole = returns.penalized(zeros, mask, penalty)[:, None]
        credits = jnp.stack([to_go, jnp.broadcast_to(whole, to_go.shape), -penalty])

        def surrogates(z):
            return -(chances[None, :, None] * credits * log_probs(z)[None]).sum(axis=(1, 2))

        return jax.grad(divergence)(params), jax.jacrev(surrogates)(params)

    with jax.enable_x64(True):
        params, reference = np.random.default_rng(3).normal(size=(2, 4, 3))
        exact, (to_go, whole, by_token) = jax.jit(gradients)(params, reference)
    np.testing.assert_allclose(to_go, exact, atol=1e-12)
    np.testing.assert_allclose(whole, exact, atol=1e-12)
    assert np.abs(by_token - exact).max() > 0.01


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [-0.1, 1.5, float("nan")])
def test_discounts_outside_of_0_to_1_are_refused(discount):
    with pytest.raises(ValueError, match="discount is"):
        returns.to_go(np.zeros([2, 3]), np.ones([2, 3], bool), discount=discount)


@pytest.mark.parametrize(
    ("name", "arrays", "settings", "error"),
    [
        ("process_supervision", ([2, 3], np.int32, bool), {"ddof": 2}, ValueError),
        ("process_supervision", ([2, 3], np.float32, bool), {}, AssertionError),
        ("reinforce_plus_plus", ([2], bool), {"eps": -1.0}, ValueError),
        ("terminal", ([3], bool), {}, AssertionError),
        ("terminal", ([2, 3], bool), {}, AssertionError),
        ("to_go", ([2, 3], np.int32), {}, AssertionError),
        ("kl_to_go", ([2], bool, np.float32), {}, AssertionError),
    ],
)
def test_refusals(name, arrays, settings, error):
    shape, *types = arrays
    rest = [jax.ShapeDtypeStruct((2, 3), np.dtype(kind)) for kind in types]
    with pytest.raises(error):
        jax.eval_shape(
            functools.partial(function(name), **settings),
            jax.ShapeDtypeStruct(tuple(shape), np.float32),
            *rest,
        )
