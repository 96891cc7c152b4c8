"""The random streams of a run: one key each, all from the run's seed."""

import jax

SAMPLING, EVALUATION, INITIAL = range(3)
# Beyond the number of any prompt, which keys of the sampler are made of.
_LOSS = 2**32 - 1


def stream_key(seed: int, stream: int) -> jax.Array:
    """The base key of one stream; what is drawn in one has no part in another.

    >>> bool((stream_key(0, SAMPLING) == stream_key(0, EVALUATION)).all())
    False
    """
    return jax.random.fold_in(jax.random.key(seed), stream)


def loss_key(key: jax.Array, step: jax.Array | int, number: int) -> jax.Array:
    """The key of one update's loss, for objectives that draw at random.

    Args:
        key: the base key of the state.
        step: steps finished.
        number: of the update in its step.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, _LOSS), step), number)
