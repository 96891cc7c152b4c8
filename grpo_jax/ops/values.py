"""A critic: advantages from values of each token, what the values are fitted to, and their loss.

Tokens outside the mask (padding, text that a tool wrote) are skipped as if they were not there: the
token after a tool's answer is the successor of the one before it.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops.precision import working_dtype
from grpo_jax.ops.returns import carry_back, check_share, terminal
from grpo_jax.ops.whitening import token_whiten


def gae(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    lam: float | jax.Array = 0.95,
) -> jax.Array:
    """Generalised advantage estimates.

        δ[t] = r[t] + discount · V[t'] - V[t],   A[t] = δ[t] + discount · lam · A[t']

    with t' the next masked token after t; after the last one V and A are 0.

    Args:
        token_rewards: [..., T] float, with any penalty by token already taken off.
        values: [..., T] float, V: what the critic expects from token t on, seen before it.
        mask: [..., T] bool, True on the tokens that the policy chose.
        discount: γ in [0, 1], for each masked token.
        lam: λ in [0, 1], or [..., 1] float: one for each completion (`length_adaptive_lam`). At 1,
            A is the rewards to go minus V; at 0, δ.

    Returns:
        [..., T] in units of reward, float32 (float64 for float64 input); exactly 0 outside the
        mask, whatever the inputs hold there, in value and in gradient.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.
        ValueError: `discount` or a `lam` that is a number is outside [0, 1].

    Reference: arXiv:1506.02438, equation 16; PPO, arXiv:1707.06347, equation 11.
    Choice: a completion ends in a state of value 0, also where its length ended it.

    >>> mask = jnp.array([True, False, True])
    >>> gae(jnp.array([0.0, 9.0, 1.0]), jnp.array([0.5, 9.0, 0.5]), mask, lam=0.5).tolist()
    [0.25, 0.0, 0.5]
    """
    chex.assert_type([token_rewards, values, mask], [float, float, bool])
    chex.assert_equal_shape([token_rewards, values, mask])
    check_share("discount", discount)
    dtype = working_dtype(token_rewards, values)
    if isinstance(lam, (int, float)):
        check_share("lam", lam)
    else:
        chex.assert_type(lam, float)
        chex.assert_shape(lam, (*mask.shape[:-1], 1))
        lam = lam.astype(dtype)
    rewards = jnp.where(mask, token_rewards, 0.0).astype(dtype)
    values = jnp.where(mask, values, 0.0).astype(dtype)
    # Outside the mask nothing is added and all is handed on.
    from_here = carry_back(values, jnp.where(mask, 0.0, 1.0).astype(dtype))
    after = jnp.concatenate([from_here[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1)
    errors = jnp.where(mask, rewards + discount * after - values, 0.0)
    decay = jnp.where(mask, discount * lam, 1.0).astype(dtype)
    return jnp.where(mask, carry_back(errors, decay), 0.0)


def returns(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    lam: float | jax.Array = 0.95,
) -> jax.Array:
    """What the critic is fitted to: its own values plus its advantages.

        ret[t] = A[t] + V[t]

    Arguments and errors as for `gae`.

    Returns:
        [..., T] in units of reward, float32 (float64 for float64 input); 0 outside the mask. Never
        whitened: they are to be predicted as they are.

    Reference: PPO, arXiv:1707.06347, section 5.
    Choice: one λ for policy and critic, unless two are given. VAPO (arXiv:2504.05118) has two: its
    critic is fitted to `returns(..., lam=1.0)`, the plain rewards to go, without the bias of its
    own values, while its policy has `gae(..., lam=length_adaptive_lam(mask))`.

    >>> rewards, values = jnp.array([0.0, 1.0]), jnp.array([0.25, 0.5])
    >>> returns(rewards, values, jnp.ones(2, bool), lam=1.0).tolist()
    [1.0, 1.0]
    """
    advantages = gae(token_rewards, values, mask, discount=discount, lam=lam)
    return advantages + jnp.where(mask, values, 0.0).astype(advantages.dtype)


def length_adaptive_lam(mask: jax.Array, *, alpha: float = 0.05) -> jax.Array:
    """A λ for each completion, closer to 1 the longer it is.

        lam = 1 - 1 / max(alpha · L, 1)

    The weights of the errors ahead then sum to about alpha · L, so that a reward at the end of a
    long completion still reaches its beginning.

    Args:
        mask: [..., T] bool, True on the tokens that the policy chose; L of them in a completion.
        alpha: share of a completion that an error reaches back.

    Returns:
        [..., 1] in [0, 1), in JAX's default float.

    Raises:
        AssertionError: while tracing, unless `mask` is a bool array.
        ValueError: `alpha` is not positive.

    Reference: VAPO, arXiv:2504.05118 (length-adaptive GAE, α = 0.05).
    Choice: the printed rule is negative below 1 / alpha tokens; there λ is 0, as in NVIDIA-NeMo/RL.

    >>> length_adaptive_lam(jnp.ones([1, 40], bool)).tolist()
    [[0.5]]
    """
    chex.assert_type(mask, bool)
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be positive (large values bring lam to 1)")
    lengths = mask.sum(axis=-1, keepdims=True).astype(jnp.result_type(float))
    return 1.0 - 1.0 / jnp.maximum(alpha * lengths, 1.0)


def whitened_gae(
    rewards: jax.Array,
    mask: jax.Array,
    values: jax.Array,
    token_penalty: jax.Array | None = None,
    *,
    discount: float = 1.0,
    lam: float | Callable[[jax.Array], jax.Array] = 0.95,
    eps: float = 1e-8,
) -> jax.Array:
    """PPO's credit: reward at the end, penalties on the way, `gae`, whitened over all tokens.

        A' = (A - mean(A)) / (std(A) + eps)

    Args:
        rewards: [..., G] float, NaN where a completion has none.
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        values: [..., G, T] float, the critic's.
        token_penalty: [..., G, T] float, in units of reward (β · k1); None is none.
        discount: γ in [0, 1].
        lam: λ in [0, 1], or a function mask [..., G, T] -> [..., G, 1] (`length_adaptive_lam`).
        eps: added to the standard deviation, in units of reward.

    Returns:
        [..., G, T] without unit, float32 (float64 for float64 input). Exact zeros outside the mask
        and in completions without a reward, which are in no statistic either.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.
        ValueError: `discount` or a `lam` that is a number is outside [0, 1].

    Reference: PPO, arXiv:1707.06347; with a KL in the reward arXiv:1909.08593, section 2.
    Choice: neither paper whitens. The variance divides by the number of tokens, as in
    OpenRLHF/OpenRLHF and NVIDIA-NeMo/RL (volcengine/verl: that number minus 1).

    >>> mask = jnp.ones([2, 1], bool)
    >>> whitened_gae(jnp.array([1.0, 0.0]), mask, jnp.array([[0.25], [0.25]]), eps=0.0).tolist()
    [[1.0], [-1.0]]
    """
    chex.assert_type([rewards, mask, values], [float, bool, float])
    chex.assert_shape(rewards, mask.shape[:-1])
    counted = mask & ~jnp.isnan(rewards)[..., None]
    token_rewards = terminal(rewards, counted)
    if token_penalty is not None:
        chex.assert_type(token_penalty, float)
        chex.assert_equal_shape([token_penalty, mask])
        token_rewards = token_rewards - jnp.where(counted, token_penalty, 0.0)
    share = lam(mask) if callable(lam) else lam
    advantages = gae(token_rewards, values, counted, discount=discount, lam=share)
    return token_whiten(advantages, counted, eps=eps, ddof=0)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip_eps: float = 0.2
) -> jax.Array:
    """Squared error of the critic, not less than that of values held near the old ones.

        loss = ½ max( (V - ret)², (clip(V, V_old - clip_eps, V_old + clip_eps) - ret)² )

    Args:
        values: [..., T] float, of the critic being trained.
        old_values: [..., T] float, of the critic at the start of the update.
        returns: [..., T] float, as `returns` gives them.
        clip_eps: in units of reward; infinity clips nothing.

    Returns:
        [..., T] losses in units of reward squared, float32 (float64 for float64 input). There is
        no mask here: padding must hold numbers, since NaN times a weight of 0 is NaN.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float.
        ValueError: `clip_eps` is not positive.

    Reference: the value clipping of OpenAI's baselines for PPO, arXiv:1707.06347 (not in the
    paper's text); with ½ as in volcengine/verl.
    Choice: the larger of the two errors, so that a value that has left the interval towards its
    return has no gradient, and one that has left it the other way has.

    >>> old, target = jnp.array([0.0, 0.0]), jnp.array([1.0, -1.0])
    >>> value_loss(jnp.array([0.5, 0.5]), old, target, clip_eps=0.25).tolist()
    [0.28125, 1.125]
    """
    chex.assert_type([values, old_values, returns], float)
    chex.assert_equal_shape([values, old_values, returns])
    if not clip_eps > 0:
        raise ValueError(f"clip_eps is {clip_eps}; it must be positive (infinity clips nothing)")
    dtype = working_dtype(values, old_values, returns)
    values, old_values, returns = (x.astype(dtype) for x in (values, old_values, returns))
    near = jnp.clip(values, old_values - clip_eps, old_values + clip_eps)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(near - returns))
