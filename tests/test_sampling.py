import dataclasses
import itertools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from grpo_jax.policy import completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import Prompts

SAMPLING = Sampling(max_new_tokens=9, stop_ids=(3, 4, 5, 6), pad_id=3)
KEY = jax.random.key(7)


def sample(prompts, sampling=SAMPLING, group_size=5, first=0, params=None):
    keys = prompt_keys(KEY, first, prompts.tokens.shape[0])
    return sample_groups(
        networks.POLICY,
        networks.params() if params is None else params,
        prompts,
        keys,
        group_size=group_size,
        sampling=sampling,
    )


def test_masks_end_with_the_first_stop_token():
    rollout = sample(networks.prompts(), group_size=30)
    completion, mask = np.asarray(rollout.completion), np.asarray(rollout.completion_mask)
    ended = 0
    for p, g in itertools.product(range(3), range(30)):
        stops = np.flatnonzero(np.isin(completion[p, g], SAMPLING.stop_ids) & mask[p, g])
        length = stops[0] + 1 if len(stops) else SAMPLING.max_new_tokens
        assert mask[p, g].tolist() == [t < length for t in range(9)]
        assert bool(rollout.truncated[p, g]) == (len(stops) == 0)
        assert (completion[p, g, length:] == SAMPLING.pad_id).all()
        assert not rollout.sampler_log_probs[p, g, length:].any()
        ended += len(stops) > 0
    assert 0 < ended < 90  # both kinds were seen


@pytest.mark.parametrize(
    ("lengths", "extra_width", "temperature"),
    [((7, 1, 4), 0, 1.0), ((7, 1, 4), 5, 0.7), ((3,), 0, 1.0), ((1, 2), 5, 1.0)],
)
def test_sampler_and_scorer_agree_on_every_token(lengths, extra_width, temperature):
    prompts = networks.prompts(lengths, width=max(lengths) + extra_width)
    rollout = sample(prompts, dataclasses.replace(SAMPLING, temperature=temperature))
    scored = completion_log_probs(
        networks.POLICY, networks.params(), rollout, temperature=temperature
    ).log_probs
    np.testing.assert_allclose(rollout.sampler_log_probs, scored, atol=2e-5)


@pytest.mark.parametrize("support", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.3}])
def test_what_was_cut_away_is_on_record(support):
    rollout = sample(networks.prompts(), dataclasses.replace(SAMPLING, **support))
    scored = completion_log_probs(networks.POLICY, networks.params(), rollout).log_probs
    whole = rollout.sampler_log_probs + rollout.support_log_mass
    np.testing.assert_allclose(whole, scored, atol=2e-5)
    assert (rollout.support_log_mass <= 1e-6).all()
    assert (rollout.support_log_mass < -0.1).any()


def test_scores_equal_one_forward_pass_without_group_or_cache():
    """Prompt and completion as one plain sequence, each completion by itself."""
    prompts = networks.prompts()
    rollout = sample(prompts)
    scored = completion_log_probs(networks.POLICY, networks.params(), rollout).log_probs

    @jax.jit
    def last_log_probs(sequence, length):
        mask = jnp.arange(sequence.size) < length
        _, hidden = networks.POLICY.prefill(networks.params(), sequence[None], mask[None])
        return jax.nn.log_softmax(networks.POLICY.unembed(networks.params(), hidden)[0])

    for p, g in itertools.product(range(3), range(5)):
        length = int(prompts.mask[p].sum())
        tokens = [*prompts.tokens[p, :length].tolist(), *rollout.completion[p, g].tolist()]
        sequence = np.zeros(16, np.int32)
        sequence[: len(tokens)] = tokens
        for t in range(int(rollout.completion_mask[p, g].sum())):
            wanted = last_log_probs(sequence, length + t)[sequence[length + t]]
            np.testing.assert_allclose(scored[p, g, t], wanted, atol=2e-5)


