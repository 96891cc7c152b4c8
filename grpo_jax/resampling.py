"""Sampling more than once in a step: until groups have a signal, and for a greedy baseline."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.lengths import concatenated, cut
from grpo_jax.ops import selection
from grpo_jax.policy import Policy
from grpo_jax.sampling import Sampling, prompt_keys
from grpo_jax.types import Params, Prompts, Rollout


def groups_with_signal(
    sample: Callable[[int], Rollout],
    scores: Callable[[Rollout], dict[str, Any]],
    *,
    max_rounds: int,
) -> tuple[Rollout, dict[str, Any], np.ndarray]:
    """Keeps the groups whose rewards differ, and samples again until there are P of them.

    A phase samples P prompts whatever is still missing, so that nothing is compiled twice. After
    `max_rounds` of them the step is filled up with groups without a signal, the earliest first: a
    step always has its shape, and a task that is all solved or all failed ends.

    Args:
        sample: number of the phase, from 0 -> a rollout of P groups.
        scores: a rollout -> arrays [P, ...] by name, `rewards` [P, G] or [P, G, K] among them, and
            perhaps `signal_rewards` [P, G], by which a signal is then judged.
        max_rounds: phases at most.

    Returns:
        the rollout (cut to its longest completion unless arrays of tokens go with it) and the
        arrays of the P groups taken, and [P] int, which of all groups sampled these are, in the
        order of sampling.

    Reference: DAPO, arXiv:2503.14476, section 3.2.
    Choice: the paper has no cap. Rewards that are all equal are no signal; of several reward
    functions, all of them.
    """
    rollouts: list[Rollout] = []
    arrays: list[dict[str, Any]] = []
    signal = np.zeros([0], bool)
    for phase in range(max_rounds):
        rollouts.append(sample(phase))
        arrays.append(scores(rollouts[-1]))
        judged_by = arrays[-1].get("signal_rewards", arrays[-1]["rewards"])
        here = _has_signal(jnp.asarray(judged_by))
        signal = np.concatenate([signal, here])
        if signal.sum() >= here.size:
            break
    # Stable: in the order of sampling, those without a signal behind the others.
    chosen = np.argsort(~signal, kind="stable")[: rollouts[0].completion.shape[0]]
    taken = jax.tree.map(lambda x: x[chosen], concatenated(rollouts))
    per_group = [{k: v for k, v in found.items() if k != "reward_weights"} for found in arrays]
    found = jax.tree.map(lambda *parts: jnp.concatenate(parts)[chosen], *per_group)
    per_token = found.keys() & {"step_rewards", "step_ends", "values"}
    return taken if per_token else cut(taken), arrays[0] | found, chosen


def greedy_rewards(
    policy: Policy,
    params: Params,
    rollout: Rollout,
    score: Callable[[Rollout], Any],
    *,
    sampling: Sampling,
) -> jax.Array:
    """The reward of the greedy completion of each of a rollout's prompts, [P] float.

    Reference: ReMax, arXiv:2310.10505, algorithm 2.
    """
    prompts = Prompts(rollout.prompt, rollout.prompt_mask)
    keys = prompt_keys(jax.random.key(0), 0, rollout.prompt.shape[0])  # greedy: never drawn from
    greedy = dataclasses.replace(sampling, temperature=0.0, keep_support=False)
    best = sample_continuously(policy, params, prompts, keys, group_size=1, sampling=greedy)
    found = score(best)
    rewards = jnp.asarray(found["rewards"] if isinstance(found, dict) else found)
    if rewards.ndim == 3:
        raise ValueError(
            f"rewards of a greedy completion have shape {rewards.shape}; a baseline is one number "
            "a prompt: let score add up its reward functions"
        )
    return rewards[:, 0]


def _has_signal(rewards: jax.Array) -> np.ndarray:
    """[P] bool, of rewards [P, G] or [P, G, K]."""
    if rewards.ndim == 2:
        silent = selection.zero_signal(rewards)
    else:
        silent = selection.zero_signal(jnp.moveaxis(rewards, -1, -2)).all(axis=-1)
    return np.asarray(~silent)
