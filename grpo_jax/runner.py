"""Wires a run: config, model, loop, logs, checkpoints, evaluation."""

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax import metrics, report
from grpo_jax.algorithm import grpo_step
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.config import Config
from grpo_jax.console import RunConsole
from grpo_jax.data import decode_completions, train_batch
from grpo_jax.evaluate import HeldOut, ask_held_out
from grpo_jax.models.network import Network, pretrained
from grpo_jax.objectives.base import Objective
from grpo_jax.rewards.base import RewardFn
from grpo_jax.rewards.combine import score_groups, weighted_sum
from grpo_jax.run_directory import RunDirectory, RunStopped, check_unused
from grpo_jax.sampling import Sampling
from grpo_jax.tasks.base import Task
from grpo_jax.types import Batch, Rollout, TrainState

_ADVICE_AFTER = (1, 5, 20)


def run(
    config: Config,
    *,
    experiment: str,
    task: Task,
    objective: Objective,
    network: Network | None = None,
    rewards: Mapping[str, RewardFn] | None = None,
    reward_weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Trains, and leaves a run directory behind.

    Args:
        config: the values.
        experiment: its module, `experiments.NAME`, by which `grpo-jax eval` finds it again.
        task: the questions.
        objective: the paper.
        network: the model; by default what `config.model` names.
        rewards: reward functions by name; by default the task's own.
        reward_weights: of each in the sum that is normalised; 1 by default.

    Returns:
        the summary that is also written to summary.json: `held_out_before`, `held_out_after` (mean
        reward of samples, None if none were asked), `seconds` (of training, compilation included,
        evaluation not), `peak_rss_bytes`, `run_dir`, `steps`.

    Raises:
        ValueError: bad input; before anything is compiled or written over.
        RewardError: a reward function failed; names the step and the completion.
        RunStopped: a loss or gradient was not finite.
    """
    if config.run_dir and not config.resume:
        check_unused(Path(config.run_dir))
    if config.resume:
        directory = RunDirectory.reopen(config, experiment)
    network = pretrained(config.model) if network is None else network
    rewards = {task.name: task.reward} if rewards is None else rewards
    loop = _Loop(config, task, objective, network, rewards, reward_weights or {})
    loop.first_batch()  # refuses an empty task or a prompt that is too long
    if not config.resume:
        directory = RunDirectory.create(config, experiment)
    return loop.run(directory)  # pyright: ignore[reportPossiblyUnboundVariable]


def make_optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with a warm-up and a schedule, after clipping by the global norm."""
    updates = config.steps * config.num_minibatches * config.num_epochs
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(updates - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[config.lr_schedule]
    schedule = after
    if warmup:
        # The first update already moves: it has 1/warmup of the rate, the last of them all of it.
        rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
        schedule = optax.join_schedules([rise, after], [warmup])
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    if not config.clip_norm:
        return adamw, schedule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw), schedule


class _Loop:
    """The state of a run between its steps."""

    def __init__(
        self,
        config: Config,
        task: Task,
        objective: Objective,
        network: Network,
        rewards: Mapping[str, RewardFn],
        reward_weights: Mapping[str, float],
    ):
        unknown = reward_weights.keys() - rewards.keys()
        if unknown or not rewards:
            raise ValueError(
                f"reward weights for {sorted(unknown)}, but the reward functions are "
                f"{sorted(rewards)}; name each weight as its function"
            )
        self.config, self.task, self.objective, self.network = config, task, objective, network
        self.rewards = rewards
        self.reward_weights = [reward_weights.get(name, 1.0) for name in rewards]
        self.optimizer, self.schedule = make_optimizer(config)
        self.sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            stop_ids=network.tokenizer.stop_ids,
            pad_id=network.tokenizer.pad_id,
        )
        # What a checkpoint holds besides the state.
        self.place = {"position": 0, "num_dropped": 0, "num_tokens": 0}
        self.seconds = 0.0

    # -- one step ----------------------------------------------------------------------------

    def first_batch(self) -> None:
        self._batch_at(0)

    def _batch_at(self, position: int):
        return train_batch(
            self.task,
            self.network.tokenizer,
            seed=self.config.seed,
            position=position,
            num_prompts=self.config.num_prompts,
            max_prompt_tokens=self.config.max_prompt_tokens,
            drop_long_prompts=self.config.drop_long_prompts,
        )

    def step(self, state: TrainState, ref_params, directory: RunDirectory, console: RunConsole):
        """One step of training, logged. Returns the new state and the step's metrics."""
        started = time.perf_counter()
        step = int(state.step) + 1
        data = self._batch_at(self.place["position"])
        seen: dict[str, Any] = {}

        def score(rollout: Rollout) -> jax.Array:
            seen["completions"] = decode_completions(rollout, self.network.tokenizer)
            seen["by_function"] = self._score(data.questions, seen["completions"], step)
            seen["rewards"] = weighted_sum(seen["by_function"], self.reward_weights)
            return jnp.asarray(seen["rewards"], jnp.float32)

        updates = self.config.num_minibatches * self.config.num_epochs
        learning_rate = float(np.asarray(self.schedule(step * updates - 1)))
        state, batch, measured = grpo_step(
            self.network.policy,
            self.objective,
            self.optimizer,
            state,
            ref_params,
            data.prompts,
            score,
            group_size=self.config.group_size,
            sampling=self.sampling,
            num_minibatches=self.config.num_minibatches,
            num_epochs=self.config.num_epochs,
            micro_batch_prompts=self.config.micro_batch_prompts,
        )
        if not all(bool(one["finite"]) for one in measured):
            self._stop_not_finite(directory, batch, step, measured)

        tokens = sum(row.num_tokens for group in seen["completions"] for row in group)
        self.place["position"] = data.position
        self.place["num_dropped"] += data.num_dropped
        self.place["num_tokens"] += tokens + int(data.prompts.mask.sum())
        parsed = [[self.task.parse(row) is not None for row in g] for g in seen["completions"]]
        seconds = time.perf_counter() - started
        self.seconds += seconds
        by_function = dict(zip(self.rewards, np.moveaxis(seen["by_function"], -1, 0), strict=True))
        found = {
            "step": step,
            **metrics.reward_metrics(seen["rewards"], by_function),
            **metrics.completion_metrics(seen["completions"], parsed),
            **metrics.update_metrics(measured),
            "learning_rate": learning_rate,
            "num_tokens": self.place["num_tokens"],
            "prompts/dropped": self.place["num_dropped"],
            "step_time": seconds,
            "tokens_per_second": tokens / seconds,
        }
        advantages = np.asarray(batch.advantages)
        directory.append(
            "completions.jsonl", _group_lines(step, data.questions, seen, by_function, advantages)
        )
        directory.append("metrics.jsonl", [found])
        console.row(found)
        if self.config.show_every and (step % self.config.show_every == 0 or step == 1):
            # The group that teaches most: the widest spread of rewards.
            spread = np.nan_to_num(np.nanstd(np.nan_to_num(seen["rewards"]), axis=1))
            shown = int(spread.argmax())
            console.group(data.questions[shown], seen["completions"][shown], seen["rewards"][shown])
        return state, found

    def _score(self, questions, completions, step: int) -> np.ndarray:
        return score_groups(
            self.rewards,
            questions,
            completions,
            step=step,
            timeout_seconds=self.config.reward_timeout_seconds,
        )

    def _stop_not_finite(self, directory: RunDirectory, batch: Batch, step: int, measured) -> None:
        arrays = {
            jax.tree_util.keystr(path).strip(".").replace(".", "_"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        }
        name = f"not_finite_step_{step}.npz"
        np.savez(directory.path / name, allow_pickle=False, **arrays)
        bad = next(one for one in measured if not bool(one["finite"]))
        raise RunStopped(
            f"step {step}: the loss is {float(bad['loss'])}, the gradient's norm "
            f"{float(bad['grad_norm'])}; it was not applied. The batch is in "
            f"{directory.path / name}. Try a smaller --learning-rate or --clip-norm; earlier "
            f"checkpoints are in {directory.checkpoints}"
        )

    # -- held-out questions ------------------------------------------------------------------

    def evaluate(self, params, step: int, directory: RunDirectory, console: RunConsole):
        """Asks the held-out questions, greedily and by sampling; logs, shows and returns both."""
        if not self.config.eval_questions:
            return None
        done = [line for line in directory.read("evaluations.jsonl") if line["step"] == step]
        if done:
            return done[-1]
        started = time.perf_counter()
        count = min(self.config.eval_questions, self.task.num_held_out)
        console.say(f"asking {count} held-out questions, by sampling and greedily ...", "dim")

        def score(questions, completions) -> np.ndarray:
            return weighted_sum(self._score(questions, completions, step), self.reward_weights)

        def ask(sampling: Sampling, num_samples: int) -> HeldOut:
            return ask_held_out(
                self.network.policy,
                params,
                self.network.tokenizer,
                self.task,
                score,
                sampling=sampling,
                num_questions=self.config.eval_questions,
                num_samples=num_samples,
                max_prompt_tokens=self.config.max_prompt_tokens,
                seed=self.config.seed,
            )

        sampled = ask(self.sampling, self.config.eval_samples)
        greedy = ask(dataclasses.replace(self.sampling, temperature=0.0), 1)
        line = {
            "step": step,
            "eval/sampled/reward": sampled.reward,
            "eval/sampled/reward_stderr": sampled.stderr,
            "eval/greedy/reward": greedy.reward,
            "eval/greedy/reward_stderr": greedy.stderr,
            "eval/num_questions": len(sampled.questions),
            "eval/num_samples": self.config.eval_samples,
            "eval_time": time.perf_counter() - started,
        }
        directory.append("evaluations.jsonl", [line])
        console.say(
            f"held-out at step {step}: sampled {sampled.reward:.3f} ± {sampled.stderr:.3f}, greedy "
            f"{greedy.reward:.3f} ± {greedy.stderr:.3f} ({len(sampled.questions)} questions, "
            f"{self.config.eval_samples} samples each; ± is one standard error)",
            "bold",
        )
        for question, group, rewards in list(
            zip(greedy.questions, greedy.completions, greedy.rewards, strict=True)
        )[:5]:
            console.group(question, group, list(rewards))
        return line

    # -- the whole run -----------------------------------------------------------------------

    def run(self, directory: RunDirectory) -> dict[str, Any]:
        config, network = self.config, self.network
        checkpoints = Checkpoints(directory.checkpoints)
        with contextlib.ExitStack() as stack:
            stack.callback(checkpoints.close)
            state = self._restored(checkpoints) if config.resume else self._initial()
            first = int(state.step)
            if first > config.steps:
                raise ValueError(
                    f"the run has {first} steps already, more than --steps {config.steps}; ask more"
                )
            if config.resume:
                directory.rewind(first)
                directory.save_config(config)
            # Never shares a buffer with the state, which is donated.
            ref_params = network.load() if self.objective.kl_coef else None
            console = stack.enter_context(RunConsole(config.steps, first))
            ids = ", ".join(str(i) for i in network.tokenizer.stop_ids)
            console.say(
                f"{network.description}; end tokens {ids}; {jax.default_backend()}; jax "
                f"{jax.__version__}\n{self.task.name}: {config.num_prompts} prompts x "
                f"{config.group_size} completions of up to {config.max_new_tokens} tokens; "
                f"{directory.path}"
            )
            if first:
                console.say(f"resumed after step {first}")
            before = self.evaluate(state.params, 0, directory, console) if not first else None
            history = directory.read("metrics.jsonl")
            if first < config.steps:
                console.say("training; the first step compiles ...", "dim")
            with _stop_signal() as stop:
                while int(state.step) < config.steps and not stop:
                    state, found = self.step(state, ref_params, directory, console)
                    step = found["step"]
                    history.append(found)
                    if step in _ADVICE_AFTER:
                        for line in metrics.advice(history):
                            console.say(f"after step {step}: {line}", "yellow")
                    if config.eval_every and step % config.eval_every == 0 and step < config.steps:
                        self.evaluate(state.params, step, directory, console)
                    if config.checkpoint_every and step % config.checkpoint_every == 0:
                        checkpoints.save(state, self.place | {"seconds": self.seconds})
            step = int(state.step)
            if checkpoints.latest() != step:
                checkpoints.save(state, self.place | {"seconds": self.seconds})
            if stop:
                checkpoints.close()
                console.say(
                    f"stopped by {stop[0]} after step {step}, which is saved; go on with the same "
                    f"command and --run-dir {directory.path} --resume",
                    "yellow",
                )
                raise SystemExit(0)
            after = self.evaluate(state.params, step, directory, console)
            before = before or _first(directory.read("evaluations.jsonl"), step=0)
        summary = {
            "held_out_before": before and before["eval/sampled/reward"],
            "held_out_after": after and after["eval/sampled/reward"],
            "seconds": round(self.seconds, 2),
            "peak_rss_bytes": metrics.peak_rss_bytes(),
            "run_dir": str(directory.path),
            "steps": step,
        }
        directory.write("summary.json", json.dumps(summary, indent=2) + "\n")
        page = report.write_report(directory.path)
        console.say(
            f"trained {step} steps in {self.seconds:.1f} s (compilation included); peak memory "
            f"{summary['peak_rss_bytes'] / 2**30:.2f} GiB\nreport: {page}\ncheckpoint, metrics, "
            f"completions: {directory.path}"
        )
        return summary

    def _initial(self) -> TrainState:
        params = self.network.load()
        key = jax.random.key(self.config.seed)
        return TrainState(params, self.optimizer.init(params), jnp.zeros([], jnp.int32), key)

    def _restored(self, checkpoints: Checkpoints) -> TrainState:
        like = TrainState(
            self.network.shapes,
            jax.eval_shape(self.optimizer.init, self.network.shapes),
            jax.eval_shape(lambda: jnp.zeros([], jnp.int32)),
            jax.eval_shape(lambda: jax.random.key(0)),
        )
        state, place = checkpoints.restore(like)
        self.seconds = place.pop("seconds")
        self.place = place
        return state


def _group_lines(step, questions, seen, by_function, advantages) -> Iterator[dict[str, Any]]:
    for p, (question, group) in enumerate(zip(questions, seen["completions"], strict=True)):
        rows = [
            {
                "text": row.text,
                "num_tokens": row.num_tokens,
                "truncated": row.truncated,
                "rewards": {name: float(values[p, g]) for name, values in by_function.items()},
                "reward": float(seen["rewards"][p, g]),
                # Credit by token is summed up by its mean over the completion's tokens.
                "advantage": float(advantages[p, g, : max(row.num_tokens, 1)].mean()),
            }
            for g, row in enumerate(group)
        ]
        yield {
            "step": step,
            "question": question.number,
            "prompt": question.prompt,
            "answer": question.answer,
            "completions": rows,
        }


def _first(lines: list[dict[str, Any]], *, step: int) -> dict[str, Any] | None:
    return next((line for line in lines if line["step"] == step), None)


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[str]]:
    """A list that a first SIGINT or SIGTERM adds its name to; a second one acts as ever."""
    received: list[str] = []
    kept: dict[signal.Signals, Any] = {}

    def receive(number: int, _) -> None:
        received.append(signal.Signals(number).name)
        for which, handler in kept.items():
            signal.signal(which, handler)

    try:
        for which in (signal.SIGINT, signal.SIGTERM):
            kept[which] = signal.signal(which, receive)
    except ValueError:  # only the main thread of a program may
        pass
    try:
        yield received
    finally:
        for which, handler in kept.items():
            signal.signal(which, handler)
