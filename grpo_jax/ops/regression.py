"""Losses that fit log ratios to rewards, in place of a policy gradient."""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import ratios


def gvpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    mask: jax.Array,
    advantages: jax.Array,
    *,
    coef: float = 0.1,
) -> jax.Array:
    """Squared distance of a group's centred log ratios from its centred rewards.

        loss_i = G / (2 (G - 1)) (β (Δ_i - mean Δ) - A_i)²,   Δ_i = Σ_t log(π / π_old)

    Its mean over the group is the paper's 1 / (2 (G - 1)) Σ_i (...)².

    Args:
        log_probs: [..., G, T] float, of the policy.
        old_log_probs: [..., G, T] float, of the policy that it is held to (the paper's π_θ').
        mask: [..., G, T] bool, True where the token counts.
        advantages: [..., G, 1] float, rewards less the group's mean (`advantages.group_center`).
        coef: β, in units of reward per nat: the weight of KL(π || π_old) in what is optimised.

    Returns:
        [..., G, 1] float32 (float64 for float64 input), in units of reward squared: one loss a
        completion, to be weighted by 1 / (prompts · G). At π = π_old the slope in log π of every
        token is -β G / (G - 1) A.

    Raises:
        AssertionError: while tracing, unless types and shapes are these.
        ValueError: `coef` is not positive.

    Reference: GVPO, arXiv:2504.19599; β = 0.1 of the authors' code (jszkc/GVPO).
    Choice: the gradient flows through the group's mean of Δ, where that code detaches it: the same
    for advantages that sum to 0 over the group. An empty completion, or one that either policy
    calls impossible, is no member of its group and has loss 0. A completion without a reward is a
    member with A = 0, unless the mask takes it out. A single member has no gradient.

    >>> old, mask = jnp.zeros([2, 1]), jnp.ones([2, 1], bool)
    >>> log_probs, advantages = jnp.array([[1.0], [-1.0]]), jnp.array([[0.5], [-0.5]])
    >>> gvpo(log_probs, old, mask, advantages, coef=1.0).tolist()  # (1 · 1 - 0.5)²
    [[0.25], [0.25]]
    """
    if not coef > 0:
        raise ValueError(f"coef is {coef}; without a KL there is no best policy to fit: take 0.1")
    chex.assert_type(advantages, float)
    chex.assert_shape(advantages, (*mask.shape[:-1], 1))
    delta = ratios.summed(ratios.token(log_probs, old_log_probs, mask), mask)
    member = mask.any(axis=-1, keepdims=True) & jnp.isfinite(delta)
    delta = jnp.where(member, delta, 0.0)
    count = member.sum(axis=-2, keepdims=True)
    mean = delta.sum(axis=-2, keepdims=True) / jnp.maximum(count, 1)
    misfit = jnp.where(member, coef * (delta - mean) - advantages, 0.0)
    return 0.5 * count / jnp.maximum(count - 1, 1) * jnp.square(misfit)
