"""Numbers from a trunk: a score of each completion, a value of each token."""

import jax
import jax.numpy as jnp

from grpo_jax.policy import Policy, predicting_hidden
from grpo_jax.types import Params, Rollout


def completion_scores(policy: Policy, params: Params, rollout: Rollout) -> jax.Array:
    """What a score head says after the last token of each completion.

    Args:
        policy: of a decoder with a score head (`DecoderConfig.num_labels`), whose `unembed` gives
            the scores.
        params: its parameters.
        rollout: P groups of G completions, each of at least one token.

    Returns:
        [P, G, labels] float32.

    Reference: `...ForSequenceClassification` of the transformers library, which looks at the last
    token that is no padding.
    """
    prefix, _ = policy.prefill(params, rollout.prompt, rollout.prompt_mask)
    hidden, _ = policy.extend(params, prefix, rollout.completion)
    last = jnp.maximum(rollout.completion_mask.sum(axis=-1) - 1, 0)
    last_hidden = jnp.take_along_axis(hidden, last[..., None, None], axis=2)[:, :, 0]
    return policy.unembed(params, last_hidden).astype(jnp.float32)


def init_value_head(hidden_size: int) -> Params:
    """A head that says 0 of everything, before it has learnt: kernel [1, D] and bias [1]."""
    return {"kernel": jnp.zeros([1, hidden_size]), "bias": jnp.zeros([1])}


def token_values(policy: Policy, params: Params, head: Params, rollout: Rollout) -> jax.Array:
    """What a value head says of the state that each token was chosen in.

    Args:
        policy: the trunk.
        params: its parameters; gradients flow to them, unless the caller stops them.
        head: of `init_value_head`.
        rollout: P groups of G completions.

    Returns:
        [P, G, T] float32, 0 outside the completion mask.
    """
    hidden, _ = predicting_hidden(policy, params, rollout)
    hidden = hidden.astype(jnp.float32)
    values = (hidden * jnp.expand_dims(head["kernel"][0], range(3))).sum(axis=-1)
    return jnp.where(rollout.completion_mask, values + head["bias"][0], 0.0)
