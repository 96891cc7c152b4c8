"""What an objective refuses, what it asks for, and what is measured beside its loss."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives
from grpo_jax.objectives import Objective, measures
from grpo_jax.ops import (
    advantages,
    corrections,
    kl,
    ratios,
    references,
    selection,
    sequence_surrogates,
    surrogates,
    values,
    weights,
)
from grpo_jax.types import Batch, Rollout

GRPO = objectives.grpo()
NO_KL = objectives.grpo(kl_coef=0.0)
CENTRED = {
    "advantages": advantages.group_center,
    "surrogate": surrogates.clipped,
    "weights": weights.seq_mean_token_mean,
}
SHAPE = (2, 3, 4)
MASK = jnp.array(np.arange(4) < np.array([[4, 2, 1], [3, 4, 2]])[..., None])


def rollout(mask=MASK, sampler=0.0):
    return Rollout(
        prompt=jnp.zeros([2, 2], jnp.int32),
        prompt_mask=jnp.ones([2, 2], bool),
        completion=jnp.zeros(SHAPE, jnp.int32),
        completion_mask=mask,
        sampler_log_probs=jnp.full(SHAPE, sampler),
        support_log_mass=jnp.zeros(SHAPE),
        truncated=jnp.zeros(SHAPE[:2], bool),
    )


REWARDS = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
LOG_PROBS = -jnp.abs(jax.random.normal(jax.random.key(0), SHAPE))


def penalised_returns_without_critic(rewards, mask, values):
    return values


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kl_coef": -0.1, "kl": kl.k3}, r"kl_coef is -0.1; it must be 0 or more"),
        ({"kl_coef": float("nan"), "kl": kl.k3}, "kl_coef is nan"),
        ({"kl_coef": 0.1}, "without an estimate; give kl=kl.k3"),
        ({"kl": kl.k1, "kl_in_reward": True}, "kl_in_reward with kl_coef 0"),
        ({"kl_controller": lambda c, k: c}, "kl_controller with kl_coef 0"),
        ({"reference": lambda r, p, s: p}, "reference with kl_coef 0"),
        (
            {"kl": kl.k1, "kl_coef": 0.1, "kl_in_reward": True},
            "KL in the reward, but group_center would leave it out; .* names token_penalty",
        ),
        (
            {
                "advantages": penalised_returns_without_critic,
                "kl": kl.k1,
                "kl_coef": 0.1,
                "kl_in_reward": True,
            },
            "compares with a value of rewards that are free of it",
        ),
        (
            {
                "advantages": values.whitened_gae,
                "kl": kl.ratio_corrected,
                "kl_coef": 0.1,
                "kl_in_reward": True,
            },
            "ratio-corrected KL in the reward; its gradient flows through the ratio",
        ),
        ({"entropy_coef": -1.0}, "entropy_coef is -1.0"),
        (
            {"entropy_gate": lambda c, h: c, "entropy_coef": 0.1},
            "entropy_gate without an entropy_controller",
        ),
        ({"log_ratio": None}, "clipped without a log_ratio"),
        (
            {"surrogate": surrogates.policy_gradient},
            "policy_gradient takes no log_ratio: token would be ignored; give log_ratio=None",
        ),
        (
            {"log_ratio": ratios.sequence, "weights": weights.token_mean},
            "counts it once for each of its tokens; .* length_weighted=True",
        ),
        (
            {
                "log_ratio": ratios.sequence_token,
                "weights": partial(weights.seq_mean_token_sum, constant=8),
            },
            "counts it once for each of its tokens",
        ),
        (
            {"log_ratio": ratios.sequence, "weights": weights.prompt_mean},
            "counts it once for each of its tokens",
        ),
        ({"length_weighted": True}, "length_weighted without one ratio or loss"),
        (
            {"sampler_anchor": True, "corrections": (corrections.truncated,)},
            "sampler_anchor with truncated; .* would count twice",
        ),
        (
            {"surrogate": partial(surrogates.cispo, max_ratio=1.0)},
            "max_ratio 1.0; 1 must lie between them, .* they bound the ratio itself",
        ),
        ({"surrogate": partial(surrogates.cispo, max_ratio=0.28)}, "max_ratio 0.28; .* 1 \\+ ε$"),
        ({"surrogate": partial(surrogates.dual_clipped, max_ratio=1.0)}, "max_ratio is 1.0"),
        (
            {"corrections": (corrections.truncated, corrections.masked)},
            "corrections by truncated and masked; each has the ratio",
        ),
        ({"advantages": partial(advantages.group_normalize, ddof=2)}, "ddof is 2"),
        ({"weights": partial(weights.seq_mean_token_sum, constant=0)}, "constant is 0"),
        ({"select": (partial(selection.top_entropy, share=2.0),)}, r"share is 2\.0"),
        (
            {"kl": kl.k3, "kl_coef": 0.1, "reference": partial(references.refresh, every=0)},
            "every is 0",
        ),
        (
            {"surrogate": sequence_surrogates.gmpo, "weights": weights.token_mean},
            "one ratio or loss for a sequence under token_mean",
        ),
        ({"select": selection.signal_groups}, "select is signal_groups; give a tuple"),
        ({"entropy_coef": float("inf")}, "entropy_coef is inf"),
        (
            {"surrogate": surrogates.policy_gradient, "log_ratio": None, "sampler_anchor": True},
            "sampler_anchor, but policy_gradient compares with no anchor",
        ),
        (
            {"advantages": lambda rewards, truncatd=None: rewards},
            "advantages: <lambda> has a parameter 'truncatd'",
        ),
        (
            {"surrogate": sequence_surrogates.gmpo, "log_ratio": ratios.sequence},
            "gmpo with one ratio for the sequence",
        ),
        ({"weights": None}, "weights is None; give a function"),
        ({"max_sampling_rounds": 0}, "max_sampling_rounds is 0; it must be at least 1"),
        (
            {"advantages": lambda r: r},
            "advantages: <lambda> has a parameter 'r'; what it can be given here is .*rewards",
        ),
        (
            {"surrogate": lambda log_ratio, rewards: log_ratio},
            "surrogate: <lambda> has a parameter 'rewards'",
        ),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_the_reason(fields, says):
    with pytest.raises(ValueError, match=says):
        Objective(**(CENTRED | fields))


def test_a_clip_far_above_one_is_no_error():
    """DeepSeek-R1's is 10: nothing asserts that a width is below 1."""
    assert objectives.grpo(clip_eps=10.0).kl_coef == 0.04


