"""Questions -> padded prompt batches. The place in the data is a number, not an iterator."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from grpo_jax.lengths import bucket
from grpo_jax.rewards.base import Completion, Question
from grpo_jax.tasks.base import Task
from grpo_jax.tokenizer import Tokenizer
from grpo_jax.types import Prompts, Rollout

_MAX_DROPPED = 1000


@dataclasses.dataclass(frozen=True)
class QuestionBatch:
    """P questions, their ids (not padded), and where the stream goes on."""

    questions: tuple[Question, ...]
    ids: tuple[list[int], ...]
    position: int
    num_dropped: int


def train_questions(
    task: Task,
    tokenizer: Tokenizer,
    *,
    seed: int,
    position: int,
    num_prompts: int,
    max_prompt_tokens: int,
    drop_long_prompts: bool = False,
) -> QuestionBatch:
    """The next P training questions from `position` on.

    Raises:
        ValueError: a prompt is empty or longer than `max_prompt_tokens`, unless such are dropped
            and counted; or 1000 in a row were.
    """
    questions, ids = [], []
    num_dropped = in_a_row = 0
    while len(questions) < num_prompts:
        question = task.train(seed, position)
        position += 1
        encoded = tokenizer.encode(question.prompt)
        if drop_long_prompts and len(encoded) > max_prompt_tokens:
            num_dropped += 1
            in_a_row += 1
            if in_a_row >= _MAX_DROPPED:
                raise ValueError(
                    f"{in_a_row} questions in a row were longer than max_prompt_tokens = "
                    f"{max_prompt_tokens} (the last one: {len(encoded)} tokens); raise it"
                )
            continue
        in_a_row = 0
        _check_length(question, encoded, max_prompt_tokens)
        questions.append(question)
        ids.append(encoded)
    return QuestionBatch(tuple(questions), tuple(ids), position, num_dropped)


def held_out_questions(
    task: Task,
    tokenizer: Tokenizer,
    *,
    num_questions: int,
    max_prompt_tokens: int,
    drop_long_prompts: bool = False,
) -> tuple[tuple[Question, ...], Prompts]:
    """The first held-out questions, at most `num_questions`, and their padded ids.

    Raises:
        ValueError: the task has none; a prompt is empty or longer than `max_prompt_tokens`, unless
            such are dropped, and then all of them were.
    """
    if task.num_held_out < 1:
        raise ValueError(
            f"task {task.name} has no held-out questions; give it some, or set --eval-questions 0"
        )
    questions = [task.held_out(n) for n in range(min(num_questions, task.num_held_out))]
    ids = [tokenizer.encode(question.prompt) for question in questions]
    if drop_long_prompts:
        kept = [n for n, encoded in enumerate(ids) if len(encoded) <= max_prompt_tokens]
        if not kept:
            raise ValueError(
                f"all {len(questions)} held-out questions are longer than max_prompt_tokens = "
                f"{max_prompt_tokens} (the first: {len(ids[0])} tokens); raise it"
            )
        questions, ids = [questions[n] for n in kept], [ids[n] for n in kept]
    return tuple(questions), pad_prompts(questions, ids, max_prompt_tokens=max_prompt_tokens)


def pad_prompts(
    questions: Sequence[Question], ids: Sequence[Sequence[int]], *, max_prompt_tokens: int
) -> Prompts:
    """Token ids of each question -> [P, L], padded on the right; L is one of a few widths up to
    `max_prompt_tokens` (`lengths.bucket`).

    Raises:
        ValueError: a prompt is empty or longer than the limit; names the question.
    """
    for question, encoded in zip(questions, ids, strict=True):
        _check_length(question, encoded, max_prompt_tokens)
    lengths = np.array([len(encoded) for encoded in ids])
    tokens = np.zeros([len(ids), bucket(int(lengths.max()), max_prompt_tokens)], np.int32)
    for row, encoded in zip(tokens, ids, strict=True):
        row[: len(encoded)] = encoded
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask))


def _check_length(question: Question, encoded: Sequence[int], max_prompt_tokens: int) -> None:
    if not encoded:
        raise ValueError(f"question {question.number} has an empty prompt")
    if len(encoded) > max_prompt_tokens:
        raise ValueError(
            f"the prompt of question {question.number} has {len(encoded)} tokens, more than "
            f"max_prompt_tokens = {max_prompt_tokens}; raise it, or set --drop-long-prompts. "
            f"It begins: {str(question.prompt)[:80]!r}"
        )


def decode_completions(rollout: Rollout, tokenizer: Tokenizer) -> list[list[Completion]]:
    """The completions of a rollout as reward functions see them; P lists of G."""
    tokens, lengths = np.asarray(rollout.completion), np.asarray(rollout.completion_mask.sum(-1))
    truncated = np.asarray(rollout.truncated)
    return [
        [
            Completion(tokenizer.decode(row[:length]), int(length), bool(cut))
            for row, length, cut in zip(*group, strict=True)
        ]
        for group in zip(tokens, lengths, truncated, strict=True)
    ]
