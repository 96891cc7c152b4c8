"""The groups of one training step: its questions, what was sampled of them, and what it earned."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.data import QuestionBatch, decode_completions, pad_prompts
from grpo_jax.rewards.base import Completion
from grpo_jax.rewards.combine import weighted_sum
from grpo_jax.tasks.base import Question
from grpo_jax.tokenizer import Tokenizer
from grpo_jax.types import Prompts, Rollout


class StepGroups:
    """Gives a step its prompts and scores its rollouts, and remembers both.

    Args:
        questions_at: position in the stream of questions -> the next P of them.
        position: where the step begins.
        rewards_of: questions, completions -> [P, G, K], a layer for each reward function.
        reward_weights: [K], of each in the sum.
        by_function: the objective takes the layers and not their sum.
        signal: the reward function by which a group has a signal, by its place in K; None: the sum.
        max_prompt_tokens: L, the width that prompts are padded to.

    Attributes:
        questions, completions, by_function [N, G, K], rewards [N, G]: of all N groups sampled, in
            the order of sampling.
    """

    def __init__(
        self,
        questions_at: Callable[[int], QuestionBatch],
        position: int,
        tokenizer: Tokenizer,
        rewards_of: Callable[[Sequence[Question], list[list[Completion]]], np.ndarray],
        *,
        reward_weights: Sequence[float],
        by_function: bool,
        signal: int | None,
        max_prompt_tokens: int,
    ):
        self._questions_at, self._rewards_of, self._tokenizer = questions_at, rewards_of, tokenizer
        self._reward_weights, self._gives_layers = reward_weights, by_function
        self._signal, self._max_prompt_tokens = signal, max_prompt_tokens
        self._data: list[QuestionBatch] = []
        self._layers: list[np.ndarray] = []
        self.position = position
        self.completions: list[list[Completion]] = []

    def draw_prompts(self, phase: int) -> Prompts:
        """The prompts of the next phase of sampling."""
        data = self._questions_at(self.position)
        self._data.append(data)
        self.position = data.position
        return pad_prompts(data.questions, data.ids, max_prompt_tokens=self._max_prompt_tokens)

    def score(self, rollout: Rollout) -> dict[str, jax.Array]:
        """The rewards of the latest phase's rollout: [P, G], or [P, G, K] with their weights; and
        what a signal is judged by."""
        completions, layers = self._scored(rollout)
        self.completions += completions
        self._layers.append(layers)
        found = {}
        if self._signal is not None:
            found["signal_rewards"] = jnp.asarray(layers[:, :, self._signal], jnp.float32)
        if self._gives_layers:
            found["reward_weights"] = jnp.asarray(self._reward_weights, jnp.float32)
            return found | {"rewards": jnp.asarray(layers, jnp.float32)}
        return found | {"rewards": self._summed(layers)}

    def score_greedy(self, rollout: Rollout) -> jax.Array:
        """The rewards of the latest phase's greedy completions [P, 1]; not kept."""
        return self._summed(self._scored(rollout)[1])

    def _scored(self, rollout: Rollout) -> tuple[list[list[Completion]], np.ndarray]:
        completions = decode_completions(rollout, self._tokenizer)
        return completions, self._rewards_of(self._data[-1].questions, completions)

    def _summed(self, layers: np.ndarray) -> jax.Array:
        return jnp.asarray(weighted_sum(layers, self._reward_weights), jnp.float32)

    @property
    def num_phases(self) -> int:
        return len(self._data)

    @property
    def num_dropped(self) -> int:
        """Questions dropped as too long."""
        return sum(data.num_dropped for data in self._data)

    @property
    def num_prompt_tokens(self) -> int:
        """Each prompt counted once."""
        return sum(len(ids) for data in self._data for ids in data.ids)

    @property
    def num_completion_tokens(self) -> int:
        return sum(row.num_tokens for group in self.completions for row in group)

    @property
    def questions(self) -> list[Question]:
        return [question for data in self._data for question in data.questions]

    @property
    def by_function(self) -> np.ndarray:
        return np.concatenate(self._layers)

    @property
    def rewards(self) -> np.ndarray:
        return weighted_sum(self.by_function, self._reward_weights)
