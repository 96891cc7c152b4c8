"""The numbers of a step. Names are TRL's where the meaning is the same."""

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.rewards.base import Completion


def reward_metrics(rewards: np.ndarray, by_function: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the rewards of a step say.

    Args:
        rewards: [P, G], combined; NaN where a completion has none.
        by_function: name -> [P, G], of each reward function; NaN where it does not apply.

    Returns:
        `reward` (mean), `reward_std` (mean over groups of the population standard deviation),
        `frac_reward_zero_std` (share of groups without signal), and `rewards/NAME/mean`, `/std`.
    """
    groups = [group[~np.isnan(group)] for group in rewards.astype(np.float64)]
    found = {
        "reward": _mean(rewards),
        "reward_std": float(np.mean([group.std() if group.size else 0.0 for group in groups])),
        "frac_reward_zero_std": float(
            np.mean([group.size == 0 or group.min() == group.max() for group in groups])
        ),
    }
    for name, values in by_function.items():
        applies = values[~np.isnan(values)].astype(np.float64)
        found[f"rewards/{name}/mean"] = _mean(values)
        found[f"rewards/{name}/std"] = float(applies.std()) if applies.size else float("nan")
    return found


def completion_metrics(
    completions: Sequence[Sequence[Completion]], parsed: Sequence[Sequence[bool]]
) -> dict[str, float]:
    """Lengths in tokens, share truncated (`clipped_ratio`), share with an answer to read."""
    rows = [completion for group in completions for completion in group]
    lengths = np.array([row.num_tokens for row in rows])
    ended = np.array([row.num_tokens for row in rows if not row.truncated])
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/mean_terminated_length": float(ended.mean()) if ended.size else 0.0,
        "completions/clipped_ratio": 1.0 - ended.size / lengths.size,
        "completions/parsed_ratio": float(np.mean(parsed)),
    }


def update_metrics(updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of a step's updates as one: extremes of those that end in /max or /min, else
    means."""

    def join(name: str) -> Any:
        if name.endswith("/max"):
            return np.max
        return np.min if name.endswith("/min") else np.mean

    return {
        name: float(join(name)([float(update[name]) for update in updates]))
        for name in updates[0]
        if name != "finite"
    }


def advice(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """What to try when nothing can be learnt from any step so far; empty when something can.

    >>> dead = {"frac_reward_zero_std": 1.0, "reward": 0.0}
    >>> dead |= {"completions/clipped_ratio": 0.0, "completions/parsed_ratio": 0.5}
    >>> len(advice([dead])), advice([dead, dead | {"frac_reward_zero_std": 0.5}])
    (1, [])
    """

    def always(name: str, value: float) -> bool:
        return bool(steps) and all(step.get(name) == value for step in steps)

    found = []
    if always("frac_reward_zero_std", 1.0):
        # A step without any reward has NaN, or null when it was read from the log.
        rewards = sorted({round(step["reward"] or 0.0, 4) for step in steps})
        found.append(
            f"in every group so far all rewards were equal (mean {rewards[0]:g}"
            + (f" to {rewards[-1]:g}" if len(rewards) > 1 else "")
            + "): nothing tells them apart. Try questions that the model gets right now and then "
            "(a demonstration or an answer prefix in the prompt), more completions (--group-size) "
            "or a higher --temperature."
        )
    if always("completions/clipped_ratio", 1.0):
        found.append(
            "every completion so far ran into --max-new-tokens before an end token, which matters "
            "where the reward looks at the end or at what comes late. Raise it, or ask for shorter "
            "answers; check that the model's end token is among those shown at the start."
        )
    if always("completions/parsed_ratio", 0.0):
        found.append(
            "no answer could be read in any completion so far. Look at completions.jsonl: show the "
            "model the format (a demonstration, an answer prefix), or make the verifier read what "
            "it writes."
        )
    return found


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.astype(np.float64).mean()) if values.size else float("nan")
