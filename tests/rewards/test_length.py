"""DAPO's soft overlong punishment, equation 13 in three cases."""

import itertools

import pytest

from grpo_jax.rewards import Completion, Question, soft_overlong


def test_the_three_cases_of_equation_13():
    punish = soft_overlong()  # L_max = 20480, L_cache = 4096
    tokens = [0, 1, 16_383, 16_384, 16_385, 17_408, 18_432, 20_479, 20_480, 20_481, 10**9]
    rewards = punish(Question(0, "?"), [Completion("", n) for n in tokens])
    for n, reward in zip(tokens, rewards, strict=True):
        if n <= 20_480 - 4_096:
            expected = 0.0
        elif n <= 20_480:
            expected = ((20_480 - 4_096) - n) / 4_096
        else:
            expected = -1.0
        assert reward == expected, n
    assert rewards[5:7] == [-0.25, -0.5]
    assert all(a >= b for a, b in itertools.pairwise(rewards))


@pytest.mark.parametrize(("max_tokens", "cache_tokens"), [(100, 0), (100, -1), (100, 101)])
def test_a_band_that_does_not_fit_is_refused(max_tokens, cache_tokens):
    with pytest.raises(ValueError, match=f"cache_tokens of {cache_tokens} must be"):
        soft_overlong(max_tokens=max_tokens, cache_tokens=cache_tokens)
