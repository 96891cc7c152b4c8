"""What a step's policy is held to: the policy it starts from, the reference, the coefficients."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.measures import Measures
from grpo_jax.parts import groups_at_once
from grpo_jax.policy import Policy, completion_log_probs
from grpo_jax.types import Params, Rollout, TrainState


def reference_of(
    objective: Objective, state: TrainState, ref_params: Params | None
) -> Params | None:
    """The reference's parameters: the state's own where the objective moves them; the frozen ones
    alone where the policy is made of adapters beside them.

    Raises:
        ValueError: the state lacks what the objective keeps, or a KL term has no reference.
    """
    reference = ref_params if state.ref_params is None else state.whole(state.ref_params)
    if reference is None and state.frozen is not None:
        reference = {"frozen": state.frozen}
    if objective.needs_reference and reference is None:
        raise ValueError(
            f"kl_coef is {objective.kl_coef}, but there are no ref_params; give the reference's, "
            "or kl_coef=0"
        )
    if state.coefs.keys() != objective.initial_coefs().keys():
        raise ValueError(
            f"the state has coefs {sorted(state.coefs)}, the objective adapts "
            f"{sorted(objective.initial_coefs())}; begin with coefs=objective.initial_coefs()"
        )
    if objective.reference is not None and state.ref_params is None:
        raise ValueError(
            "the objective moves its reference, but the state has no ref_params; begin with a copy "
            "of the parameters there"
        )
    return reference


def anchor_arrays(
    policy: Policy,
    objective: Objective,
    params: Params,
    ref_params: Params | None,
    rollout: Rollout,
    num_updates: int,
    *,
    temperature: float,
    micro_batch_tokens: int = 0,
) -> dict[str, Any]:
    """What `prepare` takes from two policies: the one that the step starts from, the reference.

    Args:
        policy: the network.
        objective: says what it needs.
        params: before the first update of the step.
        ref_params: the reference's; None without a KL term.
        rollout: P groups of G completions.
        num_updates: with one, the policy is still the one it started from: its own
            log-probabilities serve, and none are computed here.
        temperature: the sampler's.
        micro_batch_tokens: tokens whose activations are held at once; 0 chooses by the memory.

    Returns:
        `old_log_probs`, `old_support_log_mass`, `ref_log_probs`, `entropy`, `sum_sq_probs`,
        [P, G, T] float32 each, as far as they are needed.
    """
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {"temperature": temperature}
    settings["groups_at_once"] = groups_at_once(rollout, params, micro_batch_tokens)
    beside = objective.needs & {"entropy", "sum_sq_probs"}
    moves = num_updates > 1 and objective.uses_anchor and not objective.sampler_anchor
    if objective.needs_old or moves:
        asked: dict[str, Any] = {f"with_{name}": True for name in sorted(beside)}
        said = completion_log_probs(policy, params, rollout, **settings, **asked)
        found = {"old_log_probs": said.drawn} | {name: getattr(said, name) for name in beside}
        if objective.credits_by_policy and said.support_log_mass is not None:
            found["old_support_log_mass"] = said.support_log_mass
    if objective.needs_reference:
        # Its own experts: those on record are the policy's.
        unrouted = dataclasses.replace(rollout, prompt_routing=None, routing=None)
        said = completion_log_probs(policy, ref_params, unrouted, **settings)
        found["ref_log_probs"] = said.log_probs
    return found


def next_state(objective: Objective, state: TrainState, metrics: Sequence[Measures]) -> TrainState:
    """The state after the updates of a step: counted, reference and coefficients moved.

    After an update that was not finite, and so not applied, neither is moved.
    """
    finite = jnp.all(jnp.stack([m["finite"] for m in metrics]))
    changes: dict[str, Any] = {"step": state.step + 1}
    if state.coefs:
        measured = {
            name: jnp.mean(jnp.stack([m[name] for m in metrics]))
            for name in ("kl", "entropy")
            if name in metrics[0]
        }
        adapted = objective.adapted(state.coefs, measured)
        changes["coefs"] = {
            name: jnp.where(finite, value, state.coefs[name]) for name, value in adapted.items()
        }
    if objective.reference is not None:
        changes["ref_params"] = _moved(
            objective.reference, state.ref_params, state.params, changes["step"], finite
        )
    return dataclasses.replace(state, **changes)


@functools.partial(jax.jit, static_argnames="rule")
def _moved(
    rule: Callable[..., Params],
    ref_params: Params,
    params: Params,
    step: jax.Array,
    finite: jax.Array,
) -> Params:
    # Compiled, so that the result never shares a buffer with the parameters, which are donated.
    moved = rule(ref_params, params, step)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, ref_params)
