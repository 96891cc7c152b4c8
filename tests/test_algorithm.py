"""What a step of GRPO does beside sampling, scoring and updating once."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from grpo_jax import algorithm, objectives
from grpo_jax.algorithm import grpo_step
from grpo_jax.lengths import bucket
from grpo_jax.ops import controllers, kl, references
from grpo_jax.policy import completion_log_probs
from grpo_jax.resampling import groups_with_signal
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import TrainState
from grpo_jax.update import update

SAMPLING = Sampling(max_new_tokens=5, stop_ids=(3, 4, 5, 6, 7, 8), pad_id=3)
OPTIMIZER = optax.sgd(0.05)
LENGTHS = (5, 1, 3, 2)
PROMPTS = networks.prompts(LENGTHS)


def new_state(objective, seed=0):
    params = jax.tree.map(jnp.copy, networks.params(seed))
    return TrainState(
        params,
        OPTIMIZER.init(params),
        jnp.int32(0),
        jax.random.key(0),
        jax.tree.map(jnp.copy, networks.params(seed)) if objective.reference else None,
        objective.initial_coefs(),
    )


def odd_tokens(rollout):
    """The share of a completion's tokens with an odd id: differs within nearly every group."""
    odd = jnp.where(rollout.completion_mask, rollout.completion % 2, 0).sum(axis=-1)
    return odd / rollout.completion_mask.sum(axis=-1)


def step(objective, state=None, score=odd_tokens, ref=None, prompts=PROMPTS, **settings):
    settings = {"group_size": 4, "sampling": SAMPLING} | settings
    return grpo_step(
        networks.POLICY,
        objective,
        OPTIMIZER,
        new_state(objective) if state is None else state,
        ref,
        prompts if callable(prompts) else lambda phase: prompts,
        score,
        **settings,
    )


# -- dynamic sampling ----------------------------------------------------------------------------


