"""What holds for every preset, whatever its equation; in float32 unless it says otherwise."""

import dataclasses

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_cases import CASES, SEEDS

from grpo_jax import objectives
from grpo_jax.ops import advantages, weights

EACH = pytest.mark.parametrize("name", CASES)


def each_but(**reasons):
    """All cases but those of these presets."""
    left = [name for name, case in CASES.items() if case.preset not in reasons]
    assert len(left) < len(CASES), "an exception that is none"
    return pytest.mark.parametrize("name", left)


def run(case, example):
    """Loss and gradient."""
    found = case.run(example.log_probs, example.entropy, case.prepare(example))
    return jax.tree.map(np.asarray, found)


def on_policy(case, seed=SEEDS[0]):
    """The sampler, the old policy and the reference are the policy: every KL has no slope."""
    example = batches.widened(case.example(seed), 2)
    others = batches.BY_TOKEN[2:5]
    return batches.replaced(example, others, lambda *_: example.log_probs)


def without_kl(case, seed=SEEDS[0]):
    """Off-policy, but for a reference that leaves nothing to be penalised."""
    example = batches.widened(case.example(seed), 2)
    like = "old_log_probs" if case.objective.kl_in_reward else "log_probs"
    return batches.replaced(example, ["ref_log_probs"], lambda *_: getattr(example, like))


@EACH
def test_junk_in_the_padding_changes_nothing(name):
    case = CASES[name]
    example = batches.widened(case.example(), 2)
    loss, gradient = run(case, example)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert not gradient[~example.mask].any()
    rng = np.random.default_rng(0)

    def filled(_, x):
        return np.where(example.mask, x, rng.choice([0, 1e30, -1e30, np.inf, -np.inf], x.shape))

    again, slopes = run(case, batches.replaced(example, batches.BY_TOKEN[1:], filled))
    np.testing.assert_array_equal(again, loss)
    np.testing.assert_array_equal(slopes, gradient)


@EACH
def test_order_of_prompts_and_of_completions(name):
    """Of clip_cov all candidates are left out here: a draw belongs to its place in the array."""
    case = CASES[name]
    example = batches.widened(case.example(), 2)
    loss, gradient = run(case, example)
    prompts, members = np.array([2, 0, 1]), np.array([2, 0, 3, 1])
    again = run(case, batches.reordered(example, prompts, members))
    batches.assert_same(again, (loss, gradient[prompts][:, members]), 1e-6)


@each_but(
    clip_cov="a statistic of all tokens of a step, which an update refuses to cut",
    kl_cov="likewise",
)
def test_parts_of_a_batch_add_up(name):
    """Weights from the whole, parts cut along prompts: filled up as an update fills the last one,
    with groups that have no tokens."""
    case = CASES[name]
    example = batches.widened(case.example(), 2)
    batch = case.prepare(example)
    loss, gradient = run(case, example)
    total, slopes = 0.0, np.zeros_like(gradient)
    for part in (slice(0, 1), slice(1, 3)):

        def cut(x):
            x = np.asarray(x)[part]  # noqa: B023
            return np.pad(x, [(0, 3 - len(x))] + [(0, 0)] * (x.ndim - 1))

        some, slope = case.run(*jax.tree.map(cut, (example.log_probs, example.entropy, batch)))
        total += some
        size = part.stop - part.start
        slopes[part] = slope[:size]
        assert not np.any(slope[size:])
    batches.assert_same((total, slopes), (loss, gradient), 1e-6)


def test_the_presets_that_look_at_a_whole_step():
    whole = {case.preset for case in CASES.values() if case.objective.of_the_whole_step}
    assert whole == {"clip_cov", "kl_cov"}


@each_but(
    gvpo="fits log ratios to rewards: its slope is β G/(G - 1) A",
    clip_cov="leaves out tokens on-policy too",
)
def test_on_policy_the_gradient_is_the_policy_gradient(name):
    """At a ratio of 1 it is -w A for each token, whatever the trust region or correction."""
    case = CASES[name]
    example = on_policy(case)
    loss, gradient = run(case, example)
    batch = case.prepare(example)
    assert np.abs(gradient).max() > 0.01
    plain = np.asarray(-batch.weights * batch.advantages)
    batches.assert_same((loss, gradient), (loss, plain), 1e-6)


FAMILY = {name: case.objective for name, case in CASES.items() if case.preset != "gvpo"}
FAMILY["clip_cov"] = objectives.clip_cov(cov_low=1e8, cov_high=1e9)  # no token is a candidate


