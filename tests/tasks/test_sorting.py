"""Sorting: the right line, nothing else, and ended."""

import pytest

from grpo_jax.rewards import Completion, Question
from grpo_jax.tasks import Sorting


@pytest.mark.parametrize("num_digits", [3, 5, 12])
def test_answers_are_the_sorted_digits(num_digits):
    task = Sorting(num_digits=num_digits)
    for question in [task.train(1, n) for n in range(200)] + [task.held_out(n) for n in range(100)]:
        turns = [turn["content"] for turn in question.prompt]
        for asked, answer in zip(turns[::2], [*turns[1::2], question.answer], strict=True):
            digits = asked.removeprefix("Sort ").split(" ")
            assert len(digits) == num_digits
            assert answer == " ".join(sorted(digits))
        assert turns[4] not in (turns[0], turns[2])


def test_only_the_exact_line_counts():
    question = Question(0, "", "1 2 2")
    texts = ["1 2 2", " 1 2 2\n", "1 2", "1 2 2 2", "2 1 2", "122", "1, 2, 2", "Sorted: 1 2 2", ""]
    task = Sorting()
    rewards = task.reward(question, [Completion(text, 6) for text in texts])
    assert rewards == [1.0, 1.0] + [0.0] * 7
    assert task.reward(question, [Completion("1 2 2", 6, truncated=True)]) == [0.0]
    assert task.parse(Completion("2 1", 4)) == "2 1"
    assert task.parse(Completion("1 " * 500_000 + "x", 9)) is None


@pytest.mark.parametrize("num_digits", [1, 101])
def test_values_that_do_not_do_are_refused(num_digits):
    with pytest.raises(ValueError, match=f"num_digits of {num_digits} must be 2 to 100"):
        Sorting(num_digits=num_digits)
    with pytest.raises(ValueError, match="different held-out questions found"):
        Sorting(num_digits=2)
