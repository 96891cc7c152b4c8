"""Sort a few digits: short answers, easy to begin with, harder with every digit more."""

import dataclasses
import random
import re
from collections.abc import Sequence

from grpo_jax.rewards.base import Completion, Question
from grpo_jax.tasks.base import GeneratedTask

MAX_DIGITS = 100


@dataclasses.dataclass(frozen=True)
class Sorting(GeneratedTask):
    """Digits to be written in rising order, behind two demonstrations in chat turns.

    Args:
        num_digits: digits in each question, 2 to 100; a digit may come several times.
        held_out_size: number of held-out questions, all different.

    Raises:
        ValueError: if `num_digits` is out of range or there are fewer than `held_out_size`
            different held-out questions (about 10 ** num_digits / 5).

    The demonstrations are not among the questions.

    >>> task = Sorting(num_digits=3)
    >>> question = task.train(seed=0, number=0)
    >>> [turn["content"] for turn in question.prompt[:2]]
    ['Sort 7 2 5', '2 5 7']
    >>> task.reward(Question(0, "Sort 3 1 2", "1 2 3"), [Completion("1 2 3", 6)])
    [1.0]
    """

    num_digits: int = 3
    held_out_size: int = 100
    name = "sorting"

    def __post_init__(self) -> None:
        if not 2 <= self.num_digits <= MAX_DIGITS:
            raise ValueError(f"num_digits of {self.num_digits} must be 2 to {MAX_DIGITS}")
        super().__post_init__()

    def draw(self, rng: random.Random) -> Question | None:
        digits = [rng.randrange(10) for _ in range(self.num_digits)]
        shown = [[7, 2, 5, 0, 9, 4][i % 6] for i in range(self.num_digits)]
        shown_too = [[4, 8, 1, 1, 6, 3][i % 6] for i in range(self.num_digits)]
        if digits in (shown, shown_too):
            return None
        turns = []
        for example in (shown, shown_too):
            turns.append({"role": "user", "content": f"Sort {_written(example)}"})
            turns.append({"role": "assistant", "content": _written(sorted(example))})
        turns.append({"role": "user", "content": f"Sort {_written(digits)}"})
        return Question(0, tuple(turns), _written(sorted(digits)))

    def parse(self, completion: Completion) -> str | None:
        """Digits with single spaces between them, in a completion that ended."""
        text = completion.text.strip()
        if completion.truncated or not re.fullmatch(r"[0-9](?: [0-9])*", text):
            return None
        return text

    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """1.0 where a completion is the sorted digits, nothing else, and ended; else 0.0."""
        return [float(self.parse(completion) == question.answer) for completion in completions]


def _written(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))
