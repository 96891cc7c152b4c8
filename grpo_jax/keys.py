"""The random streams of a run: one key each, all from the run's seed."""

import jax

SAMPLING, EVALUATION, INITIAL = range(3)


def stream_key(seed: int, stream: int) -> jax.Array:
    """The base key of one stream; what is drawn in one has no part in another.

    >>> bool((stream_key(0, SAMPLING) == stream_key(0, EVALUATION)).all())
    False
    """
    return jax.random.fold_in(jax.random.key(seed), stream)
