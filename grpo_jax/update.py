"""One optimizer step: weights from the whole step, gradients summed over micro-batches, Optax."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.choices import call, function_of
from grpo_jax.objectives.measures import Measures, combined, metrics
from grpo_jax.parts import groups_at_once, in_parts
from grpo_jax.policy import Policy, completion_log_probs
from grpo_jax.types import Batch, Params, TrainState


def minibatches(batch: Batch, num_minibatches: int, num_epochs: int = 1) -> Iterator[Batch]:
    """Cuts a batch along its prompts, never within a group, `num_epochs` times over.

    Raises:
        ValueError: the prompts do not divide by `num_minibatches`.
    """
    num_prompts = batch.advantages.shape[0]
    if num_prompts % num_minibatches:
        raise ValueError(
            f"{num_prompts} prompts do not divide into {num_minibatches} mini-batches of whole "
            "groups; change num_prompts or num_minibatches"
        )
    size = num_prompts // num_minibatches
    for _ in range(num_epochs):
        for start in range(0, num_prompts, size):
            part = slice(start, start + size)
            yield batch if size == num_prompts else jax.tree.map(lambda x: x[part], batch)  # noqa: B023


@functools.partial(
    jax.jit,
    static_argnames=(
        "policy",
        "objective",
        "optimizer",
        "temperature",
        "micro_batch_tokens",
        "balance_coef",
    ),
    donate_argnames="state",
)
def update(
    policy: Policy,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    *,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    micro_batch_tokens: int = 0,
    balance_coef: float = 0.0,
) -> tuple[TrainState, Measures]:
    """One optimizer step on a (mini-)batch of whole groups.

    Args:
        policy: the network.
        objective: gives the token weights and the loss.
        optimizer: gradient clipping, schedule and all.
        state: its buffers are donated: use the returned one.
        batch: P groups, with weights of their own if they are a part of a larger step.
        key: for an objective or a network that draws random numbers.
        temperature: the sampler's.
        micro_batch_tokens: tokens whose activations are held at once (prompts once, completions
            each, padding included), in whole groups, at least one; 0 chooses by the memory of the
            machine. The result is the same up to rounding, and but for dropout, which is drawn anew
            for each part.
        balance_coef: of the mean over completions of how unevenly their tokens fall on experts
            (`ops.routing.load_balance`); a network of experts alone can have one.

    Returns:
        the new state, and metrics: `loss`, `grad_norm`, the objective's measures, `entropy`,
        `sampler_mismatch/mean` and `/max`, and `finite`: whether loss and gradient were. If not,
        the state is returned as it came, but for nothing.

    Raises:
        ValueError: micro-batches with a surrogate that is a statistic of the whole step.
    """
    num_prompts, group_size, num_tokens = batch.rollout.completion.shape
    group_tokens = batch.rollout.prompt.shape[-1] + group_size * num_tokens
    if objective.of_the_whole_step and 0 < micro_batch_tokens < num_prompts * group_tokens:
        raise ValueError(
            f"micro_batch_tokens is {micro_batch_tokens} of {num_prompts * group_tokens}, but "
            f"{function_of(objective.surrogate).__name__} looks at all tokens of a step at once; "
            "take 0, or smaller steps (num_minibatches)"
        )
    groups = groups_at_once(batch.rollout, state.whole(), micro_batch_tokens)
    part_size = num_prompts if objective.of_the_whole_step else groups
    mask = batch.rollout.completion_mask if batch.mask is None else batch.mask
    if batch.weights is None:
        # From the mask of the whole step: parts of it then add up.
        batch = dataclasses.replace(batch, weights=call(objective.weights, {"mask": mask}))

    def loss_fn(params: Params, part: Batch, number: jax.Array | int) -> tuple[jax.Array, Measures]:
        whole = state.whole(params)
        if policy.with_noise is not None and key is not None:
            whole = policy.with_noise(whole, jax.random.fold_in(key, number))
        said = completion_log_probs(
            policy,
            whole,
            part.rollout,
            temperature=temperature,
            with_entropy=True,
            entropy_gradient=objective.has_entropy_bonus,  # else for the record only
            with_balance=balance_coef > 0,
        )
        loss, measured = objective.loss_and_measures(
            said.log_probs,
            part,
            entropy=said.entropy,
            support_log_mass=said.support_log_mass,
            key=key,
            coefs=state.coefs,
        )
        anchor = said.drawn if part.old_log_probs is None else part.old_log_probs
        sampler = part.rollout.sampler_log_probs
        drawn = anchor if sampler is None else sampler
        if sampler is not None and part.rollout.support is None:
            # Like to like: under the whole distribution.
            drawn = drawn + part.rollout.support_log_mass
        counted = part.rollout.completion_mask if part.mask is None else part.mask
        mismatch = jnp.where(part.rollout.completion_mask, jnp.abs(drawn - anchor), 0.0)
        measured |= {"entropy": jnp.where(counted, said.entropy, 0.0).sum()}
        measured |= {"sampler_mismatch/mean": jnp.where(counted, mismatch, 0.0).sum()}
        if said.balance is not None:
            loss += balance_coef * said.balance.sum() / (num_prompts * group_size)
            by_token = jnp.where(counted, said.balance[..., None], 0.0)
            measured |= {"router/balance": by_token.sum()}
        measured |= {"sampler_mismatch/max": mismatch.max(), "loss": loss}
        return loss, jax.lax.stop_gradient(measured)

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if part_size >= num_prompts:
        grads, measured = grad_fn(state.params, batch, 0)
    else:
        parts = in_parts(batch, part_size)
        numbers = jnp.arange(jax.tree.leaves(parts)[0].shape[0])

        def accumulate(grads: Params, numbered: tuple[Batch, jax.Array]):
            new, aux = grad_fn(state.params, *numbered)
            # In the type of the sums: those of bfloat16 parameters are float32.
            return jax.tree.map(lambda sum_, x: sum_ + x.astype(sum_.dtype), grads, new), aux

        def zeros(x: jax.Array) -> jax.Array:
            return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))

        start = jax.tree.map(zeros, state.params)
        grads, stacked = jax.lax.scan(accumulate, start, (parts, numbers))
        measured = combined(stacked)

    loss = measured.pop("loss")
    found = metrics(measured) | {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    found["finite"] = jnp.isfinite(loss) & jnp.isfinite(found["grad_norm"])
    changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(found["finite"], new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    return dataclasses.replace(state, params=params, opt_state=opt_state), found
