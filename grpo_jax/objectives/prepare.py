"""Rewards -> advantages within each group, and all that the loss needs beside them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.checks import check_coefs
from grpo_jax.objectives.choices import call, name_of
from grpo_jax.ops import advantages as credit_ops
from grpo_jax.types import Batch, Rollout

_MOST_NATS = 80.0
"""What an infinite estimate of the KL in a reward counts as; the exponent that ratios end at."""


def prepare(
    objective: Objective,
    rollout: Rollout,
    rewards: jax.Array,
    old_log_probs: jax.Array | None = None,
    ref_log_probs: jax.Array | None = None,
    *,
    reward_weights: jax.Array | None = None,
    greedy_rewards: jax.Array | None = None,
    step_rewards: jax.Array | None = None,
    step_ends: jax.Array | None = None,
    values: jax.Array | None = None,
    entropy: jax.Array | None = None,
    sum_sq_probs: jax.Array | None = None,
    old_support_log_mass: jax.Array | None = None,
    signal_rewards: jax.Array | None = None,
    coefs: Mapping[str, jax.Array] | None = None,
) -> Batch:
    """Applies an objective's credit and selection to scored groups.

    Args:
        objective: its `advantages` and `select` rules are applied. What they do not name is not to
            be given.
        rollout: P groups of G completions.
        rewards: [P, G] float (or int or bool), NaN where a completion has none; or [P, G, K], one
            layer for each reward function, NaN where it does not apply: rules that name `rewards`
            then see the weighted sum.
        old_log_probs: [P, G, T] float, or None when there is one update only.
        ref_log_probs: [P, G, T] float, or None without a KL term.
        reward_weights: [K] float, of [P, G, K] rewards; None is one each.
        greedy_rewards: [P] float, of each prompt's greedy completion (ReMax).
        step_rewards: [P, G, J] float, NaN: no such step (process supervision).
        step_ends: [P, G, J] int, index of each step's last token.
        values: [P, G, T] float, a critic's (PPO).
        entropy: [P, G, T] float, of the policy that sampled (top-entropy tokens).
        sum_sq_probs: [P, G, T] float, Σ π² over the vocabulary (optimal token baseline).
        old_support_log_mass: [P, G, T] float, where the support was kept and `old_log_probs` are
            renormalised over it: credit compares whole distributions.
        signal_rewards: [P, G] float, what selection sees as the rewards: those of the task, where
            `rewards` has a punishment of length in it.
        coefs: `kl` as a controller has left it, for a KL in the reward.

    A KL in the reward is that of `old_log_probs`; where it is infinite it counts as 80 nats.

    Raises:
        ValueError: arrays of other shapes, one that is missing, or one that would be ignored.

    >>> from grpo_jax.objectives import dr_grpo
    >>> mask = jnp.array([[[True, True], [True, False]]])
    >>> batch = prepare(
    ...     dr_grpo(max_new_tokens=2), Rollout.from_arrays(mask), jnp.array([[1.0, 0.0]])
    ... )
    >>> batch.advantages.tolist()
    [[[0.5], [-0.5]]]
    """
    check_coefs(coefs or {})
    rewards = jnp.asarray(rewards)
    if not jnp.issubdtype(rewards.dtype, jnp.floating):
        rewards = rewards.astype(float)  # right and wrong as 1 and 0, or as bool
    shape = rollout.truncated.shape
    if rewards.shape[: len(shape)] != shape or rewards.ndim > len(shape) + 1:
        raise ValueError(
            f"rewards have shape {rewards.shape}; the rollout has [P, G] = {shape} completions, "
            "one reward each, or K of them in a last axis"
        )
    extra = {
        "greedy_rewards": greedy_rewards,
        "step_rewards": step_rewards,
        "step_ends": step_ends,
        "values": values,
        "entropy": entropy,
        "sum_sq_probs": sum_sq_probs,
    }
    if signal_rewards is not None and not objective.selects_by_signal:
        raise ValueError("this objective selects nothing by signal_rewards; leave them out")
    if old_support_log_mass is not None and not objective.credits_by_policy:
        raise ValueError("this objective credits nothing by old_support_log_mass; leave it out")
    _check_extra(objective, extra, old_log_probs, ref_log_probs)
    by_token = {"old_log_probs": old_log_probs, "ref_log_probs": ref_log_probs, "values": values}
    by_token |= {"entropy": entropy, "sum_sq_probs": sum_sq_probs}
    by_token |= {"old_support_log_mass": old_support_log_mass}
    for name, array in by_token.items():
        if array is not None and array.shape != rollout.completion_mask.shape:
            raise ValueError(
                f"{name} has shape {array.shape}; the completions have [P, G, T] = "
                f"{rollout.completion_mask.shape}"
            )
    mask = rollout.completion_mask
    whole = old_log_probs
    if old_log_probs is not None and old_support_log_mass is not None:
        whole = old_log_probs + old_support_log_mass
    arrays = extra | {"mask": mask, "truncated": rollout.truncated, "old_log_probs": whole}
    arrays["lengths"] = mask.sum(axis=-1)
    if rewards.ndim > len(shape):
        if reward_weights is None:
            reward_weights = jnp.ones(rewards.shape[-1:], rewards.dtype)
        arrays |= {"rewards_by_function": rewards, "reward_weights": reward_weights}
        rewards = credit_ops.weighted_sum(rewards, reward_weights)
    elif "rewards_by_function" in objective.needs:
        raise ValueError(
            f"{name_of(objective.advantages)} takes the rewards of each function by itself; give "
            f"rewards of shape [P, G, K], not {rewards.shape}"
        )
    elif reward_weights is not None:
        raise ValueError(
            "reward_weights belong to rewards [P, G, K]; these are [P, G]: leave them out"
        )
    arrays["rewards"] = rewards
    if objective.kl is not None and objective.kl_in_reward:
        assert whole is not None  # looked at above
        assert ref_log_probs is not None
        given = {
            "log_probs": jnp.where(mask, whole, 0.0),
            "ref_log_probs": jnp.where(mask, ref_log_probs, 0.0),
            "mask": mask,
        }
        coef = (coefs or {}).get("kl", objective.kl_coef)
        # A token that one of the two calls impossible: a penalty that statistics can bear.
        nats = call(objective.kl, given)
        nats = jnp.where(jnp.isinf(nats), jnp.sign(nats) * _MOST_NATS, nats)
        arrays["token_penalty"] = coef * nats
    advantages = call(objective.advantages, arrays)
    if advantages.shape not in (shape, mask.shape):
        raise ValueError(
            f"{name_of(objective.advantages)} gives advantages of shape {advantages.shape}; they "
            f"are [P, G] = {shape}, or by token [P, G, T] = {mask.shape}"
        )
    advantages = advantages[..., None] if advantages.ndim == len(shape) else advantages
    counted = mask
    for rule in objective.select:
        seen = {"mask": counted, "advantages": advantages}
        if signal_rewards is not None:
            seen["rewards"] = signal_rewards
        counted = call(rule, arrays | seen)
    return Batch(
        rollout,
        jax.lax.stop_gradient(advantages),
        old_log_probs,
        ref_log_probs,
        counted if objective.select else None,
    )


def _check_extra(
    objective: Objective,
    extra: Mapping[str, jax.Array | None],
    old_log_probs: jax.Array | None,
    ref_log_probs: jax.Array | None,
) -> None:
    """Raises ValueError for an array that is missing, or that nothing would look at."""
    there = {name for name, array in extra.items() if array is not None}
    there |= {"old_log_probs"} if old_log_probs is not None else set()
    missing = objective.needs - there - {"rewards_by_function", "reward_weights"}
    if objective.kl_in_reward and ref_log_probs is None:
        missing |= {"ref_log_probs"}
    if missing:
        raise ValueError(
            f"{name_of(objective.advantages)} (or a selection rule) needs "
            f"{', '.join(sorted(missing))}; give prepare what it names"
        )
    looked_at = objective.names_of_credit
    if not objective.sampler_anchor or objective.kl_in_reward:
        looked_at |= {"old_log_probs"}
    ignored = sorted(there - looked_at)
    if ignored:
        raise ValueError(
            f"this objective looks at no {ignored[0]}; leave it out, or take one that does"
        )