def test_greedy_takes_the_likeliest_and_is_certain():
    rollout = sample(networks.prompts(), dataclasses.replace(SAMPLING, temperature=0.0))
    assert (rollout.completion == rollout.completion[:, :1]).all()  # a group of one answer
    assert not rollout.sampler_log_probs.any()
    cold = sample(networks.prompts(), dataclasses.replace(SAMPLING, top_k=1))
    np.testing.assert_array_equal(rollout.completion, cold.completion)
    scored = completion_log_probs(networks.POLICY, networks.params(), rollout).log_probs
    np.testing.assert_allclose(rollout.support_log_mass, scored, atol=2e-5)


def test_a_prompts_completions_do_not_depend_on_its_company():
    lengths = (7, 1, 4)
    together = sample(networks.prompts(lengths))
    prompts = networks.prompts(lengths, width=11, fill=50)  # wider, with other padding
    for p in range(3):
        one = jax.tree.map(lambda x: x[p : p + 1], prompts)  # noqa: B023
        alone = sample(one, first=p)
        np.testing.assert_array_equal(alone.completion[0], together.completion[p])
    more = sample(networks.prompts(lengths), group_size=8)  # a larger group begins the same
    np.testing.assert_array_equal(more.completion[:, :5], together.completion)


def test_completions_of_a_group_differ_and_follow_the_key():
    rollout = sample(networks.prompts())
    assert len({tuple(row) for row in np.asarray(rollout.completion[0]).tolist()}) > 1
    other = sample(networks.prompts(), first=100)
    assert (other.completion != rollout.completion).any()


def test_draws_have_the_policys_frequencies():
    prompts = networks.prompts((3,))
    rollout = sample(prompts, dataclasses.replace(SAMPLING, max_new_tokens=1), group_size=20_000)
    params = networks.params()
    _, hidden = networks.POLICY.prefill(params, prompts.tokens, prompts.mask)
    probs = np.asarray(jax.nn.softmax(networks.POLICY.unembed(params, hidden)[0]))
    seen = np.bincount(rollout.completion[0, :, 0], minlength=53) / 20_000
    errors = np.sqrt(probs * (1 - probs) / 20_000)
    assert (np.abs(seen - probs) < 5 * errors).all()


def test_padding_tokens_reach_nothing():
    a, b = networks.prompts(fill=0, width=9), networks.prompts(fill=52, width=9)
    np.testing.assert_array_equal(sample(a).completion, sample(b).completion)
    np.testing.assert_array_equal(sample(a).sampler_log_probs, sample(b).sampler_log_probs)


def test_it_stops_when_every_row_has_ended():
    """With every token an end token, one is drawn and the loop is not entered."""
    every = dataclasses.replace(SAMPLING, stop_ids=tuple(range(53)), max_new_tokens=2000)
    calls = []
    policy = dataclasses.replace(
        networks.POLICY,
        extend=lambda *args: (
            jax.debug.callback(lambda: calls.append(1)),
            networks.POLICY.extend(*args),
        )[1],
    )
    prompts = networks.prompts()
    rollout = sample_groups(
        policy,
        networks.params(),
        prompts,
        prompt_keys(KEY, 0, 3),
        group_size=2,
        sampling=every,
    )
    jax.block_until_ready(rollout)
    assert rollout.completion_mask.sum(axis=-1).tolist() == [[1, 1]] * 3
    assert not calls


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 1.0},
    ],
)
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is "):
        dataclasses.replace(SAMPLING, **bad)


def test_greedy_log_probs_cannot_be_scored():
    rollout = sample(networks.prompts())
    with pytest.raises(ValueError, match="temperature is 0"):
        completion_log_probs(networks.POLICY, networks.params(), rollout, temperature=0.0)


def test_an_empty_prompt_mask_is_finite():
    """A group that fills up a micro-batch has no prompt at all."""
    prompts = Prompts(jnp.zeros([1, 4], jnp.int32), jnp.zeros([1, 4], bool))
    rollout = sample(prompts)
    scored = completion_log_probs(networks.POLICY, networks.params(), rollout).log_probs
    assert np.isfinite(scored).all()
