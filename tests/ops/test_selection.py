import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.ops import selection


def test_zero_signal(transform):
    rewards = jnp.array([[1.1, 1.1], [0.0, 1.0], [jnp.nan, 1.0], [jnp.nan, jnp.nan]])
    assert transform(selection.zero_signal)(rewards).tolist() == [True, False, True, True]


def random_mask(seed, shape=(4, 3, 5)):
    return jnp.array(np.random.default_rng(seed).random(shape) < 0.7)


def test_signal_groups_leaves_whole_groups_out(transform):
    mask = random_mask(0)
    nan = jnp.nan
    rewards = jnp.array([[1.1, 1.1, 1.1], [0.0, 1.0, 1.0], [nan, 1.0, nan], [nan, 1.0, 0.5]])
    found = transform(selection.signal_groups)(mask, rewards)
    np.testing.assert_array_equal(found[1], mask[1])
    np.testing.assert_array_equal(found[3], mask[3])
    assert not np.any(found[::2])
    np.testing.assert_array_equal(jax.jit(jax.vmap(selection.signal_groups))(mask, rewards), found)


def test_without_truncated_leaves_completions_out(transform):
    mask, truncated = random_mask(1), jnp.array(np.random.default_rng(2).random((4, 3)) < 0.5)
    found = transform(selection.without_truncated)(mask, truncated)
    for p in range(4):
        for g in range(3):
            wanted = np.zeros(5, bool) if truncated[p, g] else np.asarray(mask[p, g])
            np.testing.assert_array_equal(found[p, g], wanted)


SHARES = [0.2, 0.5, 0.29, 1 / 3, 1e-6, 1.0]


def top_by_loop(mask, entropy, share):
    """Every counting token whose rank from the top is at most 1 + floor(share (N - 1)), ties in."""
    tokens = [(bool(m), float(h)) for m, h in zip(mask.flat, entropy.flat, strict=True)]
    values = [h for m, h in tokens if m]
    kept = 1 + int(share * (len(values) - 1) + 1e-9)
    out = [m and sum(v > h for v in values) < kept for m, h in tokens]
    return np.array(out).reshape(mask.shape)


@pytest.mark.parametrize("share", SHARES)
def test_top_entropy_equals_a_loop(share, transform):
    found = transform(lambda m, h: selection.top_entropy(m, h, share=share))
    rng = np.random.default_rng(3)
    for tokens in range(23):
        mask = np.zeros((2, 3, 4), bool)
        mask.flat[rng.permutation(24)[:tokens]] = True
        entropy = rng.choice(8, size=mask.shape).astype(np.float32)  # with ties
        wanted = top_by_loop(mask, entropy, share)
        np.testing.assert_array_equal(found(jnp.array(mask), jnp.array(entropy)), wanted)


@pytest.mark.parametrize("share", SHARES)
def test_top_entropy_is_the_quantile_with_linear_interpolation(share):
    entropy = np.random.default_rng(4).permutation(31) / 7.0
    wanted = entropy >= np.quantile(entropy, 1 - share) - 1e-9
    top = jax.jit(functools.partial(selection.top_entropy, share=share))
    found = top(np.ones(31, bool), entropy)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("tokens", "kept"), [(100, 53), (1000, 530), (101, 54), (102, 54)])
def test_the_number_kept_is_exact(tokens, kept):
    """0.53 · 100 is 52.999996 in float32."""
    top = jax.jit(functools.partial(selection.top_entropy, share=0.53))
    entropy = np.random.default_rng(5).permutation(1000).astype(np.float32)
    assert top(np.arange(1000) < tokens, entropy).sum() == kept


def test_top_entropy_ties_and_the_empty_batch():
    mask = jnp.array([True, True, True, False])
    assert selection.top_entropy(mask, jnp.zeros(4)).tolist() == mask.tolist()
    assert not np.any(selection.top_entropy(jnp.zeros(4, bool), jnp.ones(4)))


def test_top_entropy_does_not_see_padding_or_order():
    top = jax.jit(selection.top_entropy)
    mask, entropy = np.asarray(random_mask(6)), np.random.default_rng(6).random((4, 3, 5))
    found = np.asarray(top(mask, entropy))
    assert 0 < found.sum() < mask.sum()
    np.testing.assert_array_equal(top(mask, np.where(mask, entropy, np.nan)), found)
    wide = [(0, 0), (0, 0), (0, 3)]
    wider = top(np.pad(mask, wide), np.pad(entropy, wide, constant_values=9.0))
    np.testing.assert_array_equal(wider[..., :5], found)
    assert not np.any(wider[..., 5:])
    turned = top(mask[::-1, ::-1, ::-1], entropy[::-1, ::-1, ::-1])
    np.testing.assert_array_equal(turned, found[::-1, ::-1, ::-1])
    np.testing.assert_array_equal(top(mask, 5 + np.exp(entropy)), found)  # ranks alone


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_share_is_a_share(share):
    with pytest.raises(ValueError, match=f"share is {share}"):
        selection.top_entropy(jnp.ones(3, bool), jnp.ones(3), share=share)


def test_shapes_and_types_are_checked():
    mask = random_mask(0)
    for call in (
        lambda: selection.signal_groups(mask, jnp.zeros([4, 2])),
        lambda: selection.signal_groups(mask, jnp.zeros([4, 3], int)),
        lambda: selection.without_truncated(mask, jnp.zeros([4, 3])),
        lambda: selection.without_truncated(mask, jnp.zeros([4], bool)),
        lambda: selection.top_entropy(mask, jnp.zeros([4, 3, 1])),
    ):
        with pytest.raises(AssertionError):
            call()
