"""What a task is, and two ways to build one: from a list, or from a generator. No JAX here."""

import abc
import dataclasses
import functools
import random
import zlib
from collections.abc import Iterable, Sequence

from grpo_jax.rewards.base import Completion, Question

HELD_OUT_ONE_IN = 5
MAX_DRAWS = 10_000


class Task(abc.ABC):
    """Questions and their verifier, seeded and stateless.

    A question is a function of the seed and its number alone, so that the position in the data is
    a number and a resumed run sees what an uninterrupted one would have seen.

    Attributes:
        name: what the run calls the task; part of what seeds its questions.
    """

    name: str

    @property
    @abc.abstractmethod
    def num_held_out(self) -> int:
        """How many held-out questions there are."""

    @abc.abstractmethod
    def train(self, seed: int, number: int) -> Question:
        """Training question 0, 1, 2, ... without end. ValueError for a negative number."""

    @abc.abstractmethod
    def held_out(self, number: int) -> Question:
        """Held-out question 0 ... num_held_out - 1, the same for every seed, never trained on.

        Raises IndexError for any other number.
        """

    @abc.abstractmethod
    def parse(self, completion: Completion) -> object | None:
        """The answer that the verifier reads in a completion; None where it can read none.

        Right or wrong is not asked: a run in which nothing is ever parsed has a prompt, a token
        limit or a model that does not fit the task, whatever the rewards say.
        """

    @abc.abstractmethod
    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """The task's reward function: a number for each completion, without unit."""

    def content(self, question: Question) -> str:
        """The text that says whether two questions are the same; the split goes by it."""
        if isinstance(question.prompt, str):
            return question.prompt
        return "\n".join(message["content"] for message in question.prompt)

    def hashes_to_held_out(self, question: Question) -> bool:
        """Whether the content's CRC-32 is a multiple of 5: true of about one question in five."""
        return zlib.crc32(self.content(question).encode("utf-8", "replace")) % HELD_OUT_ONE_IN == 0


class FiniteTask(Task):
    """A task whose questions can all be listed.

    Training runs through all training questions before any comes again, in an order of its own
    for each seed and epoch. A subclass says what `split` is; being a dataclass, or calling
    `__post_init__` itself, it raises ValueError if either side is empty.
    """

    @abc.abstractmethod
    def split(self) -> tuple[list[Question], list[Question]]:
        """All training and all held-out questions; their numbers are set by the caller."""

    def __post_init__(self) -> None:
        train, held_out = self._split
        _check_not_empty(self.name, len(train), len(held_out))

    def split_by_hash(self, questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
        """A `split` that goes by the questions' content alone.

        Held-out questions come out of their order, so that the first hundred are as hard as all.
        """
        train: list[Question] = []
        held_out: list[Question] = []
        for question in questions:
            (held_out if self.hashes_to_held_out(question) else train).append(question)
        order = _epoch_order(f"{self.name}/held-out", len(held_out))
        return train, [held_out[index] for index in order]

    @functools.cached_property
    def _split(self) -> tuple[list[Question], list[Question]]:
        return self.split()

    @property
    def num_train(self) -> int:
        """How many training questions there are: the length of an epoch."""
        return len(self._split[0])

    @property
    def num_held_out(self) -> int:
        return len(self._split[1])

    def train(self, seed: int, number: int) -> Question:
        _check_number(number)
        if not self.num_train:
            _check_not_empty(self.name, 0, self.num_held_out)
        epoch, position = divmod(number, self.num_train)
        index = _epoch_order(f"{self.name}/{seed}/{epoch}", self.num_train)[position]
        return dataclasses.replace(self._split[0][index], number=number)

    def held_out(self, number: int) -> Question:
        _check_index(number, self.num_held_out)
        return dataclasses.replace(self._split[1][number], number=number)


class GeneratedTask(Task):
    """A task whose questions are drawn at random, too many to list.

    A draw that falls on the wrong side of the split is drawn again. Training may repeat a
    question, held-out questions are all different. A subclass is a dataclass with a field
    `held_out_size`, or sets it and calls `__post_init__` itself.

    Attributes:
        held_out_size: number of held-out questions.
    """

    held_out_size: int

    @abc.abstractmethod
    def draw(self, rng: random.Random) -> Question | None:
        """One question, whose number the caller sets; None where this draw came to nothing."""

    def __post_init__(self) -> None:
        if self.held_out_size < 1:
            _check_not_empty(self.name, 1, self.held_out_size)
        # Both raise for a task that cannot yield enough, now and not at some later step.
        self.train(0, 0)
        self._held_out  # noqa: B018

    @property
    def num_held_out(self) -> int:
        return self.held_out_size

    def train(self, seed: int, number: int) -> Question:
        _check_number(number)
        rng = random.Random(f"{self.name}/{seed}/{number}")
        for _ in range(MAX_DRAWS):
            question = self.draw(rng)
            if question is not None and not self.hashes_to_held_out(question):
                return dataclasses.replace(question, number=number)
        raise ValueError(
            f"{self.name}: no training question in {MAX_DRAWS} draws (seed {seed}, question "
            f"{number}); widen the task's ranges"
        )

    def held_out(self, number: int) -> Question:
        _check_index(number, self.num_held_out)
        return self._held_out[number]

    @functools.cached_property
    def _held_out(self) -> list[Question]:
        rng = random.Random(f"{self.name}/held-out")
        found: dict[str, Question] = {}
        for _ in range(MAX_DRAWS + 10 * HELD_OUT_ONE_IN * self.held_out_size):
            question = self.draw(rng)
            if question is not None and self.hashes_to_held_out(question):
                found.setdefault(self.content(question), question)
            if len(found) == self.held_out_size:
                return [dataclasses.replace(q, number=n) for n, q in enumerate(found.values())]
        raise ValueError(
            f"{self.name}: only {len(found)} different held-out questions found, held_out_size is "
            f"{self.held_out_size}; lower it or widen the task's ranges"
        )


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: str, size: int) -> tuple[int, ...]:
    # random() is the one method that Python promises never to change; shuffle() is not.
    draws = random.Random(seed)
    keys = [draws.random() for _ in range(size)]
    return tuple(sorted(range(size), key=keys.__getitem__))


def _check_not_empty(name: str, num_train: int, num_held_out: int) -> None:
    if num_train < 1 or num_held_out < 1:
        raise ValueError(
            f"{name}: {num_train} training and {num_held_out} held-out questions; a task needs at "
            "least one of each: give it more questions or wider ranges"
        )


def _check_number(number: int) -> None:
    if number < 0:
        raise ValueError(f"training question {number} does not exist; they count from 0")


def _check_index(number: int, num_held_out: int) -> None:
    if not 0 <= number < num_held_out:
        raise IndexError(f"held-out question {number} does not exist; there are {num_held_out}")
