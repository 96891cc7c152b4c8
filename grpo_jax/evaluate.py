"""Held-out questions, asked greedily and by sampling."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from grpo_jax.data import decode_completions, pad_prompts
from grpo_jax.policy import Policy
from grpo_jax.rewards.base import Completion, Question
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.tasks.base import Task
from grpo_jax.tokenizer import Tokenizer
from grpo_jax.types import Params

Score = Callable[[Sequence[Question], Sequence[Sequence[Completion]]], np.ndarray]
"""Questions and their groups of completions -> rewards [P, G], NaN where there is none."""

_ROWS = 128
"""Completions decoded side by side."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What came of asking held-out questions.

    Attributes:
        reward: mean over questions of the mean over their samples.
        stderr: its standard error over questions (samples of one question are not independent);
            NaN for a single question.
        questions: those asked.
        completions: a list a question.
        rewards: [questions, samples].
    """

    reward: float
    stderr: float
    questions: tuple[Question, ...]
    completions: list[list[Completion]]
    rewards: np.ndarray


def ask_held_out(
    policy: Policy,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    score: Score,
    *,
    sampling: Sampling,
    num_questions: int,
    num_samples: int,
    max_prompt_tokens: int,
    seed: int = 0,
) -> HeldOut:
    """Asks the first held-out questions, `num_samples` times each.

    The keys depend on `seed` and the question's number alone, so that two policies are compared on
    the same draws.

    Args:
        policy: the network.
        params: its parameters.
        tokenizer: text <-> ids.
        task: has the questions.
        score: gives the rewards.
        sampling: temperature 0 for the greedy answer.
        num_questions: at most; a task may hold fewer.
        num_samples: completions a question.
        max_prompt_tokens: the width that prompts are padded to.
        seed: of the draws.

    Raises:
        ValueError: a prompt longer than the limit.
    """
    questions = tuple(task.held_out(n) for n in range(min(num_questions, task.num_held_out)))
    ids = [tokenizer.encode(question.prompt) for question in questions]
    prompts = pad_prompts(questions, ids, max_prompt_tokens=max_prompt_tokens)
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(0xE7A1))  # apart from training's
    keys = prompt_keys(key, 0, len(questions))
    batch = min(len(questions), max(1, _ROWS // num_samples))
    completions: list[list[Completion]] = []
    for start in range(0, len(questions), batch):
        # The last batch repeats questions to keep its shape: one compilation serves all.
        rows = np.arange(start, start + batch) % len(questions)
        rollout = sample_groups(
            policy,
            params,
            jax.tree.map(lambda x: x[rows], prompts),  # noqa: B023
            keys[rows],
            group_size=num_samples,
            sampling=sampling,
        )
        completions += decode_completions(rollout, tokenizer)
    completions = completions[: len(questions)]
    rewards = np.asarray(score(questions, completions), np.float64)
    answered = ~np.isnan(rewards).all(axis=1)
    means = np.nanmean(rewards[answered], axis=1)
    count = len(means)
    return HeldOut(
        reward=float(means.mean()) if count else float("nan"),
        stderr=float(means.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan"),
        questions=questions,
        completions=completions,
        rewards=rewards,
    )
