"""GRPO on one page: sample, score, normalise within the group, loss and KL, Optax step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from grpo_jax.anchors import anchor_arrays, next_state, reference_of
from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.keys import loss_key
from grpo_jax.lengths import cut
from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.checks import check_ahead
from grpo_jax.objectives.measures import Measures
from grpo_jax.objectives.prepare import prepare
from grpo_jax.policy import Policy
from grpo_jax.resampling import greedy_rewards, groups_with_signal
from grpo_jax.sampling import Sampling, prompt_keys
from grpo_jax.types import Batch, Params, Prompts, Rollout, TrainState
from grpo_jax.update import minibatches, update


class Step(NamedTuple):
    """What a step of GRPO leaves.

    Attributes:
        state: the new one.
        batch: what was trained on.
        metrics: of each update.
        chosen: [P] int, which of the groups sampled in this step the batch holds, in the order of
            sampling; 0..P-1 unless the objective samples again for groups without a signal.
        ahead: the next step's rollout, if that was asked for; its `sampled`. Score it at once: the
            device is busy with the update until somebody looks at the state.
    """

    state: TrainState
    batch: Batch
    metrics: list[Measures]
    chosen: np.ndarray
    ahead: Rollout | None


def grpo_step(
    policy: Policy,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    ref_params: Params | None,
    draw_prompts: Callable[[int], Prompts],
    score: Callable[[Rollout], Any],
    *,
    score_greedy: Callable[[Rollout], jax.Array] | None = None,
    sampled: Rollout | None = None,
    draw_ahead: Callable[[int], Prompts] | None = None,
    group_size: int,
    sampling: Sampling,
    num_minibatches: int = 1,
    num_epochs: int = 1,
    rows_at_once: int = 0,
    micro_batch_tokens: int = 0,
    balance_coef: float = 0.0,
) -> Step:
    """One step of GRPO: one phase of sampling, and `num_minibatches * num_epochs` updates.

    Args:
        policy: the network being trained.
        objective: the paper.
        optimizer: Optax's, with gradient clipping and schedule.
        state: donated to the update: use the returned one.
        ref_params: of a frozen reference, in buffers of their own; None when there is no KL term,
            or when the state has the reference: the objective moves it, or the parameters are
            adapters beside frozen ones.
        draw_prompts: number of the phase, from 0 -> its P prompts, always as many. Each width is
            compiled once. There is one phase, unless the objective samples again for groups without
            a signal.
        score: a rollout -> rewards [P, G] or [P, G, K] float, NaN where a completion has none; or a
            dict of `rewards` and other arrays that `prepare` takes. Runs on the host.
        score_greedy: the same of one greedy completion a prompt -> [P, 1], where the objective
            compares with it; None asks `score`.
        sampled: this step's rollout where the last step left one in `Step.ahead`.
        draw_ahead: gives the prompts of the next step, which are then sampled before this step's
            update. The next step is one step off-policy, and the objective must correct for that.
        group_size: G.
        sampling: how completions are drawn; training needs a temperature above 0.
        num_minibatches: optimizer steps per pass over the batch, of whole groups each.
        num_epochs: passes over the batch.
        rows_at_once: completions decoded side by side, the other groups wait; 0 chooses by the
            memory.
        micro_batch_tokens: tokens whose activations are held at once; 0 chooses by the memory.
        balance_coef: of an even load of experts, as `update` has it.

    Raises:
        ValueError: a KL term without a reference, prompts that do not divide, or sampling ahead
            without a correction.
    """
    reference, params = reference_of(objective, state, ref_params), state.whole()
    if sampled is not None or draw_ahead is not None:
        check_ahead(objective)
    num_updates, rounds = num_minibatches * num_epochs, objective.max_sampling_rounds

    # 1 sample G completions of each prompt, which is read once for all of them
    def sample(phase: int, draw: Callable[[int], Prompts] = draw_prompts) -> Rollout:
        prompts = draw(phase)
        num_prompts = prompts.tokens.shape[0]
        first = (state.step * rounds + phase) * num_prompts
        keys = prompt_keys(state.key, first, num_prompts)
        return sample_continuously(
            policy,
            params,
            prompts,
            keys,
            group_size=group_size,
            sampling=sampling,
            rows_at_once=rows_at_once,
        )

    # what the policy that sampled and the reference say of them
    def anchors(rollout: Rollout) -> dict[str, Any]:
        return anchor_arrays(
            policy,
            objective,
            params,
            reference,
            rollout,
            num_updates,
            temperature=sampling.temperature,
            micro_batch_tokens=micro_batch_tokens,
        )

    # 2 score [P, G], on the host
    def scores(rollout: Rollout) -> dict[str, Any]:
        rewards = score(rollout)
        found = rewards if isinstance(rewards, dict) else {"rewards": rewards}
        if "greedy_rewards" not in objective.needs:
            return found
        greedy = greedy_rewards(policy, params, rollout, score_greedy or score, sampling=sampling)
        return found | {"greedy_rewards": greedy}

    if rounds == 1:
        rollout = sampled or cut(sample(0))  # to the longest completion
        anchored = anchors(rollout)  # the device computes these while the host scores
        scored = scores(rollout)
        chosen = np.arange(len(scored["rewards"]))
    else:
        rollout, scored, chosen = groups_with_signal(sample, scores, max_rounds=rounds)
        anchored = anchors(rollout)
    ahead = cut(sample(1, draw_ahead)) if draw_ahead else None

    # 3 normalise the rewards within each group
    batch = prepare(objective, rollout, **scored, **anchored, coefs=state.coefs)

    # 4 loss and KL, 5 Optax step
    metrics = []
    for number, minibatch in enumerate(minibatches(batch, num_minibatches, num_epochs)):
        state, measured = update(
            policy,
            objective,
            optimizer,
            state,
            minibatch,
            key=loss_key(state.key, state.step, number)
            if objective.needs_key or policy.with_noise
            else None,
            temperature=sampling.temperature,
            micro_batch_tokens=micro_batch_tokens,
            balance_coef=balance_coef,
        )
        metrics.append(measured)
    return Step(next_state(objective, state, metrics), batch, metrics, chosen, ahead)
