"""GRPO on one page: sample, score, normalise within the group, loss and KL, Optax step."""

import dataclasses
from collections.abc import Callable

import jax
import optax

from grpo_jax.objectives.base import Metrics, Objective, prepare
from grpo_jax.policy import Policy, completion_log_probs
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import Batch, Params, Prompts, Rollout, TrainState
from grpo_jax.update import minibatches, update


def grpo_step(
    policy: Policy,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    ref_params: Params | None,
    prompts: Prompts,
    score: Callable[[Rollout], jax.Array],
    *,
    group_size: int,
    sampling: Sampling,
    num_minibatches: int = 1,
    num_epochs: int = 1,
    micro_batch_prompts: int = 0,
) -> tuple[TrainState, Batch, list[Metrics]]:
    """One step of GRPO: one phase of sampling, and `num_minibatches * num_epochs` updates.

    Args:
        policy: the network being trained.
        objective: the paper.
        optimizer: Optax's, with gradient clipping and schedule.
        state: donated to the update: use the returned one.
        ref_params: of the frozen reference, in buffers of their own; None when there is no KL term.
        prompts: P prompts.
        score: a rollout -> rewards [P, G] float, NaN where a completion has none. Runs on the host.
        group_size: G.
        sampling: how completions are drawn; training needs a temperature above 0.
        num_minibatches: optimizer steps per pass over the batch, of whole groups each.
        num_epochs: passes over the batch.
        micro_batch_prompts: groups whose activations are held at once; 0 takes all.

    Returns:
        the new state, the batch trained on, and the metrics of each update.

    Raises:
        ValueError: a KL term without `ref_params`, or prompts that do not divide.
    """
    if objective.kl_coef and ref_params is None:
        raise ValueError(
            f"kl_coef is {objective.kl_coef}, but there are no ref_params; give the reference's, "
            "or kl_coef=0"
        )
    num_prompts = prompts.tokens.shape[0]
    keys = prompt_keys(state.key, state.step * num_prompts, num_prompts)

    # 1 sample G completions of each prompt, which is read once for all of them
    rollout = sample_groups(
        policy, state.params, prompts, keys, group_size=group_size, sampling=sampling
    )

    def log_probs_of(params: Params) -> jax.Array:
        return completion_log_probs(policy, params, rollout, temperature=sampling.temperature)[0]

    # One update starts from the policy that sampled: its own log-probabilities are the old ones.
    old = log_probs_of(state.params) if num_minibatches * num_epochs > 1 else None
    ref = log_probs_of(ref_params) if objective.kl_coef else None

    # 2 score [P, G], on the host while the device computes the above
    rewards = score(rollout)

    # 3 normalise the rewards within each group
    batch = prepare(objective, rollout, rewards, old, ref)

    # 4 loss and KL, 5 Optax step
    metrics = []
    for minibatch in minibatches(batch, num_minibatches, num_epochs):
        state, measured = update(
            policy,
            objective,
            optimizer,
            state,
            minibatch,
            temperature=sampling.temperature,
            micro_batch_prompts=micro_batch_prompts,
        )
        metrics.append(measured)
    return dataclasses.replace(state, step=state.step + 1), batch, metrics
