"""Scoring a batch: the numbers, and what is said when a reward function misbehaves."""

import math
import sys
import threading
import time

import numpy as np
import pytest

from grpo_jax.rewards import Completion, Question, RewardError, each, score_groups, weighted_sum


def batch(num_questions=3, group_size=4):
    questions = [Question(10 + p, f"question {p}") for p in range(num_questions)]
    groups = [
        [Completion(f"text {p} {g}", 7 * p + g) for g in range(group_size)]
        for p in range(num_questions)
    ]
    return questions, groups


def score(reward_fn, *, step=5, timeout_seconds=20.0, **shape):
    questions, groups = batch(**shape)
    return score_groups(
        {"mine": reward_fn}, questions, groups, step=step, timeout_seconds=timeout_seconds
    )


def test_every_number_is_where_it_belongs():
    questions, groups = batch()
    functions = {
        "tokens": each(lambda q, c: c.num_tokens),
        "number": lambda q, cs: (float(q.number) for _ in cs),  # any iterable will do
        "array": lambda q, cs: np.arange(len(cs), dtype=np.float16),
        "right": lambda q, cs: [c.text.endswith("2") for c in cs],
    }
    rewards = score_groups(functions, questions, groups, step=0, timeout_seconds=20.0)
    assert rewards.shape == (3, 4, 4)
    assert rewards.dtype == np.float32
    for p in range(3):
        for g in range(4):
            assert rewards[p, g].tolist() == [7 * p + g, 10 + p, g, float(g == 2)]


def test_nan_says_does_not_apply():
    rewards = score(lambda q, cs: [math.nan, 1, math.nan, 0])
    np.testing.assert_array_equal(rewards[0, :, 0], [math.nan, 1, math.nan, 0])


def test_the_one_that_raises_is_named_with_its_text_made_inert():
    def reward(question, completion):
        if completion.text == "text 1 2":
            raise KeyError("no\x1b[31m such key")
        return 0.0

    with pytest.raises(RewardError) as caught:
        score(each(reward))
    message = str(caught.value)
    for part in ("'mine'", "step 5", "question 11", "completion 2 ", "'text 1 2'", "KeyError"):
        assert part in message
    assert "\x1b" not in message
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_long_hostile_text_is_shortened_and_inert():
    def reward(question, completion):
        raise ValueError("x" * 10_000)

    group = [Completion("\x1b]0;title\x07" + "y" * 10_000, 3)]
    with pytest.raises(RewardError) as caught:
        score_groups(
            {"mine": each(reward)}, [Question(0, "?")], [group], step=0, timeout_seconds=20.0
        )
    message = str(caught.value)
    assert len(message) < 700
    assert "\\x1b]0;title\\x07yyy" in message
    assert message.isprintable()


def test_a_function_that_raises_only_on_the_whole_group_says_so():
    def reward(question, completions):
        if len(completions) > 1:
            raise ZeroDivisionError("no spread")
        return [0.0]

    with pytest.raises(RewardError, match=r"ZeroDivisionError.*the group as a whole"):
        score(reward)


def test_an_exit_in_a_reward_function_is_an_error_of_its_own():
    with pytest.raises(RewardError, match="SystemExit"):
        score(lambda q, cs: sys.exit(3))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], r"returned 2 values, expected 4 values"),
        ([1.0] * 5, r"returned 5 values, expected 4 values"),
        (0.5, r"returned 0\.5, expected 4 values"),
        (None, r"returned None, expected 4 values"),
        ([0, 0, "1.0", 0], r"returned '1\.0' for completion 2 .*text 'text 0 2': not a number"),
        ([0, None, 0, 0], r"returned None for completion 1 .*not a number; NaN says"),
        ([0, [1.0], 0, 0], r"returned \[1\.0\] for completion 1 .*not a number"),
        ([0, 1j, 0, 0], r"returned 1j for completion 1 .*not a number"),
        ([0, 10**400, 0, 0], r"for completion 1 .*not a number"),
        ([0, 0, 0, math.inf], r"returned inf for completion 3 .*not finite"),
        ([-math.inf, 0, 0, 0], r"returned -inf for completion 0 .*not finite"),
        ([0, 1e39, 0, 0], r"returned 1e\+39 for completion 1 .*not finite in float32"),
    ],
)
def test_what_is_no_reward_is_refused(values, expected):
    with pytest.raises(RewardError, match=expected) as caught:
        score(lambda q, cs: values)
    assert "'mine' at step 5, question 10" in str(caught.value)


def test_a_slow_function_is_reported_in_time_with_the_way_out():
    released = threading.Event()

    def reward(question, completions):
        if question.number == 11:
            released.wait(60)
        return [0.0] * len(completions)

    started = time.monotonic()
    with pytest.raises(RewardError) as caught:
        score(reward, timeout_seconds=0.2)
    taken = time.monotonic() - started
    released.set()
    assert taken < 30
    for part in ("'mine'", "step 5", "question 11", "0.2 s", "raise reward_timeout_seconds"):
        assert part in str(caught.value)


def test_the_timeout_holds_for_each_group_and_not_for_the_batch():
    def reward(question, completions):
        time.sleep(0.25)
        return [1.0] * len(completions)

    assert score(reward, timeout_seconds=1.75, num_questions=8).min() == 1.0


def test_one_thread_serves_a_whole_batch_and_ends_with_it():
    seen = set()

    def reward(question, completions):
        seen.add(threading.current_thread())
        return [0.0] * len(completions)

    score(reward, num_questions=10)
    (thread,) = seen
    assert thread.daemon
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_a_batch_that_does_not_fit_is_refused():
    questions, groups = batch()
    reward_fns = {"zero": lambda q, cs: [0.0] * len(cs)}
    with pytest.raises(ValueError, match="3 questions and 2 groups"):
        score_groups(reward_fns, questions, groups[:2], step=0, timeout_seconds=1.0)
    ragged = [*groups[:2], groups[2][:3]]
    with pytest.raises(ValueError, match=r"of sizes \[3, 4\]"):
        score_groups(reward_fns, questions, ragged, step=0, timeout_seconds=1.0)
    with pytest.raises(ValueError, match="no reward function"):
        score_groups({}, questions, groups, step=0, timeout_seconds=1.0)
    with pytest.raises(ValueError, match="reward_timeout_seconds of 0"):
        score_groups(reward_fns, questions, groups, step=0, timeout_seconds=0)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_sum_is_the_loop_over_what_applies(seed):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(4, 5, 3)).astype(np.float32)
    rewards[rng.random(rewards.shape) < 0.5] = np.nan
    rewards[0, 0] = np.nan
    weights = [1.0, -0.5, 0.0]
    total = weighted_sum(rewards, weights)
    assert total.dtype == np.float32
    for p in range(4):
        for g in range(5):
            pairs = zip(weights, rewards[p, g].tolist(), strict=True)
            terms = [weight * reward for weight, reward in pairs if not math.isnan(reward)]
            if terms:
                assert total[p, g] == pytest.approx(sum(terms), rel=1e-6, abs=1e-7)
            else:
                assert math.isnan(total[p, g])


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, math.inf], []])
def test_weights_are_one_finite_number_for_each_function(weights):
    with pytest.raises(ValueError, match="must be 2 finite numbers"):
        weighted_sum(np.zeros((1, 2, 2), np.float32), weights)
