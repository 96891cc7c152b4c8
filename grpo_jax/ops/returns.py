"""Credit by token: rewards -> what each token has ahead of it. The last axis is tokens.

"Masked" tokens, here as elsewhere, are those inside the mask: the ones that the policy chose. The
others (padding, text that a tool wrote) are skipped as if they were not there.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops.advantages import group_center
from grpo_jax.ops.precision import working_dtype
from grpo_jax.ops.whitening import token_whiten


# Compiled also when called on its own: it is dozens of small slices.
@jax.jit
def carry_back(terms: jax.Array, factors: jax.Array) -> jax.Array:
    """Solves y[t] = terms[t] + factors[t] · y[t + 1] from the last token to the first.

    Args:
        terms: [..., T] float.
        factors: [..., T] float; that of the last token has nothing to act on.

    Returns:
        [..., T] of the inputs' type, in O(log T) steps on a parallel machine.

    Raises:
        AssertionError: while tracing, unless both are float arrays of one shape.

    >>> carry_back(jnp.array([1.0, 1.0, 1.0]), jnp.array([0.5, 0.5, 0.5])).tolist()
    [1.75, 1.5, 1.0]
    """
    chex.assert_type([terms, factors], float)
    chex.assert_equal_shape([terms, factors])

    def join(
        later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    return jax.lax.associative_scan(join, (terms, factors), reverse=True, axis=terms.ndim - 1)[0]


def to_go(token_rewards: jax.Array, mask: jax.Array, *, discount: float = 1.0) -> jax.Array:
    """Rewards from each token on, its own included.

        R[.., t] = Σ_{s ≥ t} discount^n(t, s) r[.., s],   n = masked tokens from t up to s

    Args:
        token_rewards: [..., T] float.
        mask: [..., T] bool, True on the tokens that the policy chose.
        discount: γ in [0, 1], for each masked token.

    Returns:
        [..., T] in units of reward, float32 (float64 for float64 input); exactly 0 outside the
        mask, whose rewards count nowhere and whose tokens discount nothing.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float and bool.
        ValueError: `discount` is outside [0, 1].

    >>> to_go(jnp.array([1.0, 9.0, 2.0]), jnp.array([True, False, True]), discount=0.5).tolist()
    [2.0, 0.0, 2.0]
    """
    chex.assert_type([token_rewards, mask], [float, bool])
    chex.assert_equal_shape([token_rewards, mask])
    check_share("discount", discount)
    rewards = jnp.where(mask, token_rewards, 0.0).astype(working_dtype(token_rewards))
    factors = jnp.where(mask, discount, 1.0).astype(rewards.dtype)
    return jnp.where(mask, carry_back(rewards, factors), 0.0)


def terminal(rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """The reward of a completion on its last masked token, 0 on the others.

    Args:
        rewards: [..., G] float, NaN where a completion has none: zeros then.
        mask: [..., G, T] bool, True on the tokens that the policy chose.

    Returns:
        [..., G, T] in units of reward, float32 (float64 for float64 input). A completion without
        tokens has no place for its reward.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    >>> terminal(jnp.array([3.0, jnp.nan]), jnp.array([[True, False], [True, True]])).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    check_credit(rewards, mask)
    left = jax.lax.cumsum(mask.astype(jnp.int32), axis=mask.ndim - 1, reverse=True)
    rewards = rewards.astype(working_dtype(rewards))[..., None]
    return jnp.where(mask & (left == 1) & ~jnp.isnan(rewards), rewards, 0.0)


def penalized(rewards: jax.Array, mask: jax.Array, token_penalty: jax.Array) -> jax.Array:
    """Takes the penalties of all tokens from the reward of their completion.

        R'[.., g] = R[.., g] - Σ_t penalty[.., g, t]

    The KL in the reward of the whole completion: to be called before any statistic of the group.

    Args:
        rewards: [..., G] float, NaN where a completion has none.
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        token_penalty: [..., G, T] float, in units of reward (β · k1).

    Returns:
        [..., G] in units of reward, float32 (float64 for float64 input); NaN stays NaN.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: arXiv:2402.14740 (RLOO), whose reward of a sequence holds the KL of all of it.
    Choice: every token of a completion is charged with all its penalties, those before it
    included. The expected gradient is that of `kl_to_go`, with more variance.

    >>> mask = jnp.array([[True, True], [True, False]])
    >>> penalized(jnp.array([1.0, 1.0]), mask, jnp.array([[0.25, 0.25], [0.25, 9.0]])).tolist()
    [0.5, 0.75]
    """
    check_credit(rewards, mask, token_penalty)
    dtype = working_dtype(rewards, token_penalty)
    penalty = jnp.where(mask, token_penalty, 0.0).astype(dtype)
    return rewards.astype(dtype) - penalty.sum(axis=-1)


