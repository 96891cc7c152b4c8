"""Any of the hundred tasks of reasoning_gym, which is imported only when one is asked for."""

import importlib
import random
from collections.abc import Sequence
from typing import Any

from grpo_jax.rewards.base import Completion, Question
from grpo_jax.tasks.base import GeneratedTask

# Some of the scorers hand the answer to a parser that can take very long over a long text.
MAX_ANSWER_CHARS = 2_000
INSTRUCTION = "Give the final answer inside <answer> and </answer>."


class ReasoningGym(GeneratedTask):
    """A task of the package reasoning-gym (github.com/open-thought/reasoning-gym).

    Args:
        dataset: its name there, such as "chain_sum".
        pool_size: questions to draw from, training and held-out together; training draws with
            repetition. A few datasets make them all at once.
        held_out_size: number of held-out questions, all different.
        partial_credit: whether to pass on the dataset's own score. By default the reward is 1.0
            where that score is 1.0, else 0.0: many datasets give part of the score to an answer
            that merely contains the right one, which a policy learns to exploit.
        **params: the dataset's own parameters, such as min_terms=2.

    Raises:
        ImportError: if reasoning-gym is not installed.
        ValueError: if there is no such dataset, or it has too few different questions.

    The prompt is one user turn, the dataset's question and one line that asks for `<answer>`
    tags. The answer is what stands in the last pair of tags, or without tags the whole text,
    stripped. `Question.answer` is the question's index in the pool.

    Beware of three things in reasoning-gym 0.1.25. Some scorers (countdown, puzzle24,
    polynomial_multiplication among them) read the answer by sympy's `parse_expr`, which evaluates
    it as Python: run these only where that may happen. A scorer that chokes on an answer counts
    as 0.0. And a few datasets go through sets, so that their questions differ between processes
    unless PYTHONHASHSEED is set (isomorphic_strings, knight_swap, polynomial_multiplication,
    ransom_note, word_ladder).
    """

    def __init__(
        self,
        dataset: str,
        *,
        pool_size: int = 10_000,
        held_out_size: int = 100,
        partial_credit: bool = False,
        **params: Any,
    ) -> None:
        try:
            reasoning_gym = importlib.import_module("reasoning_gym")
        except ImportError as error:
            raise ImportError(
                'ReasoningGym needs reasoning-gym: pip install "grpo-jax[tasks]"'
            ) from error
        self.name = f"reasoning_gym/{dataset}"
        self.held_out_size = held_out_size
        self.pool_size = pool_size
        self.partial_credit = partial_credit
        # One fixed pool for all seeds: a run's seed chooses from it, and the split cuts it.
        self._dataset = reasoning_gym.create_dataset(dataset, seed=0, size=pool_size, **params)
        self.__post_init__()

    def draw(self, rng: random.Random) -> Question:
        index = rng.randrange(self.pool_size)
        question = self._dataset[index]["question"]
        return Question(0, ({"role": "user", "content": f"{question}\n{INSTRUCTION}"},), index)

    def parse(self, completion: Completion) -> str | None:
        """What the last <answer> tags hold, or the whole text; None if empty or very long."""
        before, closed, _ = completion.text.rpartition("</answer>")
        _, opened, inside = before.rpartition("<answer>")
        answer = (inside if opened and closed else completion.text).strip()
        return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None

    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """1.0 where the dataset's score is 1.0, else 0.0; or that score for partial credit."""
        entry = self._dataset[question.answer]
        scores = [self._score(self.parse(completion), entry) for completion in completions]
        return scores if self.partial_credit else [float(score == 1.0) for score in scores]

    def _score(self, answer: str | None, entry: dict[str, Any]) -> float:
        if answer is None:
            return 0.0
        try:
            return float(self._dataset.score_answer(answer, entry))
        except Exception:  # whatever a policy's text sets off in a scorer, it is not right
            return 0.0
