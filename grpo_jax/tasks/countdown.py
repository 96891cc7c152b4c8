"""Countdown: reach a target with given numbers, each used exactly once. Checked exactly."""

import dataclasses
import operator
import random
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from grpo_jax.rewards.base import Completion, Question
from grpo_jax.tasks.base import GeneratedTask

# An expression of four numbers needs far less; beyond these the text is not read at all.
MAX_EXPRESSION_CHARS = 200
MAX_DEPTH = 20

_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_DEMONSTRATIONS = {
    3: (((2, 7, 4), 5, "7 + 2 - 4"), ((9, 1, 6), 4, "9 + 1 - 6")),
    4: (((2, 7, 4, 1), 6, "7 + 2 - 4 + 1"), ((9, 1, 6, 3), 7, "9 + 1 - 6 + 3")),
}


@dataclasses.dataclass(frozen=True)
class Countdown(GeneratedTask):
    """Write an expression of the given numbers whose value is the target.

    Two demonstrations come first, as chat turns. Every question has a solution: it was made from
    one, by joining the shuffled numbers with random operators through whole, positive values.

    Args:
        num_numbers: 3 or 4.
        max_number: numbers are 1 to this.
        max_target: targets are 1 to this.
        operators: those a question may need; an answer may use all of + - * / in any case.
        held_out_size: number of held-out questions, all different.

    Raises:
        ValueError: if a value is out of range, or the ranges hold too few questions.

    Choice: no target is the plain sum of all numbers; at 135M parameters that is what a model
    tries first, and a habit that is right now and then is not worth rewarding. Two questions are
    the same if they have the same numbers in any order and the same target.

    >>> task = Countdown()
    >>> question = Question(0, "...", {"numbers": [3, 8, 5], "target": 55})
    >>> texts = ["5 * (8 + 3)", "(3 + 8) * 5 = 55", "8 * 5 + 5 * 3", "11 * 5"]
    >>> task.reward(question, [Completion(text, 9) for text in texts])
    [1.0, 0.0, 0.0, 0.0]
    """

    num_numbers: int = 3
    max_number: int = 20
    max_target: int = 100
    operators: str = "+-*/"
    held_out_size: int = 200
    name = "countdown"

    def __post_init__(self) -> None:
        if self.num_numbers not in _DEMONSTRATIONS:
            raise ValueError(f"num_numbers of {self.num_numbers} must be 3 or 4")
        if self.max_number < 1 or self.max_target < 1:
            raise ValueError(
                f"max_number of {self.max_number} and max_target of {self.max_target} must be 1 "
                "or more"
            )
        if not self.operators or not set(self.operators) <= set(_OPERATORS):
            raise ValueError(f"operators {self.operators!r} must be some of '+-*/'")
        super().__post_init__()

    def draw(self, rng: random.Random) -> Question | None:
        numbers = [rng.randint(1, self.max_number) for _ in range(self.num_numbers)]
        values = [Fraction(number) for number in rng.sample(numbers, len(numbers))]
        while len(values) > 1:
            left, right = (values.pop(rng.randrange(len(values))) for _ in range(2))
            value = _OPERATORS[rng.choice(self.operators)](left, right)
            if value.denominator != 1 or value < 1:
                return None
            values.append(value)
        target = int(values[0])
        if target > self.max_target or target == sum(numbers):
            return None
        turns = []
        for given, reached, expression in _DEMONSTRATIONS[self.num_numbers]:
            if sorted(given) == sorted(numbers) and reached == target:
                return None
            turns.append({"role": "user", "content": _written(given, reached)})
            turns.append({"role": "assistant", "content": expression})
        turns.append({"role": "user", "content": _written(numbers, target)})
        return Question(0, tuple(turns), {"numbers": numbers, "target": target})

    def content(self, question: Question) -> str:
        return f"{sorted(question.answer['numbers'])} {question.answer['target']}"

    def parse(self, completion: Completion) -> tuple[Fraction, tuple[int, ...]] | None:
        """The expression's value and the numbers in it, in a completion that ended."""
        return None if completion.truncated else evaluate(completion.text)

    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """1.0 where a completion is a right expression, nothing else, and ended; else 0.0."""
        target, numbers = question.answer["target"], sorted(question.answer["numbers"])
        rewards = []
        for completion in completions:
            value, used = self.parse(completion) or (None, ())
            rewards.append(float(value == target and sorted(used) == numbers))
        return rewards


def evaluate(text: str) -> tuple[Fraction, tuple[int, ...]] | None:
    """The exact value of an arithmetic expression, and the numbers in it from left to right.

    Args:
        text: whole numbers, + - * / and parentheses; no signs before numbers, no powers.

    Returns:
        None if the text is anything else, divides by zero, is longer than 200 characters or
        nests parentheses more than 20 deep. It is parsed here, never handed to Python.

    >>> evaluate("(1 + 2) / 6")
    (Fraction(1, 2), (1, 2, 6))
    >>> evaluate("2 ** 9") is None
    True
    """
    # Length first: nothing below looks at more than this.
    if len(text) > MAX_EXPRESSION_CHARS or not re.fullmatch(r"[0-9+\-*/() \n\t]+", text):
        return None
    tokens = re.findall(r"[0-9]+|[-+*/()]", text)
    used: list[int] = []
    stream = iter([*tokens, ""])
    try:
        value, after = _sum(next(stream), stream, used, 0)
    except (_NotAnExpressionError, ZeroDivisionError):
        return None
    return None if after else (value, tuple(used))


class _NotAnExpressionError(Exception):
    pass


def _sum(token: str, stream: Iterator[str], used: list[int], depth: int) -> tuple[Fraction, str]:
    """A sum of products that starts with `token`: its value, and the token after it."""
    value, token = _product(token, stream, used, depth)
    while token in ("+", "-"):
        apply = _OPERATORS[token]
        other, token = _product(next(stream), stream, used, depth)
        value = apply(value, other)
    return value, token


def _product(
    token: str, stream: Iterator[str], used: list[int], depth: int
) -> tuple[Fraction, str]:
    """A product of numbers and parentheses that starts with `token`, and the token after it."""
    value = _atom(token, stream, used, depth)
    token = next(stream)
    while token in ("*", "/"):
        apply = _OPERATORS[token]
        value = apply(value, _atom(next(stream), stream, used, depth))
        token = next(stream)
    return value, token


def _atom(token: str, stream: Iterator[str], used: list[int], depth: int) -> Fraction:
    if token.isdigit():
        used.append(int(token))
        return Fraction(used[-1])
    if token != "(" or depth == MAX_DEPTH:
        raise _NotAnExpressionError
    value, after = _sum(next(stream), stream, used, depth + 1)
    if after != ")":
        raise _NotAnExpressionError
    return value


def _written(numbers: Sequence[int], target: int) -> str:
    return f"Numbers: {', '.join(map(str, numbers))}. Target: {target}."
