"""A few widths for all lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.lengths import bucket, concatenated, cut
from grpo_jax.types import Rollout


def rollout_of(lengths, width=16, prompt_width=3):
    mask = jnp.arange(width)[None, None] < jnp.array(lengths)[..., None]
    rollout = Rollout.from_arrays(mask, sampler_log_probs=-1.0 * mask)
    size = (len(lengths), prompt_width)
    changes = {"prompt": jnp.ones(size, jnp.int32), "prompt_mask": jnp.ones(size, bool)}
    return dataclasses.replace(rollout, completion=jnp.where(mask, 7, 0), **changes)


@pytest.mark.parametrize("longest", [1, 2, 7, 16, 100])
def test_a_bucket_holds_its_length_and_there_are_at_most_four(longest):
    widths = [bucket(length, longest) for length in range(1, longest + 1)]
    assert all(width >= length for length, width in enumerate(widths, 1))
    assert len(set(widths)) <= 4
    assert max(widths) == longest
    # The next smaller one would not do.
    assert all(bucket(width, longest) == width for width in widths)


def test_a_length_beyond_the_longest_is_refused():
    with pytest.raises(ValueError, match="length is 9, more than the longest, 8"):
        bucket(9, 8)


@pytest.mark.parametrize(("longest", "width"), [(0, 2), (2, 2), (3, 4), (5, 8), (9, 16), (16, 16)])
def test_cut_leaves_out_padding_alone(longest, width):
    whole = rollout_of([[1, longest], [0, 2 if longest >= 2 else 0]])
    support = jnp.ones([2, 2, 16, 3], jnp.uint8)
    short = cut(dataclasses.replace(whole, support=support))
    assert short.completion.shape == (2, 2, width)
    assert short.support.shape == (2, 2, width, 3)
    assert short.completion_mask.sum() == whole.completion_mask.sum()
    for name in ("completion", "completion_mask", "sampler_log_probs", "support_log_mass"):
        padded = jnp.pad(getattr(short, name), [(0, 0), (0, 0), (0, 16 - width)])
        np.testing.assert_array_equal(padded, getattr(whole, name), err_msg=name)


def test_a_rollout_without_a_sampler_is_cut_too():
    whole = dataclasses.replace(rollout_of([[1, 2]]), sampler_log_probs=None)
    assert cut(whole).sampler_log_probs is None


def test_prompts_of_two_widths_are_put_in_one_batch():
    joined = concatenated([rollout_of([[1, 2]], prompt_width=2), rollout_of([[3, 4]])])
    assert joined.prompt.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert joined.prompt_mask.tolist() == [[True, True, False], [True, True, True]]
    assert jax.tree.leaves(joined)[0].shape[0] == 2