def fake_phases(signals):
    """Rollouts whose prompt tells phase and place, and scores with a signal where it says so."""
    rollout = rollout_of(SAMPLING)

    def sample(phase):
        number = 10 * phase + jnp.arange(len(LENGTHS))
        return dataclasses.replace(rollout, prompt=jnp.tile(number[:, None], (1, 5)))

    def scores(rollout):
        spread = jnp.array(signals[int(rollout.prompt[0, 0]) // 10], jnp.float32)
        return {"rewards": spread[:, None] * jnp.array([[0.0, 1.0, 0.0, 1.0]])}

    return sample, scores


def rollout_of(sampling):
    keys = prompt_keys(jax.random.key(1), 0, len(LENGTHS))
    return sample_groups(
        networks.POLICY, networks.params(), PROMPTS, keys, group_size=4, sampling=sampling
    )


@pytest.mark.parametrize(
    ("signals", "chosen"),
    [
        ([[1, 1, 1, 1]], [0, 1, 2, 3]),
        ([[1, 0, 1, 0], [0, 1, 1, 1]], [0, 2, 5, 6]),
        ([[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]], [7, 8, 0, 1]),  # the cap: filled up
        ([[0, 0, 0, 0]] * 3, [0, 1, 2, 3]),
    ],
)
def test_groups_with_a_signal_are_kept_in_the_order_of_sampling(signals, chosen):
    sample, scores = fake_phases(signals)
    rollout, found, taken = groups_with_signal(sample, scores, max_rounds=3)
    assert taken.tolist() == chosen
    numbers = [10 * (i // 4) + i % 4 for i in chosen]
    assert rollout.prompt[:, 0].tolist() == numbers
    spread = [signals[i // 4][i % 4] for i in chosen]
    assert found["rewards"][:, 1].tolist() == spread


def test_no_more_phases_than_needed_are_sampled():
    sample, scores = fake_phases([[1, 0, 1, 1], [1, 1, 1, 1], None])
    phases = []
    groups_with_signal(lambda n: phases.append(n) or sample(n), scores, max_rounds=3)
    assert phases == [0, 1]


def test_a_signal_in_one_of_several_functions_is_one():
    sample, _ = fake_phases([[1, 1, 1, 1]])
    layers = jnp.zeros([4, 4, 2]).at[2, 0, 1].set(1.0)
    found = {"rewards": layers, "reward_weights": jnp.ones(2)}
    _, arrays, chosen = groups_with_signal(sample, lambda _: found, max_rounds=1)
    assert chosen[0] == 2
    np.testing.assert_array_equal(arrays["reward_weights"], jnp.ones(2))


def test_phases_draw_from_streams_of_their_own():
    """The same prompts again give other completions."""
    drawn = []

    def score(rollout):
        drawn.append(np.asarray(rollout.completion))
        return jnp.zeros([4, 4])

    step(objectives.dapo(max_sampling_rounds=2), score=score)
    assert len(drawn) == 2
    assert not np.array_equal(*drawn)


# -- a greedy baseline ---------------------------------------------------------------------------


def test_remax_compares_with_the_greedy_completion_of_each_prompt():
    rollouts = []

    def score(rollout):
        rollouts.append(rollout)
        return odd_tokens(rollout)

    objective = objectives.remax(kl_coef=0.0)
    result = step(objective, score=score, group_size=2)
    sampled, greedy = rollouts
    assert greedy.completion.shape[1] == 1
    assert (greedy.sampler_log_probs == 0).all()  # the greedy policy is certain
    assert (greedy.support_log_mass[greedy.completion_mask] < 0).all()
    wanted = odd_tokens(sampled) - odd_tokens(greedy)
    np.testing.assert_allclose(result.batch.advantages[..., 0], wanted, atol=1e-6)


def test_a_state_that_lacks_what_the_objective_keeps_is_refused():
    plain = new_state(objectives.grpo())
    moving = dataclasses.replace(objectives.grpo(), reference=partial(references.refresh, every=2))
    with pytest.raises(ValueError, match="moves its reference, but the state has no ref_params"):
        step(moving, plain, ref=networks.params(3))
    with pytest.raises(ValueError, match=r"the objective adapts .*'entropy'"):
        step(objectives.skywork_or1(), plain)


# -- references and coefficients that move -------------------------------------------------------


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))


def copied(tree):
    return jax.tree.map(np.array, tree)


def test_a_refreshed_reference_is_the_policy_of_that_step_and_then_stays():
    objective = dataclasses.replace(
        objectives.grpo(kl_coef=0.1), reference=partial(references.refresh, every=2)
    )
    state, start = new_state(objective), copied(networks.params())
    references_seen, policies = [], []
    for _ in range(3):
        state = step(objective, state).state
        references_seen.append(copied(state.ref_params))
        policies.append(copied(state.params))
    assert same(references_seen[0], start)
    assert same(references_seen[1], policies[1])
    assert same(references_seen[2], policies[1])
    assert not same(policies[2], policies[1])


def test_a_polyak_reference_is_the_mean_it_says():
    objective = dataclasses.replace(
        objectives.grpo(kl_coef=0.1), reference=partial(references.polyak, rate=0.25)
    )
    state = step(objective).state
    wanted = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, state.params, networks.params())
    for ours, other in zip(jax.tree.leaves(state.ref_params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


def test_a_kl_coefficient_follows_the_measured_kl():
    rule = partial(controllers.adaptive_kl_coef, target=1e-6, horizon=10, num_samples=10)
    objective = dataclasses.replace(objectives.grpo(kl_coef=0.1), kl_controller=rule)
    result = step(objective, ref=networks.params(3))
    assert result.metrics[0]["kl"] > 1e-6
    np.testing.assert_allclose(result.state.coefs["kl"], 0.1 * 1.2, rtol=1e-6)  # its largest step
    again = step(objective, result.state, ref=networks.params(3))
    np.testing.assert_allclose(again.state.coefs["kl"], 0.1 * 1.44, rtol=1e-6)


def test_the_adapted_coefficient_is_the_one_that_the_next_update_takes():
    rule = partial(controllers.adaptive_kl_coef, target=1e-6, horizon=10, num_samples=10)
    objective = dataclasses.replace(objectives.grpo(kl_coef=0.1), kl_controller=rule)
    fixed = objectives.grpo(kl_coef=0.12)
    adapted = dataclasses.replace(new_state(objective), coefs={"kl": jnp.float32(0.12)})
    one = step(objective, adapted, ref=networks.params(3)).state.params
    other = step(fixed, ref=networks.params(3)).state.params
    for ours, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-7)


def test_a_kl_in_the_reward_is_that_of_the_policy_that_sampled():
    objective = objectives.rloo(kl_coef=0.5)
    result = step(objective, ref=networks.params(3))
    batch = result.batch
    mask = batch.rollout.completion_mask
    penalty = 0.5 * jnp.where(mask, kl.k1(batch.old_log_probs, batch.ref_log_probs), 0.0)
    rewards = odd_tokens(batch.rollout) - penalty.sum(axis=-1)
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / 3
    np.testing.assert_allclose(batch.advantages[..., 0], rewards - others, atol=1e-5)


# -- the support that was sampled from -----------------------------------------------------------


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.3}])
def test_a_kept_support_makes_sampler_and_scorer_one_distribution(cut):
    rollout = rollout_of(dataclasses.replace(SAMPLING, keep_support=True, **cut))
    said = completion_log_probs(networks.POLICY, networks.params(), rollout)
    np.testing.assert_allclose(said.drawn, rollout.sampler_log_probs, atol=2e-5)
    np.testing.assert_allclose(said.support_log_mass, rollout.support_log_mass, atol=2e-5)
    plain = rollout_of(dataclasses.replace(SAMPLING, **cut))
    np.testing.assert_array_equal(plain.completion, rollout.completion)
    assert plain.support is None


def test_a_step_on_a_kept_support_sees_no_mismatch():
    sampling = dataclasses.replace(SAMPLING, top_p=0.7, keep_support=True)
    kept = step(objectives.deepseek_v3_2(), ref=networks.params(3), sampling=sampling)
    assert kept.metrics[0]["sampler_mismatch/max"] <= 1e-4
    assert kept.metrics[0]["finite"]


def test_credit_with_a_kept_support_compares_whole_distributions():
    sampling = dataclasses.replace(SAMPLING, top_p=0.7, keep_support=True)
    result = step(objectives.rloo(kl_coef=0.5), ref=networks.params(), sampling=sampling)
    # The reference is the policy: no KL, whatever was cut away from what was sampled.
    rewards = odd_tokens(result.batch.rollout)
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / 3
    np.testing.assert_allclose(result.batch.advantages[..., 0], rewards - others, atol=1e-5)
    assert (result.batch.rollout.support_log_mass < -0.1).any()


def test_keeping_a_support_that_nothing_cuts_is_refused():
    with pytest.raises(ValueError, match="keep_support is True, but nothing is cut away"):
        Sampling(max_new_tokens=4, keep_support=True)


# -- whole steps and random draws ----------------------------------------------------------------


def test_a_statistic_of_the_whole_step_refuses_micro_batches():
    objective = objectives.kl_cov()
    with pytest.raises(
        ValueError, match=r"micro_batch_tokens is 20 of 100, but kl_cov looks at all"
    ):
        step(objective, micro_batch_tokens=20)
    assert step(objective).metrics[0]["finite"]


def test_a_random_draw_is_a_function_of_seed_step_and_update():
    objective = objectives.clip_cov(clip_share=0.3, cov_low=-1e9, cov_high=1e9)
    batch = step(objective).batch
    settings = {"key": jax.random.key(0)}

    def loss(**settings):
        state = new_state(objective)
        return float(
            update(networks.POLICY, objective, OPTIMIZER, state, batch, **settings)[1]["loss"]
        )

    assert loss(**settings) == loss(**settings)
    assert loss(**settings) != loss(key=jax.random.key(1))


# -- papers through a step -----------------------------------------------------------------------


def with_layers(rollout):
    odd = odd_tokens(rollout)
    return {
        "rewards": jnp.stack([odd, 1 - odd**2], axis=-1),
        "reward_weights": jnp.array([1.0, 0.5]),
    }


def with_steps(rollout):
    steps = jnp.stack([odd_tokens(rollout), jnp.full([4, 4], jnp.nan)], axis=-1)
    ends = jnp.zeros([4, 4, 2], jnp.int32)
    return {"rewards": odd_tokens(rollout), "step_rewards": steps, "step_ends": ends}


def with_values(rollout):
    values = jnp.where(rollout.completion_mask, 0.3, 0.0)
    return {"rewards": odd_tokens(rollout), "values": values}


@pytest.mark.parametrize(
    ("objective", "score"),
    [
        (objectives.gdpo(), with_layers),
        (objectives.grpo_process(kl_coef=0.0), with_steps),
        (objectives.ppo(), with_values),
        (objectives.otb(), odd_tokens),
        (objectives.top_entropy(), odd_tokens),
        (objectives.skywork_or1(), odd_tokens),
        (objectives.vespo(), odd_tokens),
    ],
    ids=["gdpo", "grpo_process", "ppo", "otb", "top_entropy", "skywork_or1", "vespo"],
)
def test_papers_with_needs_of_their_own_take_a_step_of_two_updates(objective, score):
    ref = networks.params(3) if objective.needs_reference else None
    result = step(objective, score=score, ref=ref, num_minibatches=2)
    assert all(bool(found["finite"]) for found in result.metrics)
    assert not same(copied(result.state.params), copied(networks.params()))
    assert result.state.step == 1


def test_the_device_is_given_the_reference_before_the_host_scores(monkeypatch):
    events, anchors = [], algorithm.anchor_arrays

    def noted(*args, **kwargs):
        events.append("reference")
        return anchors(*args, **kwargs)

    def score(rollout):
        events.append("score")
        return odd_tokens(rollout)

    monkeypatch.setattr(algorithm, "anchor_arrays", noted)
    step(objectives.grpo(kl_coef=0.1), score=score, ref=networks.params(3))
    assert events == ["reference", "score"]


# -- nothing is compiled twice -------------------------------------------------------------------


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)


