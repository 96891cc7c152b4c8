"""Rewards that look at the number of tokens alone."""

from grpo_jax.rewards.base import Completion, Question, RewardFn, each


def soft_overlong(*, max_tokens: int = 20_480, cache_tokens: int = 4_096) -> RewardFn:
    """A reward function: DAPO's soft overlong punishment.

        R(L) = 0                                         L <= max_tokens - cache_tokens
             = ((max_tokens - cache_tokens) - L) / cache_tokens   inside the band
             = -1                                        L >  max_tokens

    Args:
        max_tokens: L_max, in tokens; the hard limit, so the sampler's own limit or less. Longer
            completions cost the full point.
        cache_tokens: L_cache, in tokens; the width of the band in which the punishment grows.

    Returns:
        A reward function of values in [-1, 0], without unit, for `Completion.num_tokens` tokens
        (the end token counts); to be added to the task's reward before the group is normalised.

    Raises:
        ValueError: unless 0 < cache_tokens <= max_tokens.

    Reference: DAPO, arXiv:2503.14476, equation 13; its expected maximum of 16,384 tokens and its
    cache of 4,096 make max_tokens 20,480.

    >>> punish = soft_overlong(max_tokens=100, cache_tokens=40)
    >>> punish(Question(0, "Why?"), [Completion("", n) for n in (60, 70, 100, 101)])
    [0.0, -0.25, -1.0, -1.0]
    """
    if not 0 < cache_tokens <= max_tokens:
        raise ValueError(
            f"cache_tokens of {cache_tokens} must be above 0 and at most max_tokens, {max_tokens}"
        )
    free_tokens = max_tokens - cache_tokens

    def length_reward(question: Question, completion: Completion) -> float:
        beyond = completion.num_tokens - free_tokens
        return -min(beyond / cache_tokens, 1.0) if beyond > 0 else 0.0

    return each(length_reward)
