"""Sums with small operands: the quickstart's task, and shapes that are harder."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence

from grpo_jax.rewards.base import Completion, Question
from grpo_jax.tasks.base import FiniteTask

Range = tuple[int, int]

MAX_QUESTIONS = 200_000
MAX_ANSWER_CHARS = 100
_SHOWN = {"2 + 5": 7, "6 + 3": 9}


@dataclasses.dataclass(frozen=True)
class Sums(FiniteTask):
    r"""Sums that the prompt has begun to answer: "What is 42 + 7?", "42 + 7 =".

    The first integer of the completion is the answer; what follows it does not matter, nor does
    it whether the completion ended. The prompt is written in the chat markup of SmolLM2 and Qwen
    (`<|im_start|>`), without a system turn and without a space at its end.

    Args:
        ranges: lowest and highest value of each term, both included, none negative.
        subtract: whether the terms after the first come with either sign.
        plain: lines of text in the place of the markup, for models that were not trained on it;
            two lines come before that show the form, and their sums are not among the questions.

    Raises:
        ValueError: for fewer than two terms, an empty or negative range, more than 200,000
            questions, or so few that training or held-out gets none.

    The default's 810 questions have two digits plus one. `ranges=((10, 99), (10, 99))` asks for
    carries, `ranges=((0, 20),) * 3, subtract=True` for chains. The split goes by the prompt, so
    that 47 + 35 may be trained on and 35 + 47 held out.

    >>> task = Sums()
    >>> question = next(q for q in map(task.held_out, range(200)) if q.answer == 49)
    >>> question.prompt
    '<|im_start|>user\nWhat is 48 + 1?<|im_end|>\n<|im_start|>assistant\n48 + 1 ='
    >>> task.reward(question, [Completion(" 49.", 5), Completion(" 494", 4), Completion("", 1)])
    [1.0, 0.0, 0.0]
    >>> Sums(plain=True).held_out(0).prompt.splitlines()[:2]
    ['2 + 5 = 7', '6 + 3 = 9']
    """

    ranges: tuple[Range, ...] = ((10, 99), (1, 9))
    subtract: bool = False
    plain: bool = False
    name = "sums"

    def split(self) -> tuple[list[Question], list[Question]]:
        sums = _sums(self.ranges, self.subtract)
        if self.plain:
            shown = "".join(f"{terms} = {value}\n" for terms, value in _SHOWN.items())
            return self.split_by_hash(
                Question(0, f"{shown}{terms} =", value)
                for terms, value in sums
                if terms not in _SHOWN
            )
        return self.split_by_hash(
            Question(
                0,
                f"<|im_start|>user\nWhat is {terms}?<|im_end|>\n<|im_start|>assistant\n{terms} =",
                value,
            )
            for terms, value in sums
        )

    def parse(self, completion: Completion) -> int | None:
        """The integer that the completion begins with, up to 100 characters of it."""
        match = re.match(r"\s*(-?\d+)(?!\d)", completion.text)
        # Python refuses to read integers of thousands of digits, and no sum needs them.
        return int(match[1]) if match and len(match[1]) <= MAX_ANSWER_CHARS else None

    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """1.0 where the first integer is the sum, else 0.0."""
        return [float(self.parse(completion) == question.answer) for completion in completions]


@dataclasses.dataclass(frozen=True)
class DemonstratedSums(FiniteTask):
    """Sums in plain chat turns behind one demonstration: "What is 2 + 5?", "2 + 5 = 7".

    The reward is 1.0 where the completion is the whole equation to the letter and ended; the
    model has to learn the form and when to stop as well as the sum.

    Args:
        ranges: lowest and highest value of each term, both included, none negative.
        subtract: whether the terms after the first come with either sign.

    Raises:
        ValueError: as `Sums` does.

    The sum of the demonstration is not among the questions: its answer stands in every prompt.
    The default has 440 questions. There is no system turn here; templates that add one of their
    own (SmolLM2's does) put it into the prompt.

    >>> task = DemonstratedSums()
    >>> question = next(q for q in map(task.held_out, range(80)) if q.answer.endswith("= 12"))
    >>> [turn["content"] for turn in question.prompt[:2]]
    ['What is 2 + 5?', '2 + 5 = 7']
    >>> task.reward(question, [Completion(question.answer, 9), Completion("12", 3)])
    [1.0, 0.0]
    """

    ranges: tuple[Range, ...] = ((0, 20), (0, 20))
    subtract: bool = False
    name = "demonstrated_sums"

    def split(self) -> tuple[list[Question], list[Question]]:
        return self.split_by_hash(
            Question(
                0,
                (
                    {"role": "user", "content": "What is 2 + 5?"},
                    {"role": "assistant", "content": "2 + 5 = 7"},
                    {"role": "user", "content": f"What is {terms}?"},
                ),
                f"{terms} = {value}",
            )
            for terms, value in _sums(self.ranges, self.subtract)
            if terms != "2 + 5"
        )

    def parse(self, completion: Completion) -> str | None:
        """The completion's text, where it ended and has the form of an equation."""
        equation = re.fullmatch(r"\d+(?: [+-] \d+)+ = -?\d+", completion.text)
        return completion.text if equation and not completion.truncated else None

    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """1.0 where the completion is exactly the equation and ended, else 0.0."""
        return [float(self.parse(completion) == question.answer) for completion in completions]


def _sums(ranges: Sequence[Range], subtract: bool) -> Iterator[tuple[str, int]]:
    """Every sum as it is written, and its value."""
    if len(ranges) < 2 or any(not 0 <= low <= high for low, high in ranges):
        raise ValueError(
            f"ranges {ranges} must be two or more pairs (low, high) with 0 <= low <= high; for "
            "negative terms set subtract=True"
        )
    size = math.prod(high - low + 1 for low, high in ranges) * (1 + subtract) ** (len(ranges) - 1)
    if size > MAX_QUESTIONS:
        raise ValueError(
            f"ranges {ranges} make {size} questions, more than the {MAX_QUESTIONS} that are "
            "listed; narrow them"
        )
    return _listed(ranges, "+-" if subtract else "+")


def _listed(ranges: Sequence[Range], signs: str) -> Iterator[tuple[str, int]]:
    operands = [range(low, high + 1) for low, high in ranges]
    for first, *others in itertools.product(*operands):
        for chosen in itertools.product(signs, repeat=len(others)):
            terms, value = str(first), first
            for sign, other in zip(chosen, others, strict=True):
                terms += f" {sign} {other}"
                value += other if sign == "+" else -other
            yield terms, value
