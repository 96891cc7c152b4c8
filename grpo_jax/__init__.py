"""GRPO in JAX: pure functions over groups of completions, [P, G, T] from the sampler to the loss.

The five steps, and where they are:

    1 sample        sampling.sample_groups         prompts -> groups of completions, in one program
                    continuous_batching            the same, where ended completions make room
    2 score         rewards, tasks                 completions -> rewards [P, G]
    3 normalise     objectives.prepare             rewards -> advantages within each group
    4 loss and KL   objectives.Objective.loss      one file a paper in `objectives`
    5 Optax step    update.update                  one optimizer step

`algorithm.grpo_step` is all of them on one page, `run` is the loop around it. Names are loaded when
they are first used, so that importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from grpo_jax.version import __version__

if TYPE_CHECKING:
    from grpo_jax import objectives, ops, rewards, tasks
    from grpo_jax.algorithm import grpo_step
    from grpo_jax.config import Config
    from grpo_jax.continuous_batching import sample_continuously
    from grpo_jax.launch import launch
    from grpo_jax.objectives import Objective, dr_grpo, grpo, prepare
    from grpo_jax.policy import Policy, completion_log_probs
    from grpo_jax.runner import run
    from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
    from grpo_jax.types import Batch, Prompts, Rollout, TrainState

_HOMES = {
    "Batch": "types",
    "Config": "config",
    "Objective": "objectives",
    "Policy": "policy",
    "Prompts": "types",
    "Rollout": "types",
    "Sampling": "sampling",
    "TrainState": "types",
    "completion_log_probs": "policy",
    "dr_grpo": "objectives",
    "grpo": "objectives",
    "grpo_step": "algorithm",
    "launch": "launch",
    "prepare": "objectives",
    "prompt_keys": "sampling",
    "run": "runner",
    "sample_continuously": "continuous_batching",
    "sample_groups": "sampling",
}

__all__ = [  # noqa: RUF022 - functions and types first, then rooms
    "Batch",
    "Config",
    "Objective",
    "Policy",
    "Prompts",
    "Rollout",
    "Sampling",
    "TrainState",
    "__version__",
    "completion_log_probs",
    "dr_grpo",
    "grpo",
    "grpo_step",
    "launch",
    "prepare",
    "prompt_keys",
    "run",
    "sample_continuously",
    "sample_groups",
    "objectives",
    "ops",
    "rewards",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"grpo_jax.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"grpo_jax.{name}")
    raise AttributeError(f"module 'grpo_jax' has no attribute {name!r}")
