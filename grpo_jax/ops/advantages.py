"""Credit: rewards of a group of completions -> advantages. Any leading axes, the group last.

Every rule here looks at one group at a time. A reward of NaN is no reward: it enters no statistic,
and its completion's advantage is exactly 0; so is that of every completion of a group whose rewards
are all equal (`greedy_baseline` alone compares with a reward from outside the group). The rewards
of several functions become one by `weighted_sum`.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import moments
from grpo_jax.ops.precision import working_dtype


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
    rewards, scored = moments.scored(rewards)
    return moments.deviations(rewards, scored, axis=-1)


def group_normalize(rewards: jax.Array, *, eps: float = 1e-6, ddof: int = 0) -> jax.Array:
    """Centres and scales rewards within each group.

        A[.., g] = (r[.., g] - mean(r[..])) / (std(r[..]) + eps)

    Args:
        rewards: [..., G] float. NaN marks a completion without a reward: it enters neither the
            mean nor the standard deviation.
        eps: added to the standard deviation; in units of reward.
        ddof: the standard deviation divides by n - ddof, of n rewards; 0 or 1.

    Returns:
        [..., G] advantages without unit, float32 (float64 for float64 input). A group of equal
        rewards gives exact zeros (with eps = 0 too), and so does a completion without a reward.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.
        ValueError: `ddof` is neither 0 nor 1, or `eps` is negative.

    Reference: DeepSeekMath, arXiv:2402.03300, section 4.1.2.
    Choice: the paper leaves std and eps open; here std divides by G (jnp.std), where torch.std
    divides by G - 1, and eps is small enough to leave rewards of the order of 1 alone. With one
    reward in a group the advantage is 0 for either ddof.

    >>> group_normalize(jnp.array([[1.0, 0.0, 0.0, 1.0]])).round(3).tolist()
    [[1.0, -1.0, -1.0, 1.0]]
    """
    rewards, scored = moments.scored(rewards)
    centred = moments.deviations(rewards, scored, axis=-1)
    spread = moments.std(centred, scored, axis=-1, ddof=ddof)
    return moments.over_std(centred, spread, eps=eps)


def leave_one_out(rewards: jax.Array) -> jax.Array:
    """Subtracts from each reward the mean of the others of its group.

        A[i] = r[i] - mean(r[j], j ≠ i) = n / (n - 1) · (r[i] - mean(r))

    Args:
        rewards: [..., G] float, NaN where there is none; n of a group are there.

    Returns:
        [..., G] advantages in units of reward, float32 (float64 for float64 input).

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: RLOO, arXiv:2402.14740.
    Choice: a lone reward has no others to be compared with: its advantage is 0 (some systems let
    the raw reward through).

    >>> leave_one_out(jnp.array([[3.0, 1.0, 2.0]])).tolist()
    [[1.5, -1.5, 0.0]]
    """
    rewards, scored = moments.scored(rewards)
    count = scored.sum(axis=-1, keepdims=True)
    # n / (n - 1) first: two whole numbers have a quotient that is rounded once.
    factor = count / jnp.maximum(count - 1, 1)
    return factor.astype(rewards.dtype) * moments.deviations(rewards, scored, axis=-1)


def leave_one_out_normalize(rewards: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """Centres and scales each reward by the mean and standard deviation of the others.

        A[i] = (r[i] - mean(r[j], j ≠ i)) / (std(r[j], j ≠ i) + eps)
        A[i] =  r[i] - mean(r[j], j ≠ i)                              where that std is 0

    Args:
        rewards: [..., G] float, NaN where there is none.
        eps: added to the standard deviation, which divides by one less than the number of others.

    Returns:
        [..., G] advantages, float32 (float64 for float64 input). They do not add up to 0.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.
        ValueError: `eps` is negative.

    Reference: the default of NVIDIA-NeMo/RL (nemo_rl/algorithms/utils.py and
    advantage_estimator.py); there is no paper. It is here to compare with runs made there: one
    success among failures gets 1 whatever the group size, and the weight of a question falls
    towards success rates of 0 and 1, where `group_normalize` lets it rise.
    Choice: as there, one other reward has standard deviation 0. Ours is exactly 0 if the others
    are equal; there it is a difference of squares, which rounding can leave above 0.

    >>> leave_one_out_normalize(jnp.array([4.0, 0.0, 0.0, 0.0, 0.0])).round(3).tolist()
    [4.0, -0.5, -0.5, -0.5, -0.5]
    """
    centred = leave_one_out(rewards)
    rewards, _ = moments.scored(rewards)
    size = rewards.shape[-1]
    shape = (*rewards.shape[:-1], size, size)
    # Row i holds the rewards of the others: O(G²), but equal ones stay exactly equal.
    others = jnp.broadcast_to(rewards[..., None, :], shape)
    counted = ~(jnp.broadcast_to(jnp.eye(size, dtype=bool), shape) | jnp.isnan(others))
    apart = moments.deviations(others, counted, axis=-1)
    spread = moments.std(apart, counted, axis=-1, ddof=1)[..., 0]
    return jnp.where(spread > 0, moments.over_std(centred, spread, eps=eps), centred)


def max_rl(rewards: jax.Array) -> jax.Array:
    """Centres rewards and divides by their mean: a gradient towards log p instead of p.

        A[i] = (r[i] - mean(r)) / mean(r),   0 where mean(r) ≤ 0

    Args:
        rewards: [..., G] float in {0, 1}, NaN where there is none.

    Returns:
        [..., G] advantages without unit, float32 (float64 for float64 input).

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: MaxRL, arXiv:2602.02710. For a success rate p its expected gradient is
    (1 - (1 - p)^(G - 1)) / p times that of p: log p's series in (1 - p), cut after G - 1 terms.
    Choice: other rewards than 0 and 1 are taken as they come. The authors' code adds an epsilon to
    the mean instead of testing it.

    >>> max_rl(jnp.array([[1.0, 0.0, 0.0, 0.0]])).tolist()
    [[3.0, -1.0, -1.0, -1.0]]
    """
    rewards, scored = moments.scored(rewards)
    count = jnp.maximum(scored.sum(axis=-1, keepdims=True), 1)
    mean = jnp.where(scored, rewards, 0.0).sum(axis=-1, keepdims=True) / count
    centred = moments.deviations(rewards, scored, axis=-1)
    return jnp.where(mean > 0, centred / jnp.where(mean > 0, mean, 1.0), 0.0)


def opo(rewards: jax.Array, lengths: jax.Array) -> jax.Array:
    """Subtracts the mean reward of each group, weighted by length.

        A[i] = r[i] - Σ_j L[j] r[j] / Σ_j L[j]

    Args:
        rewards: [..., G] float, NaN where there is none.
        lengths: [..., G] int or float, in tokens. One without a reward is left out of both sums.

    Returns:
        [..., G] advantages in units of reward, float32 (float64 for float64 input). They do not
        add up to 0, but those weighted by length do.

    Raises:
        AssertionError: while tracing, unless the types are these and the shapes equal.

    Reference: OPO, arXiv:2505.23585: the baseline of least variance, if the squared norm of a
    completion's score grows as its length. Meant for training that is exactly on-policy.
    Choice: the sample's own reward is in its baseline. A group without any token gives zeros, and
    so does a lone reward (the code in verl lets it through).

    >>> opo(jnp.array([[1.0, 0.0]]), jnp.array([[1, 3]])).tolist()
    [[0.75, -0.25]]
    """
    rewards, scored = moments.scored(rewards)
    chex.assert_type(lengths, float if jnp.issubdtype(lengths.dtype, jnp.floating) else int)
    chex.assert_equal_shape([rewards, lengths])
    tokens = jnp.where(scored, lengths, 0).astype(rewards.dtype)
    total = tokens.sum(axis=-1, keepdims=True)
    # Centred first: equal rewards are then exact zeros before they are averaged.
    centred = moments.deviations(rewards, scored, axis=-1)
    weighted = (tokens * centred).sum(axis=-1, keepdims=True) / jnp.where(total > 0, total, 1.0)
    return jnp.where(scored & (total > 0), centred - weighted, 0.0)


def greedy_baseline(rewards: jax.Array, greedy_rewards: jax.Array) -> jax.Array:
    """Subtracts the reward of the prompt's greedy completion.

        A[.., g] = r[.., g] - r_greedy[..]

    Args:
        rewards: [..., G] float, NaN where there is none.
        greedy_rewards: [...] float, of one completion decoded greedily for each prompt.

    Returns:
        [..., G] advantages in units of reward, float32 (float64 if either input is float64).

    Raises:
        AssertionError: while tracing, unless the types are these and the shapes fit.

    Reference: ReMax, arXiv:2310.10505.
    Choice: the paper has one completion of each prompt; here each of G is compared with the same
    greedy one. Without a greedy reward (NaN) the whole group gives zeros.

    >>> greedy_baseline(jnp.array([[1.0, 0.0]]), jnp.array([0.25])).tolist()
    [[0.75, -0.25]]
    """
    rewards, scored = moments.scored(rewards)
    chex.assert_type(greedy_rewards, float)
    chex.assert_shape(greedy_rewards, rewards.shape[:-1])
    baseline = greedy_rewards[..., None]
    return jnp.where(scored & ~jnp.isnan(baseline), rewards - baseline, 0.0)


def weighted_sum(
    rewards_by_function: jax.Array, reward_weights: jax.Array | None = None
) -> jax.Array:
    """Makes one reward of several: adds those of the functions that apply, each times its weight.

        r[.., g] = Σ_k w[k] r[.., g, k]

    Args:
        rewards_by_function: [..., G, K] float, NaN where a function does not apply.
        reward_weights: [K] float; None: all are 1.

    Returns:
        [..., G] float32 (float64 if either input is float64); NaN where no function applies.

    Raises:
        AssertionError: while tracing, unless the types are these and the shapes fit.

    Choice: a function that does not apply adds nothing; the weights of the others stay as they are.

    >>> weighted_sum(jnp.array([[1.0, 0.5], [1.0, jnp.nan]]), jnp.array([1.0, 2.0])).tolist()
    [2.0, 1.0]
    """
    chex.assert_type(rewards_by_function, float)
    chex.assert_axis_dimension_gteq(rewards_by_function, -1, 1)
    dtype = working_dtype(rewards_by_function)
    rewards = rewards_by_function.astype(dtype)
    applies = ~jnp.isnan(rewards)
    rewards = jnp.where(applies, rewards, 0.0)
    if reward_weights is not None:
        chex.assert_type(reward_weights, float)
        chex.assert_shape(reward_weights, rewards.shape[-1:])
        # Not a matrix product, which accelerators round to fewer digits.
        rewards = rewards * jnp.broadcast_to(reward_weights, rewards.shape)
    return jnp.where(applies.any(axis=-1), rewards.sum(axis=-1), jnp.nan)
