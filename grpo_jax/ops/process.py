"""Credit from the rewards of steps: what a completion earns on its way."""

import functools

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops.advantages import group_normalize


def process_supervision(
    step_rewards: jax.Array,
    step_ends: jax.Array,
    mask: jax.Array,
    *,
    eps: float = 1e-6,
    ddof: int = 0,
) -> jax.Array:
    """Normalises the step rewards of a whole group together and sums them to go.

        A[.., g, t] = Σ_{j: e[.., g, j] ≥ t} (r[.., g, j] - mean(r[..])) / (std(r[..]) + eps)

    Args:
        step_rewards: [..., G, J] float, NaN where a completion has no such step.
        step_ends: [..., G, J] int, e: index of the step's last token.
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        eps: added to the standard deviation; in units of reward.
        ddof: taken from the number of steps in the divisor of the variance, 0 or 1.

    Returns:
        [..., G, T] advantages without unit, float32 (float64 for float64 input). Exact zeros
        outside the mask, after the last step's end, in a completion without a scored step, and
        where all step rewards of the group are equal (one step alone included).

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.
        ValueError: `ddof` is neither 0 nor 1, or `eps` is negative.

    Reference: DeepSeekMath, arXiv:2402.03300, section 4.1.3.
    Choice: the paper leaves std and eps open, as in outcome supervision. More steps make larger
    sums; that is the paper's rule. A step counts for the tokens up to its end even if that end is
    past the last token; the order of the steps does not matter.

    >>> rewards, ends = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0, 1], [0, 1]])
    >>> process_supervision(rewards, ends, jnp.ones([2, 3], bool), eps=0.0).tolist()
    [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    chex.assert_type([step_rewards, step_ends, mask], [float, int, bool])
    chex.assert_equal_shape([step_rewards, step_ends])
    chex.assert_equal_shape_prefix([step_rewards, mask], mask.ndim - 1)
    chex.assert_equal_rank([step_rewards, mask])
    pooled = step_rewards.reshape(*step_rewards.shape[:-2], -1)
    # A step that is not there gets 0, and so adds nothing.
    normalized = group_normalize(pooled, eps=eps, ddof=ddof).reshape(step_rewards.shape)
    return jnp.where(mask, _sum_of_ends_ahead(normalized, step_ends, mask.shape[-1]), 0.0)


@functools.partial(jax.jit, static_argnames="num_tokens")
def _sum_of_ends_ahead(terms: jax.Array, ends: jax.Array, num_tokens: int) -> jax.Array:
    """Σ_{j: ends[.., j] ≥ t} terms[.., j]; [..., J] -> [..., T]."""
    tokens = jnp.arange(num_tokens).reshape(*[1] * (ends.ndim - 1), -1)

    # Term by term, so that no array holds tokens times steps.
    def add(total: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        end, term = step
        return total + jnp.where(end >= tokens, term, 0.0), None

    steps = jnp.moveaxis(ends, -1, 0)[..., None], jnp.moveaxis(terms, -1, 0)[..., None]
    return jax.lax.scan(add, jnp.zeros((*ends.shape[:-1], num_tokens), terms.dtype), steps)[0]
