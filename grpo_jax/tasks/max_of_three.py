"""The largest of three digits: a toy that a tiny model trained from nothing learns in seconds."""

import dataclasses
import itertools
from collections.abc import Sequence

from grpo_jax.rewards.base import Completion, Question
from grpo_jax.tasks.base import FiniteTask

END = "."
ALPHABET = "0123456789=+>" + END
"""The characters of a character-level model's vocabulary; the last one is its end token."""


@dataclasses.dataclass(frozen=True)
class MaxOfThree(FiniteTask):
    """All 1000 prompts like "583=", to be answered with "8" and the end token.

    The reward is the share of the two target characters, the digit and the end, that stand in
    their place. A completion's text comes without the end token: it is in place exactly if the
    completion ended after one character.

    >>> task = MaxOfThree()
    >>> answers = [Completion("8", 2), Completion("88", 3), Completion("7", 2), Completion("", 1)]
    >>> task.reward(Question(0, "583=", "8"), answers)
    [1.0, 0.5, 0.5, 0.0]
    """

    name = "max_of_three"

    def split(self) -> tuple[list[Question], list[Question]]:
        triples = itertools.product("0123456789", repeat=3)
        return self.split_by_hash(Question(0, "".join(t) + "=", max(t)) for t in triples)

    def parse(self, completion: Completion) -> str | None:
        """The first character, if it is a digit."""
        first = completion.text[:1]
        return first if first and first in "0123456789" else None

    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """0.0, 0.5 or 1.0: half for the digit, half for ending after one character."""
        return [
            (
                (completion.text[:1] == question.answer)
                + (len(completion.text) == 1 and not completion.truncated)
            )
            / 2
            for completion in completions
        ]