def test_a_sequence_ratio_may_be_asked_to_count_by_length():
    fields = {"log_ratio": ratios.sequence, "weights": weights.token_mean}
    assert Objective(**(CENTRED | fields), length_weighted=True).length_weighted


@pytest.mark.parametrize(
    ("objective", "given", "says"),
    [
        (NO_KL, {"rewards": jnp.zeros([2, 5])}, r"\(2, 5\).*\[P, G\] = \(2, 3\)"),
        (NO_KL, {"rewards": jnp.zeros([2, 3, 4, 5])}, r"K of them in a last axis"),
        (NO_KL, {"values": jnp.zeros(SHAPE)}, "looks at no values"),
        (NO_KL, {"greedy_rewards": jnp.zeros(2)}, "looks at no greedy_rewards"),
        (NO_KL, {"entropy": jnp.zeros(SHAPE)}, "looks at no entropy"),
        (NO_KL, {"reward_weights": jnp.ones(1)}, r"belong to rewards \[P, G, K\]"),
        (
            objectives.gdpo(),
            {},
            r"gdpo takes the rewards of each function by itself; .*\[P, G, K\]",
        ),
        (objectives.remax(kl_coef=0.0), {}, "remax.credit .*needs greedy_rewards; give prepare"),
        (objectives.grpo_process(kl_coef=0.0), {}, "needs step_ends, step_rewards"),
        (objectives.rloo(), {}, "needs old_log_probs, ref_log_probs"),
        (objectives.rloo(), {"old_log_probs": LOG_PROBS}, "needs ref_log_probs"),
        (objectives.otb(), {"sum_sq_probs": LOG_PROBS}, "needs old_log_probs"),
        (objectives.top_entropy(), {}, "needs entropy"),
        (objectives.dapo(), {"old_support_log_mass": LOG_PROBS}, "credits nothing by old_support"),
        (NO_KL, {"signal_rewards": REWARDS}, "selects nothing by signal_rewards"),
        (objectives.vespo(), {"old_log_probs": LOG_PROBS}, "looks at no old_log_probs"),
        (
            dataclasses.replace(NO_KL, advantages=lambda rewards: rewards[:, 0]),
            {},
            r"advantages of shape \(2,\); they are \[P, G\] = \(2, 3\)",
        ),
    ],
)
def test_prepare_refuses_what_is_missing_and_what_would_be_ignored(objective, given, says):
    with pytest.raises(ValueError, match=says):
        objectives.prepare(objective, rollout(), **({"rewards": REWARDS} | given))


