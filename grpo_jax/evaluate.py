"""Held-out questions, asked greedily and by sampling."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.data import decode_completions
from grpo_jax.keys import EVALUATION, stream_key
from grpo_jax.policy import Policy
from grpo_jax.rewards.base import Completion
from grpo_jax.sampling import Sampling, prompt_keys
from grpo_jax.tokenizer import Tokenizer
from grpo_jax.types import Params, Prompts

Score = Callable[[Sequence[Sequence[Completion]]], np.ndarray]
"""Groups of completions, one a question -> rewards [P, G], NaN where there is none."""

_ROWS = 128
"""Completions decoded side by side."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What came of asking held-out questions.

    Attributes:
        reward: mean over questions of the mean over their samples.
        stderr: its standard error over questions (samples of one question are not independent);
            NaN for a single question.
        completions: a list a question.
        rewards: [questions, samples].
    """

    reward: float
    stderr: float
    completions: list[list[Completion]]
    rewards: np.ndarray


def ask_held_out(
    policy: Policy,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Prompts,
    score: Score,
    *,
    sampling: Sampling,
    num_samples: int,
    seed: int = 0,
) -> HeldOut:
    """Asks each question `num_samples` times.

    The keys depend on `seed` and the question's place alone, so that two policies are compared on
    the same draws.

    Args:
        policy: the network.
        params: its parameters.
        tokenizer: text <-> ids.
        prompts: of the questions.
        score: gives the rewards.
        sampling: temperature 0 for the greedy answer.
        num_samples: completions a question.
        seed: of the draws.
    """
    keys = prompt_keys(stream_key(seed, EVALUATION), 0, prompts.tokens.shape[0])
    rollout = sample_continuously(
        policy,
        params,
        prompts,
        keys,
        group_size=num_samples,
        sampling=sampling,
        rows_at_once=max(_ROWS, num_samples),
    )
    completions = decode_completions(rollout, tokenizer)
    rewards = np.asarray(score(completions), np.float64)
    answered = ~np.isnan(rewards).all(axis=1)
    means = np.nanmean(rewards[answered], axis=1)
    asked = len(means)
    return HeldOut(
        reward=float(means.mean()) if asked else float("nan"),
        stderr=float(means.std(ddof=1) / np.sqrt(asked)) if asked > 1 else float("nan"),
        completions=completions,
        rewards=rewards,
    )


def evaluate(
    policy: Policy,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Prompts,
    score: Score,
    *,
    sampling: Sampling,
    num_samples: int,
    seed: int,
) -> tuple[dict[str, float], HeldOut]:
    """Asks each question by sampling and greedily. Arguments as for `ask_held_out`.

    Returns:
        `eval/sampled/reward`, `eval/greedy/reward` and their `_stderr`, `eval/num_questions`,
        `eval/num_samples`; and the greedy answers.
    """
    found: dict[str, float] = {}
    sampling = dataclasses.replace(sampling, keep_support=False)  # nothing is trained on these
    greedy = dataclasses.replace(sampling, temperature=0.0)
    answers = None
    for name, how, count in (("sampled", sampling, num_samples), ("greedy", greedy, 1)):
        answers = ask_held_out(
            policy, params, tokenizer, prompts, score, sampling=how, num_samples=count, seed=seed
        )
        found[f"eval/{name}/reward"] = answers.reward
        found[f"eval/{name}/reward_stderr"] = answers.stderr
    assert answers is not None
    found["eval/num_questions"] = prompts.tokens.shape[0]
    found["eval/num_samples"] = num_samples
    return found, answers
