"""Credit that compares a completion with its group and scales it by what the whole batch shows.

The batch is all groups of the array, whatever its leading axes; under `vmap` it is one slice. A
reward of NaN is no reward: it enters no statistic, and its completion's advantage is exactly 0; so
is that of every completion of a group whose rewards are all equal.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from grpo_jax.ops import moments
from grpo_jax.ops.advantages import group_center, group_normalize, weighted_sum
from grpo_jax.ops.selection import zero_signal


def batch_scaled(
    rewards: jax.Array, *, eps: float = 1e-6, ddof: int = 1, centred: bool = False
) -> jax.Array:
    """Centres rewards within each group and scales them by the batch's standard deviation.

        A[.., g] = (r[.., g] - mean(r[..])) / (std(all r) + eps)

    Args:
        rewards: [..., G] float, NaN where there is none.
        eps: added to the standard deviation; in units of reward.
        ddof: the standard deviation divides by n - ddof, of the n rewards of the batch; 0 or 1.
        centred: True takes the standard deviation of the rewards as centred in their groups.

    Returns:
        [..., G] advantages without unit, float32 (float64 for float64 input).

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.
        ValueError: `ddof` is neither 0 nor 1, or `eps` is negative.

    Reference: Lite PPO, arXiv:2508.08221.
    Choice: the paper says standard deviation of the batch. Its framework (ROLL, roll/utils/
    functionals.py), like TRL, takes that of the rewards as they are, with ddof 1, and eps is ROLL's
    (TRL adds 1e-4).

    >>> batch_scaled(jnp.array([[1.0, 0.0], [1.0, 1.0]])).round(3).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    deviations = group_center(rewards)
    rewards, scored = moments.scored(rewards)
    apart = moments.deviations(deviations if centred else rewards, scored)
    spread = moments.std(apart, scored, ddof=ddof)
    return moments.over_std(deviations, spread, eps=eps)


def beta_normalize(
    rewards: jax.Array,
    *,
    min_reward: float = 0.0,
    max_reward: float = 1.0,
    max_weight: float = 1e6,
) -> jax.Array:
    """Divides centred rewards by the density, at the group's success rate, of all the groups'.

        A[.., g] = (r[.., g] - p[..]) / Beta(p[..]; α, β),   p = mean reward of the group
        α = max(1, 1 + a / 3),   β = max(1, 1 + b / 3)

    where the Beta distribution of parameters a and b has the mean m and the variance v of the p of
    the batch: a = (m (1 - m) / v - 1) m, b = (m (1 - m) / v - 1) (1 - m).

    Args:
        rewards: [..., G] float in [min_reward, max_reward], which are mapped to [0, 1] first; NaN
            where there is none.
        min_reward, max_reward: of the reward function, not of the batch.
        max_weight: the largest 1 / density.

    Returns:
        [..., G] advantages, float32 (float64 for float64 input).

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.
        ValueError: `max_reward` is not above `min_reward`, or `max_weight` not above 0.

    Reference: BNPO, arXiv:2506.02864; variance with ddof 1 and the bound on the weight as in the
    authors' code (changyi7231/BNPO, recipe/bnpo/src/bnpo_ray_trainer.py). Not TRL's loss "bnpo",
    which is a way to average.
    Choice: with fewer than two groups nothing can be fitted: density 1, as in that code. Likewise
    where all p are equal (up to rounding), for which it divides by 0; and in a group whose p is not
    within (0, 1), which has a signal only if a reward is outside its bounds.

    Success rates that are spread evenly have density 1:

    >>> beta_normalize(jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])).tolist()
    [[0.0, 0.0], [0.5, -0.5], [0.0, 0.0]]
    """
    if not max_reward > min_reward:
        raise ValueError(
            f"max_reward is {max_reward}; it must be above min_reward, {min_reward}: give the "
            "bounds of the reward function"
        )
    if not max_weight > 0:
        raise ValueError(f"max_weight is {max_weight}; it bounds 1 / density: give more than 0")
    rewards, scored = moments.scored(rewards)
    rewards = (rewards - min_reward) / (max_reward - min_reward)
    count = scored.sum(axis=-1, keepdims=True)
    rate = jnp.where(scored, rewards, 0.0).sum(axis=-1, keepdims=True) / jnp.maximum(count, 1)
    alpha, beta = _beta_of_rates(rate, count > 0)
    # Outside (0, 1) the logarithms have no value; 0.5 stands in for what is not taken.
    inside = (rate > 0) & (rate < 1)
    p = jnp.where(inside, rate, 0.5)
    # log B(α, β). jax's betaln is right to seven digits only, in float64 too.
    of_alpha, of_beta, of_both = gammaln(jnp.stack([alpha, beta, alpha + beta]))
    log_constant = of_alpha + of_beta - of_both
    log_weight = log_constant - (alpha - 1) * jnp.log(p) - (beta - 1) * jnp.log1p(-p)
    weight = jnp.exp(jnp.minimum(log_weight, math.log(max_weight)))
    uniform = (alpha == 1) & (beta == 1)  # density 1, without the rounding of its logarithm
    return jnp.where(inside & ~uniform, weight, 1.0) * group_center(rewards)


