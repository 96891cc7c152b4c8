"""Every preset against its paper's equation, written out as plain loops in `oracles.papers`."""

import inspect
import math

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import papers
from paper_cases import CASES, FAST, PRESETS, SEEDS

from grpo_jax import objectives

EACH = pytest.mark.parametrize("name", CASES)


@EACH
def test_float64_eager(name):
    case, example = CASES[name], CASES[name].example()
    plain = case.oracle(example)
    with jax.enable_x64(True):
        batch = batches.prepared(case.objective, example)
        arrays = jnp.asarray(example.log_probs), jnp.asarray(example.entropy)
        loss, gradient = batches.loss_and_gradient(case.objective, *arrays, batch)
    assert loss.dtype == gradient.dtype == np.float64
    batches.assert_same((loss, gradient), papers.loss_and_slopes(plain, example), 1e-10)


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_float32_compiled_with_columns_of_padding(name, seed):
    """The loops do not see the padding: that it changes nothing is tested along with the rest."""
    case, example = CASES[name], CASES[name].example(seed)
    plain = case.oracle(example)
    wide = batches.widened(example, 2)
    loss, gradient = case.run(wide.log_probs, wide.entropy, case.prepare(wide))
    assert loss.dtype == gradient.dtype == np.float32
    found = loss, gradient[..., :-2]
    batches.assert_same(found, papers.loss_and_slopes(plain, example), 1e-5)
    assert not np.any(gradient[..., -2:])


# Settings at which what they bound is not bounded, or what they scale is not there.
OFF = {
    "clip_eps": math.inf,
    "clip_eps_low": math.inf,
    "clip_eps_high": math.inf,
    "clip_log_low": math.inf,
    "clip_log_high": math.inf,
    "eps": math.inf,
    "max_ratio": math.inf,
    "min_ratio": 0.0,
    "max_drift": math.inf,
    "cov_low": -math.inf,
    "cov_high": math.inf,
}
OTHER = {
    "clip_share": 1e-9,  # one token at least
    "coef": 0.0,
    "entropy_coef": 0.0,
    "entropy_share": 1.0,
    "filter_truncated": False,
    "k": 1,
    "k_negative": 1.0,
    "k_positive": 1.0,
    "kl_coef": 0.0,
    "kl_share": 1.0,
    "lam": 0.5,
    "lambda_negative": 1.0,
    "lambda_positive": 1.0,
    "max_new_tokens": 1,
    "tau_negative": 0.5,
    "tau_positive": 0.5,
}
# Of how a run goes on from step to step, not of a loss.
OUTSIDE = {"entropy_coef_step", "max_sampling_rounds", "refresh_every", "target_entropy"}


def parameters(function):
    """name -> default, without the example."""
    found = inspect.signature(function).parameters
    return {name: p.default for name, p in found.items() if name not in ("x", "draws")}


@pytest.mark.parametrize("name", PRESETS)
def test_defaults_are_those_of_the_oracle(name):
    ours = parameters(getattr(objectives, name))
    assert parameters(getattr(papers, name)) == {k: v for k, v in ours.items() if k not in OUTSIDE}


@EACH
def test_every_setting_acts_in_the_batch(name):
    """And a bound acts on some tokens and not on all, for A of either sign where it is for both."""
    case, example = CASES[name], CASES[name].example()
    usual = case.oracle(example)
    slopes = papers.slopes(usual, example)
    credit = np.asarray(case.prepare(batches.widened(example, 2)).advantages)
    credit = np.where(example.mask, np.broadcast_to(credit, (3, 4, 9))[..., :7], 0.0)
    settings = parameters(getattr(papers, case.preset)) | case.settings
    for setting, value in settings.items():
        without = (OFF | OTHER)[setting]
        if value == without:
            continue
        loose = case.oracle(example, **{setting: without})
        moved = papers.slopes(loose, example) != slopes
        acts = moved.any() or loose(example.log_probs) != usual(example.log_probs)
        assert acts, setting
        if setting in OFF:
            # A bound above 1 has no lower side.
            both = setting in ("clip_eps", "eps") and value <= 1
            for sign in (1, -1):
                among = moved[credit * sign > 0]
                assert among.any() or not both, (setting, sign)
                assert not among.all(), (setting, sign)