def kl_to_go(advantages: jax.Array, mask: jax.Array, token_penalty: jax.Array) -> jax.Array:
    """Takes from each token's advantage the penalties of the tokens from it on.

        A'[.., t] = A[.., t] - Σ_{s ≥ t} penalty[.., s]

    With penalty = β · k1 of the policy that sampled, A' times the gradient of the log-probability
    is, in expectation, exactly the gradient of the expected A minus β KL(policy || reference) of
    whole completions. No KL estimate in the loss is: each token by itself misses that a token
    also decides the states in which the later ones are drawn.

    Args:
        advantages: [..., T] or [..., 1] float, already centred or normalised.
        mask: [..., T] bool, True on the tokens that the policy chose.
        token_penalty: [..., T] float, in units of the advantages.

    Returns:
        [..., T] in units of the advantages, float32 (float64 for float64 input); 0 outside the
        mask.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: arXiv:2510.01555 and arXiv:2512.21852 (k1 in the reward).
    Choice: after the group's statistics, so that β means the same in every group. A completion
    without a reward is still pulled to the reference; take it out of the mask to leave it alone.

    >>> kl_to_go(jnp.array([1.0]), jnp.array([True, True]), jnp.array([0.5, 0.25])).tolist()
    [0.25, 0.75]
    """
    chex.assert_type([advantages, mask, token_penalty], [float, bool, float])
    chex.assert_equal_rank([advantages, mask])
    dtype = working_dtype(advantages, token_penalty)
    penalty = to_go(token_penalty.astype(dtype), mask)
    return jnp.where(mask, advantages.astype(dtype) - penalty, 0.0)


def reinforce_plus_plus(
    rewards: jax.Array,
    mask: jax.Array,
    token_penalty: jax.Array | None = None,
    *,
    eps: float = 1e-8,
) -> jax.Array:
    """Reward minus penalties to go, whitened over all tokens of the batch.

        R[.., t] = r - Σ_{s ≥ t} penalty[.., s],   A = (R - mean(R)) / (std(R) + eps)

    Args:
        rewards: [..., G] float, NaN where a completion has none.
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        token_penalty: [..., G, T] float, in units of reward (β · k1); None is none.
        eps: added to the standard deviation, in units of reward.

    Returns:
        [..., G, T] without unit, float32 (float64 for float64 input). Exact zeros outside the
        mask, in completions without a reward (which are in no statistic either), and where all
        tokens have the same to go.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: REINFORCE++, arXiv:2501.03262.
    Choice: the paper has no eps and does not name the divisor of std. As in OpenRLHF/OpenRLHF it
    is the number of tokens; there std is at least 1e-4 as well (1e-8 under the root).
    Statistics are over tokens, so that long completions count for more; prompts are not told
    apart, and G = 1 is no special case.

    >>> mask = jnp.array([[True, True], [True, True]])
    >>> reinforce_plus_plus(jnp.array([1.0, 0.0]), mask, eps=0.0).tolist()
    [[1.0, 1.0], [-1.0, -1.0]]
    """
    check_credit(rewards, mask, token_penalty)
    counted = mask & ~jnp.isnan(rewards)[..., None]
    token_rewards = terminal(rewards, counted)
    if token_penalty is not None:
        token_rewards = token_rewards - jnp.where(counted, token_penalty, 0.0)
    return token_whiten(to_go(token_rewards, counted), counted, eps=eps, ddof=0)


def reinforce_plus_plus_baseline(
    rewards: jax.Array, mask: jax.Array, *, eps: float = 1e-8
) -> jax.Array:
    """Reward minus the group's mean, whitened over all tokens of the batch.

        R[.., t] = r - mean(r of the group),   A = (R - mean(R)) / (std(R) + eps)

    Args:
        rewards: [..., G] float, NaN where a completion has none.
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        eps: added to the standard deviation, in units of reward.

    Returns:
        [..., G, T] without unit, float32 (float64 for float64 input). Exact zeros outside the
        mask, in completions without a reward (which are in no statistic either), and where every
        group has equal rewards. In a batch with other groups, one of equal rewards gets minus
        the mean over tokens, which need not be 0 where lengths differ.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: REINFORCE++ with baseline, arXiv:2501.03262.
    Choice: no penalty by token, since here the paper has its KL in the loss, as k2. Divisor of std
    and eps as in `reinforce_plus_plus`.

    >>> mask = jnp.array([[True, True], [True, True]])
    >>> reinforce_plus_plus_baseline(jnp.array([5.0, 4.0]), mask, eps=0.0).tolist()
    [[1.0, 1.0], [-1.0, -1.0]]
    """
    check_credit(rewards, mask)
    counted = mask & ~jnp.isnan(rewards)[..., None]
    return token_whiten(group_center(rewards)[..., None], counted, eps=eps, ddof=0)


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless a setting is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must be in [0, 1] (1 leaves it out)")


def check_credit(rewards: jax.Array, mask: jax.Array, *by_token: jax.Array | None) -> None:
    """Asserts rewards [..., G], a mask [..., G, T], and arrays of its shape, None left out."""
    chex.assert_type([rewards, mask], [float, bool])
    chex.assert_shape(rewards, mask.shape[:-1])
    for array in by_token:
        if array is not None:
            chex.assert_type(array, float)
            chex.assert_equal_shape([array, mask])
