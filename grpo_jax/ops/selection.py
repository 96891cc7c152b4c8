"""Which groups, completions and tokens count at all."""

import fractions

import chex
import jax
import jax.numpy as jnp


def zero_signal(rewards: jax.Array) -> jax.Array:
    """Groups whose scored completions all have the same reward: their advantages are all zero.

    Args:
        rewards: [..., G] float, NaN where a completion has no reward.

    Returns:
        [...] bool; True also for a group with one scored completion or none.

    Raises:
        AssertionError: while tracing, unless `rewards` is a float array of rank 1 or more.

    Reference: DAPO, arXiv:2503.14476, section 3.2 (which samples until no such group is left).

    >>> zero_signal(jnp.array([[1.0, 1.0], [0.0, 1.0]])).tolist()
    [True, False]
    """
    chex.assert_type(rewards, float)
    chex.assert_axis_dimension_gteq(rewards, -1, 1)
    scored = ~jnp.isnan(rewards)
    highest = jnp.where(scored, rewards, -jnp.inf).max(axis=-1)
    lowest = jnp.where(scored, rewards, jnp.inf).min(axis=-1)
    return highest <= lowest


def signal_groups(mask: jax.Array, rewards: jax.Array) -> jax.Array:
    """The mask without the groups of zero signal, so that no denominator counts them.

    Their advantages are zero in any case; what changes is the weight of the other groups, which
    then does not depend on how many prompts of the batch were too easy or too hard.

    Args:
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        rewards: [..., G] float, NaN where a completion has no reward. Those of the task, before a
            penalty that would make equal rewards differ.

    Returns:
        [..., G, T] bool.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: DAPO, arXiv:2503.14476, section 3.2.
    Choice: the paper samples more prompts until the batch is full of groups with signal; here the
    batch only gets smaller. A group with one scored completion or none has no signal.

    >>> mask, rewards = jnp.ones([2, 2, 1], bool), jnp.array([[1.0, 1.0], [0.0, 1.0]])
    >>> signal_groups(mask, rewards)[..., 0].tolist()
    [[False, False], [True, True]]
    """
    chex.assert_type([mask, rewards], [bool, float])
    chex.assert_shape(rewards, mask.shape[:-1])
    return mask & ~zero_signal(rewards)[..., None, None]


def without_truncated(mask: jax.Array, truncated: jax.Array) -> jax.Array:
    """The mask without truncated completions: their tokens are neither learned from nor counted.

    Their rewards still belong to the group, and enter its mean and standard deviation: this is a
    rule for the loss, not for the credit.

    Args:
        mask: [..., G, T] bool, True on the tokens that the policy chose.
        truncated: [..., G] bool, True where a completion was ended by length.

    Returns:
        [..., G, T] bool.

    Raises:
        AssertionError: while tracing, unless the shapes and types are these.

    Reference: DAPO, arXiv:2503.14476, section 3.4 (overlong filtering).
    Choice: the paper masks the loss and is silent on the statistics; that truncated completions
    stay in them follows NVIDIA-NeMo/RL.

    >>> without_truncated(jnp.ones([2, 1], bool), jnp.array([True, False])).tolist()
    [[False], [True]]
    """
    chex.assert_type([mask, truncated], bool)
    chex.assert_shape(truncated, mask.shape[:-1])
    return mask & ~truncated[..., None]


def top_entropy(mask: jax.Array, entropy: jax.Array, *, share: float = 0.2) -> jax.Array:
    """The tokens of highest entropy in the whole batch: where the policy hesitates.

        kept = m and H ≥ τ,   τ = the k-th highest of the N counting tokens,
        k = 1 + floor(share · (N - 1))

    Args:
        mask: [..., T] bool, True on the tokens that the policy chose.
        entropy: [..., T] float, in nats, of the policy's distribution at each token.
        share: of all tokens of the batch, in (0, 1]; 1 keeps them all.

    Returns:
        [..., T] bool.

    Raises:
        AssertionError: while tracing, unless the shapes are equal and the types bool and float.
        ValueError: `share` is outside (0, 1].

    Reference: "Beyond the 80/20 rule", arXiv:2506.01939, section 5.
    Choice: τ is the (1 - share) quantile with linear interpolation, as in huggingface/trl; between
    two entropies the higher one is the first to be kept, which is the rule above. It keeps
    share · N tokens where that is a whole number, one at least, and all that tie with τ: a batch of
    equal entropies is kept whole. `share` is taken as the nearest fraction with a denominator up to
    10 000, so that 0.2 is one fifth. The batch is all that `mask` holds: apply it before cutting
    into micro-batches. That library multiplies the policy term by this mask and still divides by
    all tokens; weights made from the kept tokens alone are about 1 / share times larger.

    >>> entropy = jnp.array([0.1, 0.9, 0.3, 0.2, 9.9])
    >>> top_entropy(jnp.array([True, True, True, True, False]), entropy, share=0.5).tolist()
    [False, True, True, False, False]
    """
    chex.assert_type([mask, entropy], [bool, float])
    chex.assert_equal_shape([mask, entropy])
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1 (1 keeps all tokens)")
    part, whole = fractions.Fraction(share).limit_denominator(10_000).as_integer_ratio()
    others = jnp.maximum(mask.sum() - 1, 0)
    # floor(others · part / whole) in integers: exact, and no product beyond int32.
    above = others // whole * part + others % whole * part // whole
    ascending = jnp.sort(jnp.where(mask, entropy, -jnp.inf), axis=None)
    return mask & (entropy >= ascending[mask.size - 1 - above])
