"""The pytrees that flow between the steps, and the letters of their axes.

P prompts, G group size, L prompt tokens, T completion tokens, V vocabulary. Everything is padded on
the right, and a completion starts at its prompt's true length. Arrays keep the group axis from the
sampler to the loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
"""The parameters of a policy: a nested dict of arrays."""
STACK = "layers"
"""Under which they have those of all layers as one array (`models.stacking`)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts, once each.

    Attributes:
        tokens: [P, L] int32.
        mask: [P, L] bool, True on real tokens; padding is on the right.
    """

    tokens: jax.Array
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """Groups of completions, as sampled.

    Attributes:
        prompt: [P, L] int32.
        prompt_mask: [P, L] bool, True on real tokens.
        completion: [P, G, T] int32; ids as sampled, never re-tokenised text.
        completion_mask: [P, G, T] bool, True on tokens that the policy chose, its end token
            included. Nothing else enters a loss.
        sampler_log_probs: [P, G, T] float32, in nats, under the distribution each token was drawn
            from (its temperature, its top-k, top-p, min-p support); 0 outside the mask. None only
            where nothing compares with the sampler.
        support_log_mass: [P, G, T] float32, log of the probability that this support had before it
            was cut out and renormalised: 0 where nothing was cut. `sampler_log_probs +
            support_log_mass` is the log-probability under the whole distribution.
        truncated: [P, G] bool, ended by length and not by an end token.
        support: [P, G, T, ceil(V / 8)] uint8, the tokens that could be drawn, one bit each
            (`ops.support.pack`), none of them outside the mask; or None where it was not kept.
        prompt_routing: [P, L, M, k] uint, the experts that each token of the prompt took in M
            layers; training takes the same again. None where it was not kept.
        routing: [P, G, T, M, k] uint, of each token of the completion but the last one drawn, which
            never went through the network.
    """

    prompt: jax.Array
    prompt_mask: jax.Array
    completion: jax.Array
    completion_mask: jax.Array
    sampler_log_probs: jax.Array | None
    support_log_mass: jax.Array
    truncated: jax.Array
    support: jax.Array | None = None
    prompt_routing: jax.Array | None = None
    routing: jax.Array | None = None

    @staticmethod
    def from_arrays(
        completion_mask: jax.Array,
        sampler_log_probs: jax.Array | None = None,
        truncated: jax.Array | None = None,
    ) -> "Rollout":
        """A rollout without its tokens: all that credit and loss look at, from arrays of yours.

        Args:
            completion_mask: [P, G, T] bool.
            sampler_log_probs: [P, G, T] float; None where nothing compares with the sampler.
            truncated: [P, G] bool; None is nowhere.

        >>> Rollout.from_arrays(jnp.ones([1, 2, 3], bool)).truncated.shape
        (1, 2)
        """
        if completion_mask.ndim != 3:
            raise ValueError(
                f"completion_mask has shape {completion_mask.shape}; it is [P, G, T]: "
                "prompts, their completions, tokens"
            )
        num_prompts, group_size, _ = completion_mask.shape
        return Rollout(
            prompt=jnp.zeros([num_prompts, 1], jnp.int32),
            prompt_mask=jnp.ones([num_prompts, 1], bool),
            completion=jnp.zeros(completion_mask.shape, jnp.int32),
            completion_mask=completion_mask,
            sampler_log_probs=sampler_log_probs,
            support_log_mass=jnp.zeros(completion_mask.shape),
            truncated=jnp.zeros([num_prompts, group_size], bool)
            if truncated is None
            else truncated,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A rollout and all that the loss needs besides the policy. Whole groups only.

    Attributes:
        rollout: the completions.
        advantages: [P, G, T] or [P, G, 1] float32.
        old_log_probs: [P, G, T] float32, of the policy at the start of the update phase, or None:
            then the policy is still that one, and its own log-probabilities serve.
        ref_log_probs: [P, G, T] float32, of the reference, or None without a KL term.
        mask: [P, G, T] bool, the completion mask less what the objective's selection left out, or
            None where it leaves out nothing. Weights come from it.
        weights: [P, G, T] float32, how much each token counts in
            `loss = sum(weights * per_token_loss)`, or None: then they follow from this batch's
            mask. Filled in for the whole optimizer step before it is cut into micro-batches.
    """

    rollout: Rollout
    advantages: jax.Array
    old_log_probs: jax.Array | None = None
    ref_log_probs: jax.Array | None = None
    mask: jax.Array | None = None
    weights: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update changes and a checkpoint holds; arrays only.

    Attributes:
        params: the policy's parameters, as far as they are trained.
        opt_state: Optax's.
        step: int32 scalar, steps finished (one step is one phase of sampling and its updates).
        key: the base key, never consumed: step n uses what is folded in from n.
        ref_params: the reference's parameters where the objective moves them, else None.
        frozen: parameters that no update changes, where `params` are all that is trained (adapters
            beside a network): then the policy takes `whole`. No checkpoint holds them. None where
            all parameters are trained.
        coefs: coefficients that follow a measurement (`kl`, `entropy`), float32 scalars; empty
            where none does.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    key: jax.Array
    ref_params: Params | None = None
    coefs: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    frozen: Params | None = None

    def whole(self, params: Params | None = None) -> Params:
        """What the policy takes: `params`, or those of the state, with the frozen beside them."""
        params = self.params if params is None else params
        return params if self.frozen is None else {"trained": params, "frozen": self.frozen}