def test_the_batch_has_what_is_awkward():
    example = CASES["grpo"].example()
    lengths = example.mask.sum(axis=-1)
    assert lengths[batches.EMPTY] == 0
    assert lengths[batches.LONE] == 1
    assert np.diff(example.mask[batches.WITH_HOLE].astype(int)).tolist().count(-1) == 1
    assert example.mask[batches.WITH_HOLE][-1]
    assert np.isnan(example.rewards[batches.WITHOUT_REWARD])
    assert lengths[batches.WITHOUT_REWARD] > 0
    assert example.truncated.sum() == 1
    assert len(set(example.rewards[-1])) == 1
    for name in batches.BY_TOKEN[1:]:
        np.testing.assert_array_equal(np.isnan(getattr(example, name)), ~example.mask)


def test_clip_cov_leaves_out_the_smallest_draws():
    """The only number that is random is given to the loops as it was drawn."""
    objective = objectives.clip_cov(clip_share=0.05, cov_low=0.2)
    example = CASES["clip_cov"].example()
    run = jax.jit(jax.value_and_grad(objective.loss), compiler_options=FAST)
    batch = CASES["clip_cov"].prepare(example)  # credit and weights do not depend on the share
    found = []
    for seed in range(3):
        key = jax.random.key(seed)
        draws = np.asarray(jax.random.uniform(key, example.mask.shape))
        plain = papers.clip_cov(example, clip_share=0.05, cov_low=0.2, draws=draws)
        found.append(run(example.log_probs, batch, key=key))
        batches.assert_same(found[-1], papers.loss_and_slopes(plain, example), 1e-5)
    assert np.any(found[0][1] != found[1][1])  # two of several candidates, others each time


def test_skywork_or1_has_the_entropys_own_gradient():
    """Through the second output of the policy; over the tokens of groups with a signal."""
    case = CASES["skywork_or1"]
    example = case.example()
    batch = case.prepare(example)

    def loss(entropy):
        return case.objective.loss(example.log_probs, batch, entropy=entropy)

    slope = jax.jit(jax.grad(loss), compiler_options=FAST)(example.entropy)
    mask = example.mask.copy()
    mask[-1] = False
    np.testing.assert_allclose(slope, -0.005 * mask / mask.sum(), rtol=1e-6)


def test_ratios_are_on_the_support_and_the_kl_is_not():
    """Keep Sampling Mask, DeepSeek-V3.2: π/π_old of both renormalised, the KL of whole ones."""
    case, example = CASES["deepseek_v3_2"], CASES["deepseek_v3_2"].example()
    mass = np.where(example.mask, -0.3, np.nan)
    run = jax.jit(case.objective.loss, compiler_options=FAST)
    found = run(example.log_probs, case.prepare(example), support_log_mass=mass)
    rest = {"old_log_probs": example.old_log_probs - 0.3}
    rest |= {"sampler_log_probs": example.sampler_log_probs - 0.3}
    wanted = case.oracle(batches.replaced(example, rest, lambda name, _: rest[name]))
    np.testing.assert_allclose(found, wanted(example.log_probs).real, rtol=1e-5)


def test_what_goes_on_from_step_to_step():
    """DeepSeek-R1: a new reference every 400 steps. Skywork-OR1, equation 3.2."""
    reference = objectives.deepseek_r1().reference
    assert [reference(jnp.zeros(1), jnp.ones(1), step).item() for step in (399, 400)] == [0.0, 1.0]
    adapted = objectives.skywork_or1().adapted
    for entropy, wanted in ((0.1, (0.035, 0.035)), (0.3, (0.025, 0.0))):
        found = adapted({"entropy": jnp.float32(0.03)}, {"entropy": jnp.float32(entropy)})
        np.testing.assert_allclose([found["entropy"], found["entropy_acting"]], wanted, rtol=1e-6)
