"""Credit: rewards of a group of completions -> advantages. Any leading axes, the group last."""

import chex
import jax
import jax.numpy as jnp


def group_center(rewards: jax.Array) -> jax.Array:
    """Subtracts the mean reward of each group.

        A[.., g] = r[.., g] - mean(r[..])

    Args:
        rewards: [..., G] float. NaN marks a completion without a reward: it enters no mean.

    Returns:
        [..., G] advantages in units of reward, float32 (float64 for float64 input). A group of
        equal rewards gives exact zeros, and so does a completion without a reward.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: Dr. GRPO, arXiv:2503.20783, section 3.2.
    Choice: the sample's own reward is in its baseline (as printed there), so the expected gradient
    is (G - 1) / G of the unbiased one. The paper has no missing rewards; the rule for NaN is ours.

    >>> group_center(jnp.array([[1.0, 0.0, 0.0, 1.0]])).tolist()
    [[0.5, -0.5, -0.5, 0.5]]
    """
    centred, _ = _centred(rewards)
    return centred


def group_normalize(rewards: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """Centres and scales rewards within each group.

        A[.., g] = (r[.., g] - mean(r[..])) / (std(r[..]) + eps)

    Args:
        rewards: [..., G] float. NaN marks a completion without a reward: it enters neither the
            mean nor the standard deviation.
        eps: added to the standard deviation; in units of reward.

    Returns:
        [..., G] advantages without unit, float32 (float64 for float64 input). A group of equal
        rewards gives exact zeros, and so does a completion without a reward.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: DeepSeekMath, arXiv:2402.03300, section 4.1.2.
    Choice: the paper leaves std and eps open; here std divides by G (jnp.std), where torch.std
    divides by G - 1, and eps is small enough to leave rewards of the order of 1 alone.

    >>> group_normalize(jnp.array([[1.0, 0.0, 0.0, 1.0]])).round(3).tolist()
    [[1.0, -1.0, -1.0, 1.0]]
    """
    centred, scored = _centred(rewards)
    count = jnp.maximum(scored.sum(axis=-1, keepdims=True), 1)
    variance = jnp.square(centred).sum(axis=-1, keepdims=True) / count
    return centred / (jnp.sqrt(variance) + eps)


def _centred(rewards: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Deviations from the mean of the scored completions, and which are scored; both [..., G]."""
    chex.assert_type(rewards, float)
    chex.assert_axis_dimension_gteq(rewards, -1, 1)
    rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
    scored = ~jnp.isnan(rewards)
    # Sixteen rewards of 1.1 have a rounded mean: unshifted, each would get an advantage of 0.1.
    lowest = jnp.where(scored, rewards, jnp.inf).min(axis=-1, keepdims=True)
    shifted = jnp.where(scored, rewards - lowest, 0.0)
    count = jnp.maximum(scored.sum(axis=-1, keepdims=True), 1)
    mean = shifted.sum(axis=-1, keepdims=True) / count
    return jnp.where(scored, shifted - mean, 0.0), scored
