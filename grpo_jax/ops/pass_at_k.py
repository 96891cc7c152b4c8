"""Credit for the best of several completions. Any leading axes, the group last.

A reward of NaN is no reward, and its completion's advantage is exactly 0.
"""

import jax
import jax.numpy as jnp

from grpo_jax.ops import moments
from grpo_jax.ops.advantages import leave_one_out


def max_minus_second(rewards: jax.Array) -> jax.Array:
    """Credits the best completion of each group with its lead over the second best.

        A[best] = r[best] - r[second],   0 for the others

    Args:
        rewards: [..., G] float, NaN where there is none.

    Returns:
        [..., G] advantages in units of reward, float32 (float64 for float64 input). Zeros where two
        are equally good, or fewer than two have a reward.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: arXiv:2503.19595 (pass@k with k the group size).
    Choice: not divided by a standard deviation, as verl does unless told otherwise. It is
    `pass_at_k` with k = G but for a factor: that one is G times as large, so that the mean over a
    group, not its sum, is the gradient.

    >>> max_minus_second(jnp.array([[0.0, 1.0, 0.25]])).tolist()
    [[0.0, 0.75, 0.0]]
    """
    rewards, scored = moments.scored(rewards)
    if rewards.shape[-1] < 2:
        return jnp.zeros_like(rewards)
    top = jax.lax.top_k(jnp.where(scored, rewards, -jnp.inf), 2)[0]
    best, second = top[..., :1], top[..., 1:]
    # -inf in the second place: there is no second one.
    leads = scored & (rewards == best) & (second > -jnp.inf)
    return jnp.where(leads, rewards - jnp.where(second > -jnp.inf, second, 0.0), 0.0)


def pass_at_k(rewards: jax.Array, *, k: int) -> jax.Array:
    """Credit whose expected gradient is that of the best reward among k completions.

        A[i] = n / C(n, k) · Σ over subsets I of k with i in it ( max r[I] - max r[I without i] )

    So that E[ 1/n Σ_i A[i] ∇log π(o_i) ] = ∇ E[max of k rewards], for any k up to the number n of
    completions; with rewards of 0 and 1 that maximum is pass@k.

    Args:
        rewards: [..., G] float, NaN where there is none; any real numbers.
        k: how many completions will be drawn when the policy is used; 1..G.

    Returns:
        [..., G] advantages in units of reward, float32 (float64 for float64 input); for k ≥ 2 none
        is negative. Zeros in a group with fewer than k rewards.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.
        ValueError: `k` is not in 1..G.

    Reference: PKPO, arXiv:2505.15201, the estimator with baselines from subsets of k - 1 (its
    sloo_minus_one, equation 33).
    Choice: n times the paper's weights, which are summed over a group where the losses here take
    its mean. For k = 1 the paper's baseline has no subset to come from: then it is the mean of the
    others, which makes it `leave_one_out`.

    With one success among failures, every subset that holds it owes it all:

    >>> pass_at_k(jnp.array([[0.0, 1.0, 0.0, 0.0]]), k=2).tolist()
    [[0.0, 2.0, 0.0, 0.0]]
    """
    rewards, scored = moments.scored(rewards)
    size = rewards.shape[-1]
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}; it must be in 1..{size}, the group size: sample larger groups")
    if k == 1:
        return leave_one_out(rewards)
    # Row i, column j. A subset owes to i what i has over the best of the others, if i is above them
    # all; that best one is j in as many subsets as hold, of the rest, only what ranks below j.
    other = jnp.broadcast_to(rewards[..., None, :], (*rewards.shape, size))
    both_there = ~jnp.isnan(other) & scored[..., None]
    lead = jnp.maximum(jnp.where(both_there, rewards[..., None] - other, 0.0), 0.0)
    earlier = jnp.broadcast_to(jnp.tri(size, k=-1, dtype=bool), lead.shape)
    tied = (rewards[..., None] == other) & earlier
    rank = ((lead > 0) | tied).sum(axis=-1)  # how many rank below; equal ones in their order
    count = scored.sum(axis=-1, keepdims=True)
    share = _share_of_subsets(rank, count, k).astype(rewards.dtype)
    return (lead * share[..., None, :]).sum(axis=-1)


def _share_of_subsets(rank: jax.Array, count: jax.Array, k: int) -> jax.Array:
    """n C(rank, k - 2) / C(n, k), as a product of ratios so that no number is large.

    With fewer than k rewards one of its factors is 0 for all that rank below another.
    """
    taken = jnp.broadcast_to(jnp.arange(k - 2), (*rank.shape, k - 2))
    ways = jnp.maximum(rank[..., None] - taken, 0)
    of = jnp.maximum(count[..., None] - 2 - taken, 1)
    return k * (k - 1) / jnp.maximum(count - 1, 1) * (ways / of).prod(axis=-1)
