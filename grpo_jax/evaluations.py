"""A run's held-out questions: asked at a step, logged, shown; never twice at the same one."""

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from grpo_jax.console import RunConsole
from grpo_jax.evaluate import evaluate
from grpo_jax.models.network import Network
from grpo_jax.rewards.base import Completion
from grpo_jax.run_directory import RunDirectory
from grpo_jax.sampling import Sampling
from grpo_jax.tasks.base import Question
from grpo_jax.types import Params, Prompts

_NUM_SHOWN = 5
_LOG = "evaluations.jsonl"


class Evaluations:
    """Held-out questions and where the answers go.

    Args:
        questions: P of them.
        prompts: the same as tokens.
        network: its policy and tokenizer.
        rewards_of: questions, groups of completions, step -> rewards [P, G].
        sampling: of the samples; the greedy answers differ in temperature alone.
        num_samples: samples of each question.
        seed: of the draws.
        directory: of the log.
        console: where results are shown.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        prompts: Prompts,
        network: Network,
        rewards_of: Callable[[Sequence[Question], Sequence[Sequence[Completion]], int], np.ndarray],
        *,
        sampling: Sampling,
        num_samples: int,
        seed: int,
        directory: RunDirectory,
        console: RunConsole,
    ):
        self._questions, self._prompts, self._network = questions, prompts, network
        self._rewards_of, self._sampling, self._num_samples = rewards_of, sampling, num_samples
        self._seed, self._directory, self._console = seed, directory, console

    def at(self, step: int, params: Params) -> dict[str, float]:
        """Asks all questions, greedily and by sampling, unless that was done at this step."""
        done = self.logged(step)
        if done:
            return done
        count, started = len(self._questions), time.perf_counter()
        self._console.say(f"asking {count} held-out questions ...", "dim")
        found, greedy = evaluate(
            self._network.policy,
            params,
            self._network.tokenizer,
            self._prompts,
            lambda completions: self._rewards_of(self._questions, completions, step),
            sampling=self._sampling,
            num_samples=self._num_samples,
            seed=self._seed,
        )
        line = {"step": step, **found, "eval_time": time.perf_counter() - started}
        self._directory.append(_LOG, [line])
        says = " and ".join(
            f"{name} {found[f'eval/{name}/reward']:.3f} ± {found[f'eval/{name}/reward_stderr']:.3f}"
            for name in ("sampled", "greedy")
        )
        self._console.say(
            f"held-out at step {step}: {says} ({count} questions, {self._num_samples} samples "
            "each; ± is one standard error)",
            "bold",
        )
        answers = zip(self._questions, greedy.completions, greedy.rewards, strict=True)
        for question, group, rewards in itertools.islice(answers, _NUM_SHOWN):
            self._console.group(question, group, list(rewards))
        return line

    def logged(self, step: int) -> dict[str, float] | None:
        """What came of the same questions at a step, if they were asked then."""
        same = {"step": step, "eval/num_questions": len(self._questions)}
        same["eval/num_samples"] = self._num_samples
        return next((x for x in self._directory.read(_LOG) if x | same == x), None)