def _beta_of_rates(rate: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """α and β, of one entry each, from the success rates [..., 1] of the groups that count."""
    groups = jnp.maximum(counted.sum(), 1)
    mean = jnp.where(counted, rate, 0.0).sum(keepdims=True) / groups
    variance = jnp.square(moments.std(moments.deviations(rate, counted), counted, ddof=1))
    # Equal rates may differ by the rounding of their sums. A lone one has variance 0.
    fits = variance > (4 * jnp.finfo(rate.dtype).eps) ** 2
    size = mean * (1 - mean) / jnp.where(fits, variance, 1.0) - 1
    alpha = jnp.maximum(1 + size * mean / 3, 1.0)
    beta = jnp.maximum(1 + size * (1 - mean) / 3, 1.0)
    return jnp.where(fits, alpha, 1.0), jnp.where(fits, beta, 1.0)


def gpg(rewards: jax.Array, *, count_nonzero: bool = False) -> jax.Array:
    """Centres rewards within each group and makes up for groups that have no gradient.

        A[.., g] = α (r[.., g] - mean(r[..])),   α = B / (B - M)

    Args:
        rewards: [..., G] float, NaN where there is none. B of them are there, M of these in groups
            whose rewards are all equal.
        count_nonzero: True takes verl's α instead: B over the number of rewards that are not 0.

    Returns:
        [..., G] advantages in units of reward, float32 (float64 for float64 input).

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: GPG, arXiv:2504.02546, with its F_norm of 1. The authors' code counts groups of
    standard deviation 0 likewise, and samples on until at least half of the groups have a signal:
    then α is at most 2.
    Choice: verl's count is of scores, not of advantages; a group of equal rewards that are not 0
    counts there as one that has a gradient.

    >>> gpg(jnp.array([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    centred = group_center(rewards)
    rewards, scored = moments.scored(rewards)
    if count_nonzero:
        counted = scored & (rewards != 0)
    else:
        counted = scored & ~zero_signal(rewards)[..., None]
    alpha = scored.sum() / jnp.maximum(counted.sum(), 1)
    return alpha.astype(centred.dtype) * centred


def gdpo(
    rewards_by_function: jax.Array,
    reward_weights: jax.Array | None = None,
    *,
    eps: float = 1e-6,
    ddof: int = 1,
) -> jax.Array:
    """Normalises each function within its group, adds them up, and whitens over the batch.

        z[.., g, k] = (r[.., g, k] - mean_g(r[.., k])) / (std_g(r[.., k]) + eps)
        A = s / (std(all s) + eps),   s = Σ_k w[k] z[.., k], whose mean over the batch is 0

    So two answers with the same total, one right and one well-formed, can still differ in credit.

    Args:
        rewards_by_function: [..., G, K] float, NaN where a function does not apply.
        reward_weights: [K] float, the w; None: all are 1.
        eps: added to the standard deviations, of the groups and of the batch.
        ddof: the standard deviations divide by n - ddof; 0 or 1.

    Returns:
        [..., G] advantages without unit, float32 (float64 if either input is float64). A function
        adds nothing where it does not apply, nor in a group to which it gives equal rewards. A
        completion to which none applies gets 0, and does not enter the whitening.

    Raises:
        AssertionError: while tracing, unless the types are these and the shapes fit.
        ValueError: `ddof` is neither 0 nor 1, or `eps` is negative.

    Reference: GDPO, arXiv:2601.05242.
    Choice: whitened over completions with ddof 1, as in the authors' code for TRL (NVlabs/GDPO); in
    theirs for verl it goes over tokens. eps is 1e-6 in the latter, 1e-4 in the former, which also
    takes a missing reward for 0.

    >>> gdpo(jnp.array([[[1.0, 0.0], [0.0, 0.0]]]), ddof=0).round(3).tolist()
    [[1.0, -1.0]]
    """
    chex.assert_type(rewards_by_function, float)
    chex.assert_axis_dimension_gteq(rewards_by_function, -1, 1)
    by_group = jnp.swapaxes(rewards_by_function, -1, -2)
    normalized = jnp.swapaxes(group_normalize(by_group, eps=eps, ddof=ddof), -1, -2)
    # Only where a function applies: elsewhere the normalised reward is 0, which is a value.
    applies = ~jnp.isnan(rewards_by_function)
    total = weighted_sum(jnp.where(applies, normalized, jnp.nan), reward_weights)
    total, scored = moments.scored(total)
    # Each group adds up to 0, and so does the batch: taking its mean away would only put that
    # mean's rounding where a group has no signal.
    spread = moments.std(moments.deviations(total, scored), scored, ddof=ddof)
    return moments.over_std(jnp.where(scored, total, 0.0), spread, eps=eps)
