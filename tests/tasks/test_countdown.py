"""Countdown: solvable by brute force, judged exactly, not hurt by hostile text."""

import ast
import itertools
import operator
import random
import time
from fractions import Fraction

import pytest

from grpo_jax.rewards import Completion, Question
from grpo_jax.tasks import Countdown
from grpo_jax.tasks.countdown import _DEMONSTRATIONS, evaluate

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def reachable(values, symbols):
    """Every value that the numbers reach together, by brute force."""
    if len(values) == 1:
        return {values[0]}
    found = set()
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        a, b = values[i], values[j]
        joined = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}
        for symbol in symbols:
            if joined[symbol] is not None:
                found |= reachable([*rest, joined[symbol]], symbols)
    return found


def by_ast(text):
    """The value by Python's own grammar: an independent reading of the same text."""

    def value(node):
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        raise SyntaxError

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


@pytest.mark.parametrize(("num_numbers", "count"), [(3, 150), (4, 12)])
@pytest.mark.parametrize("operators", ["+-*/", "+-"])
def test_every_question_can_be_solved(num_numbers, count, operators):
    task = Countdown(num_numbers=num_numbers, operators=operators, held_out_size=20)
    for number in range(count):
        question = task.train(0, number)
        numbers, target = question.answer["numbers"], question.answer["target"]
        assert len(numbers) == num_numbers
        assert all(1 <= n <= 20 for n in numbers)
        assert 1 <= target <= 100
        assert target != sum(numbers)
        assert target in reachable([Fraction(n) for n in numbers], operators)
        written = f"Numbers: {', '.join(map(str, numbers))}. Target: {target}."
        assert question.prompt[-1] == {"role": "user", "content": written}
        roles = [turn["role"] for turn in question.prompt]
        assert roles == ["user", "assistant"] * 2 + ["user"]


@pytest.mark.parametrize("num_numbers", [3, 4])
def test_the_demonstrations_are_right_and_never_asked(num_numbers):
    task = Countdown(num_numbers=num_numbers, max_number=9, max_target=9, held_out_size=5)
    for numbers, target, expression in _DEMONSTRATIONS[num_numbers]:
        question = Question(0, "", {"numbers": list(numbers), "target": target})
        assert task.reward(question, [Completion(expression, 9)]) == [1.0]
        shown = task.content(question)
        assert all(task.content(task.train(0, n)) != shown for n in range(500))


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("5 * (8 + 3)", 1.0),
        ("(3+8)*5", 1.0),
        (" 5*3 + 5*8 ", 0.0),  # 55, but 5 twice
        ("5 * 11", 0.0),
        ("55", 0.0),
        ("5 * 8 + 3", 0.0),
        ("5 * (8 + 3) = 55", 0.0),
        ("The answer is 5 * (8 + 3)", 0.0),
        ("5 * (8 + 3) 5", 0.0),
        ("5 * (8 + 3", 0.0),
        ("5 * (8 + 3))", 0.0),
        ("5 \u00d7 (8 + 3)", 0.0),
        ("\u0665 * (8 + 3)", 0.0),
        ("5 * (8 - -3)", 0.0),
        ("5 * (8 + 3) + 0", 0.0),
        ("", 0.0),
    ],
)
def test_the_verifier_by_hand(text, reward):
    question = Question(0, "", {"numbers": [3, 8, 5], "target": 55})
    assert Countdown().reward(question, [Completion(text, 9)]) == [reward]
    assert Countdown().reward(question, [Completion(text, 9, truncated=True)]) == [0.0]


def test_division_is_exact():
    # 8 / (3 - 8/3) = 24: in floating point it comes out a little off.
    assert evaluate("8 / (3 - 8 / 3)") == (24, (8, 3, 8, 3))
    assert evaluate("1 / 3 * 3") == (1, (1, 3, 3))
    assert evaluate("1 / (2 - 2)") is None


@pytest.mark.parametrize("seed", range(4))
def test_the_parser_agrees_with_pythons_grammar_on_random_text(seed):
    rng = random.Random(seed)
    known = 0
    for _ in range(3000):
        text = "".join(rng.choices(["1", "2", "30", *"+-*/() "], k=rng.randint(1, 9)))
        result = evaluate(text)
        expected = by_ast(text)
        if result is None:
            assert expected is None, text
        else:
            assert result[0] == expected, text
            known += 1
    assert known > 100


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1_000_000,
        "(" * 90 + "1" + ")" * 90,
        "(" * 10 + "1" + ")" * 9,
        "9**9**9**9",
        "9" * 1_000_000,
        "1+" * 500_000 + "1",
        "1 " * 90,
        " " * 100,
        "-" * 100,
        "__import__('os')",
        "1e9",
        "1_0",
        "0x10",
        "1//2",
        "3.5",
        "\x00",
        "\ud800",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_hostile_text_is_no_expression(text):
    started = time.process_time()
    assert evaluate(text) is None
    assert time.process_time() - started < 1.0


def test_the_longest_text_that_is_read_is_read_quickly():
    started = time.process_time()
    value, used = evaluate("*".join(["9"] * 100))
    assert value == 9**100
    assert len(used) == 100
    assert evaluate("(" * 20 + "1" + ")" * 20) == (1, (1,))
    assert evaluate("(" * 21 + "1" + ")" * 21) is None
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_numbers": 5}, "num_numbers of 5 must be 3 or 4"),
        ({"max_number": 0}, "max_number of 0"),
        ({"operators": "+^"}, r"operators '\+\^' must be some of"),
        ({"operators": ""}, "operators '' must be some of"),
        ({"operators": "+"}, "countdown: no training question"),
        ({"max_number": 2}, "only [0-9]+ different held-out questions found"),
    ],
)
def test_values_that_do_not_do_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Countdown(**values)
