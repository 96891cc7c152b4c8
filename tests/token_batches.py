"""Batches of token log-probabilities for tests: random ones, and awkward ones."""

import functools
import itertools

import jax
import numpy as np


def random_tokens(seed, dtype="float64", shape=(2, 4, 5)):
    """log_probs, old_log_probs, advantages [..., 1] and a mask with a gap and an empty row.

    The numbers are those of float32 in either type, so that one oracle serves both.
    """
    rng = np.random.default_rng(seed)
    old = -np.abs(rng.normal(size=shape)) - 0.05
    log_probs = np.minimum(old + rng.normal(scale=0.6, size=shape), -0.01)
    advantages = rng.normal(size=(*shape[:-1], 1))
    mask = rng.random(shape) < 0.8
    mask[..., -1, :] = False
    arrays = (np.float32(x).astype(dtype) for x in (log_probs, old, advantages))
    return *arrays, mask


def value_and_slopes(losses, log_probs):
    """Losses, and the slope of their plain sum; of one function of log_probs."""
    (_, found), slopes = jax.value_and_grad(
        lambda x: (lambda y: (y.sum(), y))(losses(x)), has_aux=True
    )(log_probs)
    return found, slopes


@functools.cache
def compiled(run):
    """(log_probs, old_log_probs, advantages, mask) -> losses and slopes; one program a shape."""
    return jax.jit(lambda x, *others: value_and_slopes(lambda y: run(y, *others), x))


def on_entries(function, mask, *arrays):
    """function of the entries in the mask -> (loss, slope), as two arrays; 0 outside."""
    losses, slopes = np.zeros(mask.shape), np.zeros(mask.shape)
    for i in np.ndindex(mask.shape):
        if mask[i]:
            losses[i], slopes[i] = function(*(np.broadcast_to(x, mask.shape)[i] for x in arrays))
    return losses, slopes


def awkward_tokens():
    """Every pair of tame, huge and impossible log-probabilities under every sign of A; [48]."""
    ends = [0.0, -1.0, -1e4, -np.inf]
    return np.float32(list(itertools.product(ends, ends, [0, 2, -2]))).T
