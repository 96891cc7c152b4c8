"""What is worth watching beside the loss: arrays in, numbers out; no gradient is meant to flow.

All are of the batch they are given and do not add up over parts of it. Without any token that
counts they are 0 (the effective sample size 1). Log ratios are taken as finite here: an infinite
one (a token that one of two policies calls impossible) counts as a huge one, so that a log of
metrics holds numbers; where both call it impossible it is 0.
"""

import chex
import jax
import jax.numpy as jnp

from grpo_jax.ops import ratios
from grpo_jax.ops.precision import working_dtype

Metrics = dict[str, jax.Array]


def split_by_sign(
    low: jax.Array, high: jax.Array, advantages: jax.Array, mask: jax.Array
) -> Metrics:
    """Shares of the tokens at which a trust region acts: by side, and by sign of the advantage.

    Args:
        low: [..., T] bool, True where it acts on a ratio below 1.
        high: [..., T] bool, True where it acts on a ratio above 1.
        advantages: [..., T] or [..., 1] float.
        mask: [..., T] bool, True on the tokens that count.

    Returns:
        scalar floats, shares of all tokens that count: `clip_ratio/low_mean`, `/high_mean`,
        `/region_mean` (either), and of each side the part with advantages above and below 0:
        `/low_positive_mean`, `/low_negative_mean`, `/high_positive_mean`, `/high_negative_mean`.
        A clip that is the right way round acts low on negative and high on positive ones only.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: the first three as huggingface/trl names them.

    >>> low, high = jnp.array([True, False]), jnp.array([False, False])
    >>> found = split_by_sign(low, high, jnp.array([-1.0]), jnp.array([True, True]))
    >>> found["clip_ratio/low_mean"].item(), found["clip_ratio/low_negative_mean"].item()
    (0.5, 0.5)
    """
    chex.assert_type(mask, bool)
    chex.assert_equal_shape([low, high, mask])
    sides = by_side_and_sign(low, high, advantages)
    return {name: _mean(where, mask) for name, where in sides.items()}


def by_side_and_sign(low: jax.Array, high: jax.Array, advantages: jax.Array) -> Metrics:
    """The tokens that `split_by_sign` takes the means of: the same names, [..., T] bool each.

    Args:
        low: [..., T] bool, True where a trust region acts on a ratio below 1.
        high: [..., T] bool, True where it acts on a ratio above 1.
        advantages: [..., T] or [..., 1] float.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    >>> found = by_side_and_sign(jnp.array([True]), jnp.array([False]), jnp.array([-1.0]))
    >>> [name for name, where in found.items() if where.all()]
    ['clip_ratio/low_mean', 'clip_ratio/region_mean', 'clip_ratio/low_negative_mean']
    """
    chex.assert_type([low, high, advantages], [bool, bool, float])
    chex.assert_equal_shape([low, high])
    chex.assert_equal_rank([advantages, low])
    sides = {"low": low, "high": high, "region": low | high}
    for side in ("low", "high"):
        sides[f"{side}_positive"] = sides[side] & (advantages > 0)
        sides[f"{side}_negative"] = sides[side] & (advantages < 0)
    return {f"clip_ratio/{name}_mean": where for name, where in sides.items()}