@pytest.mark.parametrize("name", FAMILY)
def test_all_trust_regions_have_one_slope_on_policy(name):
    """Under the same credit and weights, in float64; but for GVPO, which is a regression."""
    alike = dataclasses.replace(
        FAMILY[name],
        advantages=advantages.group_normalize,
        weights=weights.seq_mean_token_mean,
        select=(),
        corrections=(),
        kl=None,
        kl_coef=0.0,
        kl_in_reward=False,
        reference=None,
        entropy_coef=0.0,
        entropy_controller=None,
        entropy_gate=None,
        length_weighted=False,
    )
    example = CASES["grpo"].example()
    example = batches.replaced(example, ["sampler_log_probs"], lambda *_: example.log_probs)
    with jax.enable_x64(True):
        batch = dataclasses.replace(batches.prepared(alike, example), old_log_probs=None)
        arrays = jnp.asarray(example.log_probs), jnp.asarray(example.entropy)
        loss, gradient = batches.loss_and_gradient(alike, *arrays, batch)
        plain = weights.seq_mean_token_mean(jnp.asarray(example.mask)) * batch.advantages
    assert gradient.dtype == np.float64
    assert np.abs(gradient).max() > 0.01
    batches.assert_same((loss, gradient), (loss, -plain), 1e-12)


NOT_FROM_THE_GROUP = {"remax": "the greedy reward is the baseline", "ppo": "a critic is"}
PULLED = {
    "gvpo": "its regression pulls completions of equal rewards to the old policy",
    "kl_cov": "its penalty does not depend on rewards",
}


@each_but(**NOT_FROM_THE_GROUP, **PULLED)
def test_equal_rewards_give_an_exactly_zero_gradient(name):
    case = CASES[name]

    def equal(_, x):
        return np.where(np.isnan(x), x, np.float32(1.1))

    names = ("rewards", "rewards_by_function", "step_rewards")
    example = batches.replaced(without_kl(case), names, equal)
    _, gradient = run(case, example)
    assert not gradient.any()


@each_but(**PULLED)
def test_a_completion_without_reward_has_an_exactly_zero_gradient(name):
    case = CASES[name]
    example = without_kl(case)
    _, gradient = run(case, example)
    assert example.mask[batches.WITHOUT_REWARD].any()
    assert not gradient[batches.WITHOUT_REWARD].any()
    assert gradient[batches.WITHOUT_REWARD[0]].any()


# Where one impossible token makes the loss infinite: by whose log-probabilities are -inf there.
INFINITE = {
    # -A log π itself.
    "gpg": ("log_probs", "all"),
    "opo": ("log_probs", "all"),
    "pkpo": ("log_probs", "all"),
    "remax": ("log_probs", "all"),
    "rloo": ("log_probs", "all"),
    # The same under a weight: no ratio is 0 with a lower bound, and of two impossible ones it is 1.
    "cispo": ("log_probs", "all"),
    "dppo_kl": ("all",),
    "dppo_tv": ("all",),
    "vespo": ("all",),
    # A KL to a reference that calls it impossible; k2 is the square of it.
    "deepseek_r1": ("ref_log_probs",),
    "deepseek_v3_2": ("ref_log_probs",),
    "grpo": ("ref_log_probs",),
    "grpo_process": ("ref_log_probs",),
    "icepop": ("ref_log_probs",),
    "tis": ("ref_log_probs",),
    "reinforce_plus_plus_baseline": ("log_probs", "ref_log_probs"),
}
# The infinite reward of one is in the baseline of the others: ∞ - ∞.


@EACH
def test_absurd_log_probabilities_give_no_nan(name):
    case = CASES[name]
    example = batches.widened(case.example(), 2)
    named = batches.BY_TOKEN[1:5]
    places = np.cumsum(example.mask.ravel()).reshape(example.mask.shape)

    def far(name, x):
        """Every combination of tame and absurd among the four, from token to token."""
        return np.where(places >> named.index(name) & 1, np.where(example.mask, -1e4, np.nan), x)

    for found in run(case, batches.replaced(example, named, far)):
        assert np.isfinite(found).all()

    def impossible(_, x):
        x = x.copy()
        x[0, 0, 1] = -np.inf
        return x

    for which in (*named, "all"):
        those = named if which == "all" else [which]
        loss, gradient = run(case, batches.replaced(example, those, impossible))
        assert not np.isnan(loss), which
        assert not np.isnan(gradient).any(), which
        infinite = which in INFINITE.get(case.preset, ())
        # Without a KL there is no reference to be far from.
        infinite &= which != "ref_log_probs" or case.objective.needs_reference
        assert np.isinf(loss) == infinite, which
