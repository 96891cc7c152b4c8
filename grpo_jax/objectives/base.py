"""An objective: one field for each question that a paper of the family answers."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from grpo_jax.ops import ratios, surrogates
from grpo_jax.types import Batch, Rollout

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """Choices that compose into `loss = sum(weights * (surrogate + kl_coef * kl))`.

    Attributes:
        advantages: rewards [P, G] -> [P, G], or [P, G, T] for credit by token.
        surrogate: (log_ratio [P, G, T], advantages [P, G, T or 1]) -> per-token losses [P, G, T].
        weights: completion mask [P, G, T] of a whole optimizer step -> token weights [P, G, T].
        log_ratio: (log_probs, old_log_probs, mask), all [P, G, T] -> [P, G, T].
        kl: (log_probs, ref_log_probs) -> per-token estimates [P, G, T] in nats, or None.
        kl_coef: β. At 0 no reference is loaded and none is computed.

    Raises:
        ValueError: a negative coefficient, or one without an estimate.
    """

    advantages: Callable[[jax.Array], jax.Array]
    surrogate: Callable[[jax.Array, jax.Array], jax.Array]
    weights: Callable[[jax.Array], jax.Array]
    log_ratio: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = ratios.token
    kl: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    kl_coef: float = 0.0

    def __post_init__(self):
        if not self.kl_coef >= 0:
            raise ValueError(f"kl_coef is {self.kl_coef}; it must be 0 or more (0: no reference)")
        if self.kl_coef and self.kl is None:
            raise ValueError(f"kl_coef is {self.kl_coef} without an estimate; give kl=kl.k3")

    def loss(self, log_probs: jax.Array, batch: Batch) -> jax.Array:
        """The scalar to minimise.

        Args:
            log_probs: [P, G, T] float, of the policy being trained; gradients flow through these.
            batch: what `prepare` made, or a part of it that carries the whole's weights.

        Returns:
            scalar float32: sum over tokens of weight times per-token loss. Values of padding, NaN
            included, change neither it nor its gradient.
        """
        return self.loss_and_sums(log_probs, batch)[0]

    def loss_and_sums(self, log_probs: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss, and sums over counting tokens of what is worth watching ("tokens" is their
        number), which add up over micro-batches."""
        mask = batch.rollout.completion_mask
        weights = self.weights(mask) if batch.weights is None else batch.weights
        old = batch.old_log_probs
        old = jax.lax.stop_gradient(log_probs) if old is None else old
        log_ratio = self.log_ratio(log_probs, old, mask)
        losses = self.surrogate(log_ratio, batch.advantages)
        low, high = surrogates.clip_sides(
            self.surrogate, jax.lax.stop_gradient(log_ratio), batch.advantages
        )
        values = {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high}
        values["clip_ratio/region_mean"] = low | high
        if self.kl is not None and self.kl_coef:
            if batch.ref_log_probs is None:
                raise ValueError(
                    f"kl_coef is {self.kl_coef}, but the batch holds no ref_log_probs; "
                    "compute them with completion_log_probs under the reference's parameters"
                )
            # Masked first: junk in the padding must not reach exp, nor its gradient.
            kl = self.kl(jnp.where(mask, log_probs, 0.0), jnp.where(mask, batch.ref_log_probs, 0.0))
            losses += self.kl_coef * kl
            values["kl"] = kl
        sums = {name: jnp.sum(jnp.where(mask, value, 0)) for name, value in values.items()}
        sums["tokens"] = mask.sum()
        return jnp.sum(weights * jnp.where(mask, losses, 0.0)), jax.lax.stop_gradient(sums)


def prepare(
    objective: Objective,
    rollout: Rollout,
    rewards: jax.Array,
    old_log_probs: jax.Array | None = None,
    ref_log_probs: jax.Array | None = None,
) -> Batch:
    """Rewards [P, G] -> advantages within each group, and all that the loss needs beside them.

    Args:
        objective: its `advantages` rule is applied.
        rollout: P groups of G completions.
        rewards: [P, G] float, NaN where a completion has none.
        old_log_probs: [P, G, T] float, or None when there is one update only.
        ref_log_probs: [P, G, T] float, or None without a KL term.

    Raises:
        ValueError: rewards of another shape than [P, G].
    """
    if rewards.shape != rollout.truncated.shape:
        raise ValueError(
            f"rewards have shape {rewards.shape}; the rollout has [P, G] = "
            f"{rollout.truncated.shape} completions, one reward each"
        )
    advantages = objective.advantages(rewards)
    advantages = advantages[..., None] if advantages.ndim == 2 else advantages
    return Batch(rollout, advantages, old_log_probs, ref_log_probs)