def effective_sample_size(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of the tokens that as many equally weighted ones would be worth.

        (Σ w)² / (n Σ w²),   w = exp(log_ratio)

    Args:
        log_ratio: [..., T] float; or of completions, [..., 1], with a mask of that shape.
        mask: [..., T] bool, True on the n tokens that count.

    Returns:
        scalar in [1/n, 1], float32 (float64 for float64 input): 1 where all weights are equal.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float and bool.

    Reference: A. Kong, "A note on importance sampling using standardized weights", 1992.

    >>> f"{effective_sample_size(jnp.log(jnp.array([1.0, 3.0])), jnp.ones(2, bool)):.3f}"
    '0.800'
    """
    log_ratio = _finite(log_ratio, mask)
    # It does not depend on the scale of the weights: the largest may be 1, and none overflows.
    highest = jnp.where(mask, log_ratio, -jnp.inf).max()
    weights = jnp.where(mask, jnp.exp(log_ratio - highest), 0.0)
    squares = mask.sum() * jnp.square(weights).sum()
    return jnp.where(mask.any(), jnp.square(weights.sum()) / jnp.where(squares > 0, squares, 1), 1)


def log_ratio_extremes(log_ratio: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest ratio exp(log_ratio), cut at e^80.

    Args:
        log_ratio: [..., T] float; or of completions, [..., 1], with a mask of that shape.
        mask: [..., T] bool, True on the tokens that count.

    Returns:
        two scalars, ratios, float32 (float64 for float64 input).

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float and bool.

    >>> low, high = log_ratio_extremes(jnp.log(jnp.array([0.5, 2.0])), jnp.ones(2, bool))
    >>> low.item(), high.item()
    (0.5, 2.0)
    """
    ratio = ratios.ratio(_finite(log_ratio, mask))
    low, high = jnp.where(mask, ratio, jnp.inf).min(), jnp.where(mask, ratio, 0.0).max()
    return jnp.where(mask.any(), low, 0.0), high


def pass_rate(rewards: jax.Array, *, threshold: float | None = None) -> jax.Array:
    """Mean reward of each prompt, or the share of its rewards that reach a threshold.

    Args:
        rewards: [..., G] float, NaN where a completion has none: it is not counted.
        threshold: a completion has passed with this reward or more; None takes the mean, which
            is the same for rewards of 0 and 1.

    Returns:
        [...] float32 (float64 for float64 input); 0 for a prompt without any reward.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    >>> rewards = jnp.array([[1.0, 0.0, jnp.nan, jnp.nan], [0.5, 0.75, 1.0, 1.0]])
    >>> pass_rate(rewards).tolist(), pass_rate(rewards, threshold=0.75).tolist()
    ([0.5, 0.8125], [0.5, 0.75])
    """
    chex.assert_type(rewards, float)
    chex.assert_axis_dimension_gteq(rewards, -1, 1)
    scored = ~jnp.isnan(rewards)
    values = rewards.astype(working_dtype(rewards))
    if threshold is not None:
        values = (values >= threshold).astype(values.dtype)
    total = jnp.where(scored, values, 0.0).sum(axis=-1)
    return total / jnp.maximum(scored.sum(axis=-1), 1)


def expected_zero_signal(pass_rates: jax.Array, *, group_size: int) -> jax.Array:
    """Probability that all G completions of a prompt pass, or none does: a group without signal.

        p^G + (1 - p)^G

    Args:
        pass_rates: [...] float in [0, 1], p, known (of an estimate this is biased upwards;
            `zero_signal_estimate` is not).
        group_size: G, 1 or more.

    Returns:
        [...] in [0, 1], float32 (float64 for float64 input). For rewards of 0 and 1 only.

    Raises:
        AssertionError: while tracing, unless `pass_rates` is a float array.
        ValueError: `group_size` is less than 1.

    Reference: the groups that DAPO, arXiv:2503.14476, section 3.2, samples again.

    >>> expected_zero_signal(jnp.array([0.5, 1.0]), group_size=4).tolist()
    [0.125, 1.0]
    """
    chex.assert_type(pass_rates, float)
    _check_group_size(group_size)
    rates = pass_rates.astype(working_dtype(pass_rates))
    return rates**group_size + (1.0 - rates) ** group_size


def zero_signal_estimate(passed: jax.Array, sampled: jax.Array, *, group_size: int) -> jax.Array:
    """Unbiased estimate of `expected_zero_signal` from k passes among n completions.

        ( C(k, G) + C(n - k, G) ) / C(n, G)

    The share of the groups of G that could be picked from the n which have no signal.

    Args:
        passed: [...] int, k.
        sampled: [...] int, n, at least G: sample more than a group to tell what a group will do.
        group_size: G, 1 or more.

    Returns:
        [...] in [0, 1], in JAX's default float; 0 where n is less than G.

    Raises:
        AssertionError: while tracing, unless both are int arrays of one shape.
        ValueError: `group_size` is less than 1.

    Reference: the estimator of pass@k of arXiv:2107.03374, for both outcomes.

    >>> f"{zero_signal_estimate(jnp.array(2), jnp.array(4), group_size=2):.3f}"
    '0.333'
    """
    chex.assert_type([passed, sampled], int)
    chex.assert_equal_shape([passed, sampled])
    _check_group_size(group_size)
    dtype = jnp.result_type(float)
    taken = jnp.arange(group_size).reshape(*[1] * passed.ndim, -1)
    left = jnp.maximum(sampled[..., None] - taken, 1).astype(dtype)

    def share(count: jax.Array) -> jax.Array:
        """C(count, G) / C(n, G), factor by factor: no large number; 0 for a count below G."""
        return (jnp.maximum(count[..., None] - taken, 0).astype(dtype) / left).prod(axis=-1)

    return share(passed) + share(sampled - passed)


def kl_means(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two unbiased estimates of KL(policy || reference) from the policy's own tokens.

        k1 = mean(u),   k3 = mean(exp(-u) + u - 1),   u = log(policy / reference)

    Args:
        log_probs: [..., T] float, of the policy.
        ref_log_probs: [..., T] float, of the reference.
        mask: [..., T] bool, True on the tokens that count.

    Returns:
        two scalars in nats a token, float32 (float64 for float64 input). Far apart they tell that
        neither is to be trusted. exp(-u) is cut at e^80.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.

    Reference: J. Schulman, "Approximating KL divergence", 2020.

    >>> log_probs, ref = jnp.array([-1.0, -2.0]), jnp.array([-1.5, -2.0])
    >>> [f"{x:.3f}" for x in kl_means(log_probs, ref, jnp.ones(2, bool))]
    ['0.250', '0.053']
    """
    u = _finite(ratios.token(log_probs, ref_log_probs, mask), mask)
    return _mean(u, mask), _mean(_k3(u), mask)


def mismatch(old_log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> Metrics:
    """How far the policy, as the trainer computes it, is from the sampler that drew the tokens.

    With Δ = log(old / sampler) and ρ = exp(Δ), of tokens drawn by the sampler:

        mean |Δ|,   max |Δ|,   k3 = mean(ρ - 1 - Δ),   chi2 = mean(ρ²) - 1

    Args:
        old_log_probs: [..., T] float, of the policy at the start of the update.
        sampler_log_probs: [..., T] float, as the sampler reported them.
        mask: [..., T] bool, True on the tokens that count.

    Returns:
        scalars, float32 (float64 for float64 input): `sampler_mismatch/mean` and `/max` in nats,
        `/k3` in nats a token (KL(sampler || old)) and `/chi2` (the chi-square divergence of old
        from sampler; the estimate can be below 0). ρ and ρ² are cut at e^80.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types float, float, bool.

    Reference: F. Yao et al., "Your efficient RL framework secretly brings you off-policy RL
    training", 2025; k3 and chi2 are among the rollout metrics of volcengine/verl too.

    >>> old, sampler = jnp.log(jnp.array([0.5, 0.2])), jnp.log(jnp.array([0.5, 0.1]))
    >>> found = mismatch(old, sampler, jnp.ones(2, bool))
    >>> {name: round(value.item(), 3) for name, value in found.items()}
    {'sampler_mismatch/mean': 0.347, 'sampler_mismatch/max': 0.693, \
'sampler_mismatch/k3': 0.153, 'sampler_mismatch/chi2': 1.5}
    """
    drift = _finite(ratios.token(old_log_probs, sampler_log_probs, mask), mask)
    # ρ² - 1 as expm1(2 Δ): policies that agree to 1e-4 would drown in the rounding of 1.
    chi2 = jnp.expm1(jnp.minimum(2.0 * drift, 80.0))
    return {
        "sampler_mismatch/mean": _mean(jnp.abs(drift), mask),
        "sampler_mismatch/max": jnp.abs(drift).max(initial=0.0),
        "sampler_mismatch/k3": _mean(_k3(-drift), mask),
        "sampler_mismatch/chi2": _mean(chi2, mask),
    }


def _finite(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """The log ratios, 0 outside the mask and so small that no sum of them overflows."""
    chex.assert_type([log_ratio, mask], [float, bool])
    chex.assert_equal_shape([log_ratio, mask])
    log_ratio = log_ratio.astype(working_dtype(log_ratio))
    largest = jnp.finfo(log_ratio.dtype).max / 4
    return jnp.where(mask, jnp.clip(log_ratio, -largest, largest), 0.0)


def _k3(u: jax.Array) -> jax.Array:
    """exp(-u) + u - 1, which is e^80 from there on (and not the difference of two infinities)."""
    u = jnp.maximum(u, -80.0)
    return jnp.expm1(-u) + u


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the mask, divided before it is summed: no overflow."""
    values = values.astype(jnp.result_type(float) if values.dtype == bool else values.dtype)
    return jnp.sum(jnp.where(mask, values, 0.0) / jnp.maximum(mask.sum(), 1))


def _check_group_size(group_size: int) -> None:
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; a group has at least 1 completion")