def test_lengths_that_vary_compile_a_few_programs_and_then_none():
    """Prompts of one to eight tokens, completions that end anywhere up to the eighth."""
    objective = objectives.dr_grpo(max_new_tokens=8)
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=8, stop_ids=tuple(range(3, 40)))

    def steps(seed, count):
        """(widths, programs compiled) of each step."""
        state = dataclasses.replace(new_state(objective), key=jax.random.key(seed))
        random = np.random.default_rng(seed)
        for _ in range(count):
            lengths = random.integers(1, random.choice([2, 3, 5, 9]), size=4)
            prompts = networks.prompts(lengths, width=bucket(int(lengths.max()), 8))
            before = len(COMPILED)
            state, batch, metrics, *_ = step(objective, state, prompts=prompts, sampling=sampling)
            assert metrics[0]["finite"]
            widths = (batch.rollout.prompt.shape[1], batch.rollout.completion.shape[2])
            yield widths, len(COMPILED) - before

    updates = update._cache_size()
    seen = {widths for widths, _ in steps(0, 12)}
    assert len({width for width, _ in seen}) > 1
    assert len({width for _, width in seen}) > 1
    again = [compiled for widths, compiled in steps(1, 8) if widths in seen]
    assert len(again) >= 3
    assert sum(again) == 0
    assert update._cache_size() - updates <= 16  # four widths of each
