"""The steps of a run, with its state, and where it writes."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from grpo_jax import metrics, report
from grpo_jax.algorithm import grpo_step
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.config import Config
from grpo_jax.console import RunConsole
from grpo_jax.data import QuestionBatch, held_out_questions, train_questions
from grpo_jax.evaluations import Evaluations
from grpo_jax.lengths import cut, widened
from grpo_jax.models.network import Network
from grpo_jax.not_finite import save_not_finite
from grpo_jax.objectives.base import Objective
from grpo_jax.optimizer import make_optimizer
from grpo_jax.rewards.base import RewardFn
from grpo_jax.rewards.combine import score_groups, weighted_sum
from grpo_jax.run_directory import (
    RunDirectory,
    RunInterrupted,
    RunStopped,
    group_lines,
    to_json,
)
from grpo_jax.sampling import Sampling
from grpo_jax.state import initial_state, state_shapes
from grpo_jax.step_groups import StepGroups
from grpo_jax.stop_signal import stop_signal
from grpo_jax.tasks.base import Task
from grpo_jax.types import Params, Prompts, Rollout

_ADVICE_AFTER = (1, 5, 20)
_MAX_CHECKED = 5_000
"""Training questions whose length is looked at before a run starts."""


class TrainingLoop:
    """A run between its steps: what it was given, its state, and where it writes."""

    def __init__(
        self,
        config: Config,
        task: Task,
        objective: Objective,
        network: Network,
        rewards: Mapping[str, RewardFn],
        weights: Mapping[str, float],
        signal: int | None,
    ):
        self.config, self.task, self.objective, self.network = config, task, objective, network
        self.rewards, self.signal = rewards, signal
        self.reward_weights = list(weights.values())
        self.optimizer, self.schedule = make_optimizer(config)
        self.sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            keep_support=config.keep_support,
            stop_ids=network.tokenizer.stop_ids,
            pad_id=network.tokenizer.pad_id,
        )
        # What a checkpoint holds besides the state.
        self.place = {"position": 0, "num_dropped": 0, "num_tokens": 0, "seconds": 0.0}
        self.held_out = None
        # Of the next step, where it is sampled ahead: its rollout, and its scores or None.
        self.ahead: tuple[StepGroups, Rollout, dict[str, jax.Array] | None] | None = None
        if config.eval_questions:
            self.held_out = held_out_questions(
                task,
                network.tokenizer,
                num_questions=config.eval_questions,
                max_prompt_tokens=config.max_prompt_tokens,
                drop_long_prompts=config.drop_long_prompts,
            )
        position = 0
        drawn = config.steps + config.sample_ahead
        for _ in range(min(drawn, _MAX_CHECKED // config.num_prompts + 1)):
            position = self._questions_at(position).position

    # -- where it begins ---------------------------------------------------------------------

    def start(self) -> None:
        """The state before the first step."""
        self.state = initial_state(self.network, self.objective, self.optimizer, self.config.seed)

    def restore(self, directory: RunDirectory) -> None:
        """The newest checkpoint's state, or that of the start if the run was cut off before any.

        Raises:
            ValueError: the run ended, but its checkpoints are gone; or it has more steps already.
        """
        ended = (directory.path / "summary.json").is_file()
        with contextlib.closing(Checkpoints(directory.checkpoints)) as checkpoints:
            step = checkpoints.latest() or 0
            if step > self.config.steps:
                raise ValueError(
                    f"{directory.path} holds {step} steps already, more than --steps "
                    f"{self.config.steps}; ask for more"
                )
            if step or ended:
                like = state_shapes(self.network, self.objective, self.optimizer)
                state, self.place = checkpoints.restore(like)
                load_frozen = self.network.load_frozen
                self.state = dataclasses.replace(state, frozen=load_frozen and load_frozen())
                if self.config.sample_ahead:
                    self._restore_ahead(checkpoints)
                return
        self.start()

    def _restore_ahead(self, checkpoints: Checkpoints) -> None:
        """The next step's completions as they were sampled; to be scored anew."""
        groups = self._groups(int(self.state.step) + 1, int(self.place["position"]))
        prompts, found = groups.draw_prompts(0), checkpoints.restore_ahead()
        if found is not None:
            self.ahead = groups, cut(Rollout(prompts.tokens, prompts.mask, **found)), None

    # -- one step ----------------------------------------------------------------------------

    def _questions_at(self, position: int) -> QuestionBatch:
        return train_questions(
            self.task,
            self.network.tokenizer,
            seed=self.config.seed,
            position=position,
            num_prompts=self.config.num_prompts,
            max_prompt_tokens=self.config.max_prompt_tokens,
            drop_long_prompts=self.config.drop_long_prompts,
        )

    def _rewards_of(self, questions, completions, step: int) -> np.ndarray:
        """[P, G, K], a layer for each reward function."""
        timeout = self.config.reward_timeout_seconds
        return score_groups(
            self.rewards, questions, completions, step=step, timeout_seconds=timeout
        )

    def _summed_rewards_of(self, questions, completions, step: int) -> np.ndarray:
        """[P, G]."""
        return weighted_sum(self._rewards_of(questions, completions, step), self.reward_weights)

    def _groups(self, step: int, position: int) -> StepGroups:
        """Those of a step that begins at this position of the stream of questions."""
        return StepGroups(
            self._questions_at,
            position,
            self.network.tokenizer,
            lambda questions, completions: self._rewards_of(questions, completions, step),
            reward_weights=self.reward_weights,
            by_function="rewards_by_function" in self.objective.needs,
            signal=self.signal,
            max_prompt_tokens=self.config.max_prompt_tokens,
        )

    def step(self, ref_params: Params | None) -> dict[str, float]:
        """One step of training, logged and shown. Returns its metrics."""
        config, started = self.config, time.perf_counter()
        step = int(self.state.step) + 1
        groups, sampled, scored = self.ahead or (
            self._groups(step, int(self.place["position"])),
            None,
            None,
        )
        upcoming: list[StepGroups] = []

        def draw_ahead(_: int) -> Prompts:
            upcoming.append(self._groups(step + 1, groups.position))
            return upcoming[0].draw_prompts(0)

        state, batch, updates, chosen, ahead = grpo_step(
            self.network.policy,
            self.objective,
            self.optimizer,
            self.state,
            ref_params,
            groups.draw_prompts,
            groups.score if scored is None else lambda _: scored,
            score_greedy=groups.score_greedy,
            sampled=sampled,
            draw_ahead=draw_ahead if config.sample_ahead else None,
            group_size=config.group_size,
            sampling=self.sampling,
            num_minibatches=config.num_minibatches,
            num_epochs=config.num_epochs,
            rows_at_once=config.rows_at_once,
            micro_batch_tokens=config.micro_batch_tokens,
            balance_coef=config.balance_coef,
        )
        failure = None
        if ahead is not None:  # the device is still busy with the update
            try:
                scored = upcoming[0].score(ahead)
            except Exception as error:  # this step is done, and not to be lost with it
                scored, failure = None, error

        if not all(bool(update["finite"]) for update in updates):
            if len(updates) == 1:  # nothing was applied: this is the state before the step
                self.state = dataclasses.replace(state, step=state.step - 1)
            newest = self.checkpoints.latest()
            raise RunStopped(save_not_finite(self.directory.path, step, batch, updates, newest))

        rewards, completions = groups.rewards, groups.completions
        named = {name: groups.by_function[:, :, k] for k, name in enumerate(self.rewards)}
        parsed = [[self.task.parse(row) is not None for row in group] for group in completions]
        num_sampled = groups.num_completion_tokens
        seconds = time.perf_counter() - started
        place = {
            "position": groups.position,
            "num_dropped": self.place["num_dropped"] + groups.num_dropped,
            "num_tokens": self.place["num_tokens"] + num_sampled + groups.num_prompt_tokens,
            "seconds": self.place["seconds"] + seconds,
        }
        found = {
            "step": step,
            **metrics.reward_metrics(rewards, named),
            **metrics.completion_metrics(completions, parsed),
            **metrics.update_metrics(updates),
            **{f"{name}_coef": float(value) for name, value in state.coefs.items()},
            "learning_rate": float(np.asarray(self.schedule(step * len(updates) - 1))),
            "tokens/seen": place["num_tokens"],
            "prompts/dropped": place["num_dropped"],
            "step_time": seconds,
            "tokens_per_second": num_sampled / seconds,
        }
        if self.objective.max_sampling_rounds > 1:
            found["dynamic_sampling/rounds"] = groups.num_phases
        questions = groups.questions
        trained_on = group_lines(
            step,
            [questions[i] for i in chosen],
            [completions[i] for i in chosen],
            {name: layer[chosen] for name, layer in named.items()},
            rewards[chosen],
            np.asarray(batch.advantages),
        )
        self.directory.append("completions.jsonl", trained_on)
        self.directory.append("metrics.jsonl", [found])
        self.state, self.place = state, place
        self.ahead = None if ahead is None else (upcoming[0], ahead, scored)

        self.console.row(found)
        if config.show_every and (step % config.show_every == 0 or step == 1):
            # The group that teaches most: the widest spread of rewards.
            shown = int(np.nan_to_num(rewards).std(axis=1).argmax())
            self.console.group(questions[shown], completions[shown], rewards[shown])
        if failure:
            raise failure
        return found

    # -- the whole run -----------------------------------------------------------------------

    def run(self, directory: RunDirectory) -> dict[str, Any]:
        """From the state it has to the last step; returns the summary."""
        config, network, first = self.config, self.network, int(self.state.step)
        self.directory = directory
        self.checkpoints = Checkpoints(directory.checkpoints)
        with contextlib.ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            self.console = stack.enter_context(RunConsole(config.steps, first))
            ids = ", ".join(str(i) for i in network.tokenizer.stop_ids)
            self.console.say(
                f"{network.description}; end tokens {ids}, padding {network.tokenizer.pad_id}; "
                f"{jax.default_backend()}; jax {jax.__version__}\n{self.task.name}: "
                f"{config.num_prompts} prompts x {config.group_size} completions of up to "
                f"{config.max_new_tokens} tokens; {directory.path}"
            )
            self.evaluations = self.held_out and Evaluations(
                *self.held_out,
                network,
                self._summed_rewards_of,
                sampling=self.sampling,
                num_samples=config.eval_samples,
                seed=config.seed,
                directory=directory,
                console=self.console,
            )
            if config.resume:
                self.console.say(f"resumed after step {first}")
            try:
                before = self._evaluate(0) if not first else None
                stopped_by = self._train(first)
            except BaseException:
                self._keep_what_was_reached()
                raise
            step = int(self.state.step)
            if self.checkpoints.latest() != step:
                self._save()
            if stopped_by:
                raise RunInterrupted(
                    f"stopped by {stopped_by} after step {step}, which is saved; go on with the "
                    f"same command and --run-dir {directory.path} --resume"
                )
            after = self._evaluate(step)
            if before is None and after is not None and self.evaluations:
                before = self.evaluations.logged(0)
        summary = {
            "held_out_before": before and before["eval/sampled/reward"],
            "held_out_after": after and after["eval/sampled/reward"],
            "seconds": round(self.place["seconds"], 2),
            "peak_rss_bytes": metrics.peak_rss_bytes(),
            "run_dir": str(directory.path),
            "steps": step,
        }
        directory.write("summary.json", to_json(summary, indent=2) + "\n")
        page = report.write_report(directory.path)
        self.console.say(
            f"trained {step} steps in {summary['seconds']:.1f} s (compilation included); peak "
            f"memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB\nreport: {page}\ncheckpoint, "
            f"metrics, completions: {directory.path}"
        )
        return summary

    def _train(self, first: int) -> str | None:
        """Steps up to the last one; the name of the signal that cut it short, if any."""
        config = self.config
        fixed = self.objective.needs_reference and not self.objective.reference
        # No buffer of the state's, which is donated. Frozen parameters are in the state.
        ref_params = self.network.load() if fixed and not self.network.load_frozen else None
        history = self.directory.read("metrics.jsonl")
        if first < config.steps:
            self.console.say("training; the first step compiles ...", "dim")
        if config.num_minibatches * config.num_epochs > 1 and not config.checkpoint_every:
            self.console.say(
                "several updates a step and no --checkpoint-every: a loss that is not finite would "
                "lose the run",
                "yellow",
            )
        if config.num_minibatches * config.num_epochs > 1 and not self.objective.uses_anchor:
            self.console.say(
                "several updates a step, but this objective has no ratio: from the second one "
                "on it is off-policy and does not correct for that",
                "yellow",
            )
        if first and self._evaluates_at(first):  # if the run was cut off before it had
            self._evaluate(first)
        with stop_signal() as stop:
            for step in range(first + 1, config.steps + 1):
                history.append(self.step(ref_params))
                if step in _ADVICE_AFTER and self.objective.compares_within_group:
                    for line in metrics.advice(history):
                        self.console.say(f"after step {step}: {line}", "yellow")
                if config.checkpoint_every and step % config.checkpoint_every == 0:
                    self._save()
                if stop and step < config.steps:
                    return stop[0]
                if self._evaluates_at(step):
                    self._evaluate(step)
        return None

    def _evaluates_at(self, step: int) -> bool:
        every, last = self.config.eval_every, self.config.steps
        return bool(every) and step % every == 0 and step < last

    def _evaluate(self, step: int) -> dict[str, float] | None:
        return self.evaluations and self.evaluations.at(step, self.state.whole())

    def _save(self) -> None:
        ahead = None
        if self.ahead:
            ahead = _of_completions(widened(self.ahead[1], self.config.max_new_tokens))
        self.checkpoints.save(self.state, self.place, ahead)

    def _keep_what_was_reached(self) -> None:
        """Saves the steps done before a failure, if the state outlived it."""
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
            return
        step = int(self.state.step)
        if step and self.checkpoints.latest() != step:
            self._save()
            self.console.say(f"step {step} is saved in {self.directory.checkpoints}", "yellow")


def _of_completions(rollout: Rollout) -> dict[str, Any]:
    """What of a rollout does not follow from the questions."""
    names = {field.name for field in dataclasses.fields(rollout)} - {"prompt", "prompt_mask"}
    found = {name: getattr(rollout, name) for name in sorted(names)}
    return {name: value for name, value in found.items() if value is not None}
