"""Bad input gets one clear error, early, and nothing written: reward functions."""

import re
import threading

import pytest
import toys
from refused_runs import FIELDS, refused

from grpo_jax import tasks
from grpo_jax.rewards import RewardError


def rewards_that(behave, *, at=(2, 1)):
    """The task's reward, but for one group: of this step and this place in the step."""
    task, calls = tasks.MaxOfThree(), []

    def reward(question, completions):
        calls.append(question.number)
        step, place = at
        if len(calls) > (step - 1) * toys.SMALL["num_prompts"] + place:
            return behave(question, completions)
        return task.reward(question, completions)

    return {"judge": reward}


def failed(tmp_path, behave, *parts, **fields):
    """A run that fails at step 2, in its second group; what was there before stays."""
    with pytest.raises(RewardError) as caught:
        toys.run(tmp_path / "run", steps=3, rewards=rewards_that(behave), **FIELDS | fields)
    message = str(caught.value)
    for part in ("'judge'", "step 2", "question 5", *parts):
        assert part in message, message
    assert [line["step"] for line in toys.lines(tmp_path / "run", "metrics.jsonl")] == [1]
    return message


def test_a_reward_that_raises_is_named_with_the_completion(tmp_path):
    def behave(question, completions):
        if any(row is completions[-1] or row.text == completions[-1].text for row in completions):
            raise ZeroDivisionError("no judge")
        return [0.0] * len(completions)

    message = failed(tmp_path, behave, "ZeroDivisionError", "no judge", "completion")
    assert re.search(r"completion \d of the group, text '", message)
    assert "NaN" in message


def test_a_reward_of_the_wrong_number(tmp_path):
    failed(tmp_path, lambda question, completions: [1.0], "1 values", "expected 4")


def test_a_reward_that_is_no_number(tmp_path):
    failed(tmp_path, lambda question, completions: ["good"] * 4, "'good'", "completion 0")


def test_a_reward_that_is_infinite(tmp_path):
    failed(tmp_path, lambda question, completions: [0, 0, float("inf"), 0], "inf", "completion 2")


def test_a_reward_that_takes_too_long(tmp_path):
    given_up = threading.Event()

    def behave(question, completions):
        given_up.wait()
        return [0.0] * len(completions)

    try:
        failed(tmp_path, behave, "0.5 s", "reward_timeout_seconds", reward_timeout_seconds=0.5)
    finally:
        given_up.set()


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize(
    ("rewards", "weights", "parts"),
    [
        (None, {"max_of_thre": 1.0}, ["max_of_thre", "max_of_three"]),
        ({}, None, ["reward function"]),
        (None, {"max_of_three": float("nan")}, ["nan", "finite"]),
    ],
    ids=["unknown", "none", "not finite"],
)
def test_reward_weights_that_cannot_be_used(rewards, weights, parts, tmp_path):
    message = refused(tmp_path, *parts, rewards=rewards, reward_weights=weights, steps=1)
    assert "weights for []" not in message
