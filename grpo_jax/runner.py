"""A run from its config to its summary: what can be refused first, then the loop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax.compilation_cache import keep_compiled
from grpo_jax.config import Config
from grpo_jax.models.network import Network, pretrained
from grpo_jax.models.settings import Settings
from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.checks import check_adapters, check_ahead
from grpo_jax.objectives.description import described
from grpo_jax.rewards.base import RewardFn
from grpo_jax.rewards.combine import named_weights
from grpo_jax.run_directory import RunDirectory, check_unused
from grpo_jax.tasks.base import Task
from grpo_jax.training_loop import TrainingLoop


def run(
    config: Config,
    *,
    task: Task,
    objective: Objective,
    network: Network | None = None,
    rewards: Mapping[str, RewardFn] | None = None,
    reward_weights: Mapping[str, float] | None = None,
    signal_reward: str | None = None,
) -> dict[str, Any]:
    """Trains, and leaves a run directory behind.

    Args:
        config: the values; its class says which experiment this is.
        task: the questions.
        objective: the paper.
        network: the model; by default what `config.model` names.
        rewards: reward functions by name; by default the task's own.
        reward_weights: of each in the sum that is normalised; 1 by default.
        signal_reward: the function by which a group counts as having a signal, for objectives that
            select by it (a punishment of length would give one to groups that are all right); by
            default the sum.

    Returns:
        the summary that is also written to summary.json: `held_out_before`, `held_out_after` (mean
        reward of samples, None if none were asked), `seconds` (of training, compilation included,
        evaluation not), `peak_rss_bytes`, `run_dir`, `steps`.

    Raises:
        ValueError: bad input; before anything is compiled or written over.
        RewardError: a reward function failed; names the step and the completion.
        RunStopped: a loss or gradient was not finite; or (RunInterrupted) Ctrl-C or SIGTERM asked
            the run to stop, and what it reached is saved.
    """
    keep_compiled()
    # All that can be refused is looked at before anything is written or compiled.
    rewards = {task.name: task.reward} if rewards is None else rewards
    weights = named_weights(rewards, reward_weights or {})
    identity = config, weights, described(objective)
    directory = RunDirectory.reopen(*identity) if config.resume else None
    if config.run_dir and not config.resume:
        check_unused(Path(config.run_dir))
    if network is None:
        began = directory.began if directory else ""
        network = pretrained(config.model, Settings.of(config, date=began))
    if network.load_frozen:
        check_adapters(objective)
    if signal_reward is not None and signal_reward not in rewards:
        raise ValueError(
            f"signal_reward is {signal_reward!r}; it must be one of {', '.join(rewards)}"
        )
    _check_objective(config, objective, network, signal_reward)
    signal = None if signal_reward is None else list(rewards).index(signal_reward)
    loop = TrainingLoop(config, task, objective, network, rewards, weights, signal)
    if directory:
        loop.restore(directory)
        directory.rewind(int(loop.state.step))
        directory.save_config(config)
    else:
        loop.start()
        directory = RunDirectory.create(*identity)
    return loop.run(directory)


def _check_objective(
    config: Config, objective: Objective, network: Network, signal_reward: str | None
) -> None:
    """Raises ValueError for an objective that this run cannot serve."""
    missing = objective.needs & {"step_rewards", "step_ends", "values"}
    if missing:
        raise ValueError(
            f"this objective needs {', '.join(sorted(missing))}, and a run has only rewards of "
            "whole completions; call grpo_step with a score function that gives them"
        )
    if config.group_size < 2 and objective.compares_within_group:
        raise ValueError(
            f"group_size is {config.group_size}; a group of one has nothing to be compared "
            "with: 2 or more"
        )
    if signal_reward is not None and not objective.selects_by_signal:
        raise ValueError("signal_reward is given, but this objective selects nothing by signal")
    if config.balance_coef and not network.has_experts:
        raise ValueError(
            f"balance_coef is {config.balance_coef}, but this network has no experts; leave it at 0"
        )
    if config.sample_ahead:
        check_ahead(objective)
    if objective.of_the_whole_step and config.micro_batch_tokens:
        raise ValueError(
            f"micro_batch_tokens is {config.micro_batch_tokens}, but this objective looks at "
            "all tokens of an update at once; leave it at 0"
        )