def test_an_objective_that_compares_with_the_sampler_wants_its_report():
    alone = Rollout.from_arrays(MASK)
    for objective, says in (
        (objectives.vespo(), "the anchor is the sampler, but"),
        (objectives.tis(), "truncated needs sampler_log_probs"),
    ):
        batch = objectives.prepare(objective, alone, REWARDS)
        with pytest.raises(ValueError, match=says):
            objective.loss(LOG_PROBS, batch)


def test_selection_may_see_the_rewards_of_the_task_alone():
    """Punished for length, a group that is all right would have a signal."""
    punished = jnp.array([[1.0, 0.9, 0.8], [0.0, 1.0, 0.0]])
    right = jnp.array([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    skywork = objectives.skywork_or1()
    assert objectives.prepare(skywork, rollout(), punished).mask[0].any()
    judged = objectives.prepare(skywork, rollout(), punished, signal_rewards=right)
    assert not judged.mask[0].any()
    assert judged.mask[1].any()


def test_an_infinite_penalty_is_eighty_nats():
    """Of a token that the reference calls impossible."""
    ref = LOG_PROBS.at[0, 0, 0].set(-jnp.inf)
    objective = objectives.reinforce_plus_plus(kl_coef=1.0)
    batch = objectives.prepare(objective, rollout(), REWARDS, LOG_PROBS, ref)
    bounded = LOG_PROBS.at[0, 0, 0].add(-80.0)
    wanted = objectives.prepare(objective, rollout(), REWARDS, LOG_PROBS, bounded)
    np.testing.assert_allclose(batch.advantages, wanted.advantages, rtol=1e-5, atol=1e-6)


def test_arrays_of_another_shape_are_refused_and_not_broadcast():
    batch = objectives.prepare(NO_KL, rollout(), REWARDS)
    with pytest.raises(ValueError, match=r"log_probs has shape \(2, 3, 1\); .*\(2, 3, 4\)"):
        NO_KL.loss(LOG_PROBS[..., :1], batch)
    with pytest.raises(ValueError, match=r"old_log_probs has shape \(2, 3, 1\)"):
        objectives.prepare(NO_KL, rollout(), REWARDS, LOG_PROBS[..., :1])


def test_a_choice_of_ones_own_is_not_tried_on_made_up_shapes():
    def credit(rewards):
        return rewards.reshape(7, 5)

    assert Objective(**(CENTRED | {"advantages": credit})).needs == set()


def test_the_loss_says_what_it_lacks():
    batch = objectives.prepare(GRPO, rollout(), REWARDS, LOG_PROBS)
    with pytest.raises(ValueError, match=r"kl_coef is 0.04, but the batch holds no ref_log_probs"):
        GRPO.loss(LOG_PROBS, batch)
    skywork = objectives.skywork_or1()
    batch = objectives.prepare(skywork, rollout(), REWARDS)
    with pytest.raises(ValueError, match="there is no entropy"):
        skywork.loss(LOG_PROBS, batch)
    drawing = objectives.clip_cov()
    batch = objectives.prepare(drawing, rollout(), REWARDS)
    with pytest.raises(ValueError, match="clip_cov needs key"):
        drawing.loss(LOG_PROBS, batch)
    gspo = objectives.gspo()
    batch = objectives.prepare(gspo, rollout(), REWARDS)
    by_token = dataclasses.replace(batch, advantages=jnp.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"advantages by token .*ratios.sequence_token"):
        gspo.loss(LOG_PROBS, by_token)


def test_credit_by_token_is_refused_where_a_sequence_has_one_loss():
    objective = dataclasses.replace(
        objectives.gmpo(), advantages=objectives.reinforce_plus_plus_baseline().advantages
    )
    batch = objectives.prepare(objective, rollout(), REWARDS)
    with pytest.raises(ValueError, match="advantages by token with gmpo"):
        objective.loss(LOG_PROBS, batch)


def test_rewards_may_be_whole_numbers_or_truths():
    wanted = objectives.prepare(NO_KL, rollout(), REWARDS).advantages
    for rewards in (REWARDS.astype(int), REWARDS.astype(bool), REWARDS.tolist()):
        found = objectives.prepare(NO_KL, rollout(), rewards).advantages
        np.testing.assert_array_equal(found, wanted)


def test_products_of_large_factors_are_finite():
    """A sampler and a policy that differ by e^49 and by e^50."""
    objective = objectives.decoupled_ppo()
    far = dataclasses.replace(rollout(), sampler_log_probs=jnp.full(SHAPE, -100.0))
    batch = objectives.prepare(objective, far, REWARDS, jnp.full(SHAPE, -51.0))
    loss, gradient = jax.value_and_grad(objective.loss)(jnp.full(SHAPE, -1.0), batch)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_rewards_of_several_functions_are_added_up_for_rules_that_name_one():
    layers = jnp.stack([REWARDS, jnp.full_like(REWARDS, jnp.nan).at[0].set(2.0)], axis=-1)
    weighed = objectives.prepare(NO_KL, rollout(), layers, reward_weights=jnp.array([1.0, 0.5]))
    summed = REWARDS + jnp.array([[1.0], [0.0]])
    wanted = objectives.prepare(NO_KL, rollout(), summed)
    np.testing.assert_allclose(weighed.advantages, wanted.advantages, atol=1e-6)


def test_selection_changes_the_weights_and_not_the_credit():
    objective = objectives.dapo()
    filtered = objectives.dapo(filter_truncated=True)
    cut = dataclasses.replace(rollout(), truncated=jnp.zeros(SHAPE[:2], bool).at[0, 0].set(True))
    whole = objectives.prepare(objective, cut, REWARDS)
    part = objectives.prepare(filtered, cut, REWARDS)
    np.testing.assert_array_equal(part.advantages, whole.advantages)
    assert whole.mask is None
    np.testing.assert_array_equal(part.mask, MASK.at[0, 0].set(False))
    gradient = jax.grad(filtered.loss)(LOG_PROBS, part)
    assert not np.any(gradient[0, 0])
    # The mean is over the 12 tokens that are left of 16.
    np.testing.assert_allclose(gradient[1, 1], -part.advantages[1, 1, 0] / 12, rtol=1e-5)


def test_a_kept_support_enters_the_ratio_and_not_the_kl():
    mass = jnp.where(MASK, -0.3, 0.0)
    ref = LOG_PROBS - 0.2
    batch = objectives.prepare(GRPO, rollout(), REWARDS, LOG_PROBS - mass, ref)
    same = objectives.prepare(GRPO, rollout(), REWARDS, LOG_PROBS, ref)
    kept = GRPO.loss(LOG_PROBS, batch, support_log_mass=mass)
    np.testing.assert_allclose(kept, GRPO.loss(LOG_PROBS, same), rtol=1e-6)


def test_controlled_coefficients_replace_the_constant_ones():
    objective = dataclasses.replace(GRPO, kl_controller=lambda coef, kl: 2 * coef)
    assert objective.initial_coefs().keys() == {"kl"}
    coefs = objective.adapted(objective.initial_coefs(), {"kl": jnp.float32(1.0)})
    np.testing.assert_allclose(coefs["kl"], 0.08, rtol=1e-6)
    batch = objectives.prepare(objective, rollout(), REWARDS, LOG_PROBS, LOG_PROBS - 0.2)
    doubled = objectives.grpo(kl_coef=0.08).loss(LOG_PROBS, batch)
    np.testing.assert_allclose(objective.loss(LOG_PROBS, batch, coefs=coefs), doubled, rtol=1e-6)
    skywork = objectives.skywork_or1(entropy_coef=0.02, entropy_coef_step=0.01)
    low = skywork.adapted(skywork.initial_coefs(), {"entropy": jnp.float32(0.1)})
    high = skywork.adapted(skywork.initial_coefs(), {"entropy": jnp.float32(0.3)})
    np.testing.assert_allclose([low["entropy"], low["entropy_acting"]], [0.03, 0.03], rtol=1e-5)
    np.testing.assert_allclose([high["entropy"], high["entropy_acting"]], [0.01, 0.0], rtol=1e-5)


def test_what_an_objective_asks_for():
    asked = {
        "grpo": set(),
        "rloo": {"old_log_probs"},
        "remax": {"greedy_rewards", "old_log_probs"},
        "otb": {"old_log_probs", "sum_sq_probs"},
        "ppo": {"old_log_probs", "values"},
        "gdpo": {"rewards_by_function"},
        "top_entropy": {"entropy"},
    }
    for name, wanted in asked.items():
        assert getattr(objectives, name)().needs == wanted, name
    assert objectives.clip_cov().needs_key
    assert objectives.clip_cov().of_the_whole_step
    assert objectives.kl_cov().of_the_whole_step
    assert not GRPO.of_the_whole_step
    for alone in (objectives.remax(), objectives.ppo(), objectives.reinforce_plus_plus()):
        assert not alone.compares_within_group
    assert GRPO.compares_within_group
    assert objectives.rloo().compares_within_group


# -- what is measured -----------------------------------------------------------------------------


def measured(objective, log_probs, old, **given):
    batch = objectives.prepare(objective, rollout(), REWARDS, old, **given)
    return measures.metrics(objective.loss_and_measures(log_probs, batch)[1]), batch


def test_clip_fractions_by_side_and_sign_are_counts():
    old = LOG_PROBS + 0.5 * jax.random.normal(jax.random.key(1), SHAPE)
    found, batch = measured(NO_KL, LOG_PROBS, old)
    ratio = np.exp(np.asarray(LOG_PROBS - old))
    good = np.broadcast_to(batch.advantages > 0, SHAPE)
    mask, tokens = np.asarray(MASK), int(MASK.sum())
    low, high = mask & (ratio < 0.8) & ~good, mask & (ratio > 1.2) & good
    assert low.any()
    assert high.any()
    wanted = {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low | high,
        "clip_ratio/low_positive_mean": low & good,
        "clip_ratio/low_negative_mean": low,
        "clip_ratio/high_positive_mean": high,
        "clip_ratio/high_negative_mean": high & ~good,
    }
    for name, where in wanted.items():
        np.testing.assert_allclose(found[name], where.sum() / tokens, rtol=1e-6, err_msg=name)
    inside = ratio[mask]
    np.testing.assert_allclose(found["ratio/min"], inside.min(), rtol=1e-5)
    np.testing.assert_allclose(found["ratio/max"], inside.max(), rtol=1e-5)
    ess = inside.sum() ** 2 / (tokens * (inside**2).sum())
    np.testing.assert_allclose(found["ratio/ess"], ess, rtol=1e-5)
    assert "kl" not in found


def test_a_bound_on_a_detached_ratio_counts_and_a_soft_gate_never():
    old = jnp.where(jnp.arange(4) == 0, LOG_PROBS - np.log(6.0), LOG_PROBS - 0.1)
    found, _ = measured(objectives.cispo(), LOG_PROBS, old)
    np.testing.assert_allclose(found["clip_ratio/high_mean"], 6 / MASK.sum(), rtol=1e-6)
    assert found["clip_ratio/low_mean"] == 0
    found, _ = measured(objectives.sapo(), LOG_PROBS, old)
    assert found["clip_ratio/region_mean"] == 0
    found, _ = measured(objectives.gvpo(), LOG_PROBS, old)
    assert found["clip_ratio/region_mean"] == 0
    found, _ = measured(objectives.gpg(), LOG_PROBS, None)
    assert "clip_ratio/region_mean" not in found  # no trust region at all


def test_a_clipped_sequence_counts_with_all_its_tokens():
    old = LOG_PROBS.at[0, 0].add(-0.1)  # a ratio of e^0.1, advantage positive, bound 4e-4
    found, _ = measured(objectives.gspo(), LOG_PROBS, old)
    np.testing.assert_allclose(found["clip_ratio/high_mean"], 4 / MASK.sum(), rtol=1e-6)


def test_kl_is_measured_by_k1_and_k3_and_by_the_objectives_own():
    ref = LOG_PROBS - 0.2
    found, _ = measured(
        dataclasses.replace(GRPO, kl=kl.k2), LOG_PROBS, LOG_PROBS, ref_log_probs=ref
    )
    np.testing.assert_allclose(found["kl"], 0.02, rtol=1e-4)
    np.testing.assert_allclose(found["kl/k1"], 0.2, rtol=1e-5)
    np.testing.assert_allclose(found["kl/k3"], np.exp(-0.2) - 0.8, rtol=1e-4)


def test_measures_of_parts_are_those_of_the_whole():
    old = LOG_PROBS + 0.5 * jax.random.normal(jax.random.key(1), SHAPE)
    batch = objectives.prepare(NO_KL, rollout(), REWARDS, old)
    _, whole = NO_KL.loss_and_measures(LOG_PROBS, batch)
    weighed = dataclasses.replace(batch, weights=NO_KL.weights(MASK))
    cuts = [jax.tree.map(lambda x: x[:1], weighed), jax.tree.map(lambda x: x[1:], weighed)]
    parts = [
        NO_KL.loss_and_measures(log_probs, part)
        for log_probs, part in zip((LOG_PROBS[:1], LOG_PROBS[1:]), cuts, strict=True)
    ]
    joined = measures.combined(jax.tree.map(lambda *x: jnp.stack(x), *(m for _, m in parts)))
    chex.assert_trees_all_close(joined, whole, rtol=1e-6)


def test_measures_without_a_token_are_no_nan():
    batch = Batch(rollout(jnp.zeros(SHAPE, bool)), jnp.ones([2, 3, 1]))
    loss, found = NO_KL.loss_and_measures(LOG_PROBS, batch)
    assert loss == 0
    found = measures.metrics(found)
    assert all(np.isfinite(value) for value in found.values())
    assert found["ratio/ess"] == 1


def test_credit_that_needs_no_group_is_fine_with_one_completion():
    one = jax.tree.map(lambda x: x[:, :1], dataclasses.replace(rollout(), prompt=None))
    one = dataclasses.replace(one, prompt=jnp.zeros([2, 2], jnp.int32), prompt_mask=MASK[:, 0, :2])
    objective = objectives.remax(kl_coef=0.0)
    batch = objectives.prepare(objective, one, REWARDS[:, :1], greedy_rewards=jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(batch.advantages[..., 0], [[1.0], [-0.5]])
