"""What a reward function is given and what it returns. No JAX in this room."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

Message = dict[str, str]
"""One chat turn: {"role": "system" | "user" | "assistant", "content": text}."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One prompt and what its verifier needs to know.

    Attributes:
        number: its index in its split; with the seed it determines everything else.
        prompt: text used verbatim (special tokens written out), or chat turns that the model's own
            template renders, with the assistant's turn opened at the end.
        answer: what a right completion is compared with; anything that JSON can hold.
    """

    number: int
    prompt: str | tuple[Message, ...]
    answer: Any = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """One answer of the policy, as a reward function sees it.

    Attributes:
        text: the decoded tokens, without special tokens and without the end token.
        num_tokens: tokens the policy chose, the end token included.
        truncated: True when it ran into the length limit before an end token.
    """

    text: str
    num_tokens: int
    truncated: bool = False


RewardFn = Callable[[Question, Sequence[Completion]], Sequence[float]]
"""Scores the completions of one group: a number each, NaN where the function does not apply.

A whole group at a time, so that a reward may compare its members; `each` lifts a function of a
single completion.
"""


def each(reward: Callable[[Question, Completion], float]) -> RewardFn:
    """Lifts a reward for one completion to a reward for a group.

    >>> shout = each(lambda question, completion: float(completion.text.isupper()))
    >>> shout(Question(0, "Say hello."), [Completion("HELLO", 1), Completion("hello", 1)])
    [1.0, 0.0]
    """

    def group_reward(question: Question, completions: Sequence[Completion]) -> list[float]:
        return [reward(question, completion) for completion in completions]

    group_reward.__name__ = getattr(reward, "__name__", "reward")
    return group_reward
