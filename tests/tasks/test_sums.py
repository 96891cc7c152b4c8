"""Sums: all of them, the prompt to the letter, the first integer."""

import itertools
import re

import pytest

from grpo_jax.rewards import Completion, Question
from grpo_jax.tasks import DemonstratedSums, Sums


def everything(task):
    train = [task.train(0, n) for n in range(task.num_train)]
    return train + [task.held_out(n) for n in range(task.num_held_out)]


def test_the_default_is_810_prompts_to_the_letter():
    expected = {
        f"<|im_start|>user\nWhat is {a} + {b}?<|im_end|>\n<|im_start|>assistant\n{a} + {b} =": a + b
        for a in range(10, 100)
        for b in range(1, 10)
    }
    assert {q.prompt: q.answer for q in everything(Sums())} == expected
    assert len(expected) == 810


def test_chains_are_all_there_and_their_values_are_pythons():
    questions = everything(Sums(ranges=((0, 3), (1, 4), (2, 5)), subtract=True))
    asked = {}
    for question in questions:
        terms = re.search(r"What is (.*)\?", question.prompt)[1]
        assert question.prompt.endswith(f"assistant\n{terms} =")
        asked[terms] = question.answer
    expected = {
        f"{a} {s} {b} {t} {c}"
        for a, b, c in itertools.product(range(4), range(1, 5), range(2, 6))
        for s, t in itertools.product("+-", repeat=2)
    }
    assert set(asked) == expected
    assert all(value == eval(terms) for terms, value in asked.items())  # our own text, no policy's


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 49", 49),
        ("49", 49),
        ("\n 49<b>", 49),
        (" 49.5", 49),
        (" -3", -3),
        (" 4 9", 4),
        (" 490", 490),
        (" 049", 49),
        (" x 49", None),
        (" - 3", None),
        ("", None),
        (" +49", None),
        ("9" * 1_000_000, None),
        (" " * 1_000_000, None),
    ],
    ids=lambda value: ascii(value)[:12],
)
def test_the_first_integer_is_the_answer(text, value):
    completion = Completion(text, 6, truncated=True)
    task = Sums()
    assert task.parse(completion) == value
    assert task.reward(Question(0, "", 49), [completion]) == [float(value == 49)]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (((1, 9),), "two or more pairs"),
        (((1, 9), (5, 4)), "two or more pairs"),
        (((-5, 9), (1, 4)), "set subtract=True"),
        (((10, 99),) * 3, "make 729000 questions, more than the 200000"),
        (((1, 1), (1, 1)), r"sums: \d training and \d held-out questions"),
    ],
)
@pytest.mark.parametrize("task", [Sums, DemonstratedSums])
def test_ranges_that_do_not_do_are_refused(task, ranges, message):
    with pytest.raises(ValueError, match=message):
        task(ranges)


def test_plain_sums_come_after_two_lines_that_are_not_asked():
    questions = everything(Sums(plain=True))
    shown = "2 + 5 = 7\n6 + 3 = 9\n"
    expected = {f"{shown}{a} + {b} =": a + b for a in range(10, 100) for b in range(1, 10)}
    assert {q.prompt: q.answer for q in questions} == expected
    small = {q.prompt.removeprefix(shown) for q in everything(Sums(((0, 9), (0, 9)), plain=True))}
    assert len(small) == 98
    assert not small & {"2 + 5 =", "6 + 3 ="}


def test_a_demonstrated_sum_asks_as_it_was_shown():
    questions = everything(DemonstratedSums())
    assert len(questions) == 21 * 21 - 1
    for question in questions:
        *demonstration, asked = question.prompt
        assert [turn["role"] for turn in demonstration] == ["user", "assistant"]
        assert demonstration[0]["content"] == "What is 2 + 5?"
        assert demonstration[1]["content"] == "2 + 5 = 7"
        a, b = map(int, re.fullmatch(r"What is (\d+) \+ (\d+)\?", asked["content"]).groups())
        assert asked["role"] == "user"
        assert question.answer == f"{a} + {b} = {a + b}"
        assert (a, b) != (2, 5)


def test_a_demonstrated_sum_wants_the_whole_equation_and_an_end():
    question = Question(0, "", "3 + 9 = 12")
    right = Completion("3 + 9 = 12", 11)
    wrong = ["12", "3 + 9 = 12.", " 3 + 9 = 12", "3 + 9 = 12\n", "3+9=12", "3 + 9 = 13", ""]
    completions = [right, Completion(right.text, 13, truncated=True)]
    completions += [Completion(text, 11) for text in wrong]
    task = DemonstratedSums()
    assert task.reward(question, completions) == [1.0] + [0.0] * (len(wrong) + 1)
    assert task.parse(Completion("3 + 9 = 13", 11)) == "3 + 9 = 13"
    assert task.parse(Completion("12", 3)) is None
