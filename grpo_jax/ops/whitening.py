"""Standardising over a whole batch: mean 0 and standard deviation 1 over all that counts.

The batch is every entry of the array, whatever its leading axes; under `vmap` it is one slice.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import moments
from grpo_jax.ops.precision import working_dtype


def batch_whiten(rewards: jax.Array, *, eps: float = 1e-6, ddof: int = 1) -> jax.Array:
    """Centres and scales over all completions of the batch, without regard to groups.

        A = (r - mean(r)) / (std(r) + eps)

    Args:
        rewards: [..., G] float, one for each completion: rewards, or advantages of another rule.
            NaN is not there: it enters no statistic.
        eps: added to the standard deviation.
        ddof: the standard deviation divides by n - ddof; 0 or 1.

    Returns:
        [..., G] without unit, float32 (float64 for float64 input). 0 where the input is NaN; all 0
        if all are equal.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.
        ValueError: `ddof` is neither 0 nor 1, or `eps` is negative.

    Reference: REINFORCE++, arXiv:2501.03262; GDPO, arXiv:2601.05242.
    Choice: a completion counts once, however long it is; `token_whiten` counts its tokens.

    >>> batch_whiten(jnp.array([[2.0, 0.0], [1.0, jnp.nan]])).round(3).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    rewards, scored = moments.scored(rewards)
    centred = moments.deviations(rewards, scored)
    return moments.over_std(centred, moments.std(centred, scored, ddof=ddof), eps=eps)


def token_whiten(
    advantages: jax.Array,
    mask: jax.Array,
    *,
    eps: float = 1e-6,
    ddof: int = 0,
    center: bool = True,
) -> jax.Array:
    """Centres and scales over all tokens of the batch.

        A = (a - mean(a)) / (std(a) + eps)

    Args:
        advantages: [..., T] float, or [..., 1] for one value for all tokens of a completion.
        mask: [..., T] bool, True on the tokens that count.
        eps: added to the standard deviation.
        ddof: the standard deviation divides by n - ddof, of n tokens; 0 or 1.
        center: False divides only, a / (std(a) + eps), with the same standard deviation.

    Returns:
        [..., T] without unit, float32 (float64 for float64 input); 0 where the mask is False. If
        all tokens that count are equal: zeros, or without centring the input as it is.

    Raises:
        AssertionError: while tracing, unless the types are these and the shapes fit.
        ValueError: `ddof` is neither 0 nor 1, or `eps` is negative.

    Reference: REINFORCE++, arXiv:2501.03262.
    Choice: a long completion weighs more, as it does there. The paper leaves ddof open: its code
    (OpenRLHF) divides by n, verl by n - 1.

    >>> token_whiten(jnp.array([[3.0, 1.0, 9.0]]), jnp.array([[True, True, False]])).round(3)
    Array([[ 1., -1.,  0.]], dtype=float32)
    """
    chex.assert_type([advantages, mask], [float, bool])
    chex.assert_equal_rank([advantages, mask])
    advantages = advantages.astype(working_dtype(advantages))
    advantages = jnp.broadcast_to(advantages, mask.shape)
    centred = moments.deviations(advantages, mask)
    spread = moments.std(centred, mask, ddof=ddof)
    if center:
        return moments.over_std(centred, spread, eps=eps)
    kept = jnp.where(mask, advantages, 0.0)
    return jnp.where(spread > 0, moments.over_std(kept, spread, eps=eps), kept)
