"""The state that a run begins with, and its shape."""

import jax
import jax.numpy as jnp
import optax

from grpo_jax.keys import SAMPLING, stream_key
from grpo_jax.models.network import Network
from grpo_jax.types import TrainState


def initial_state(
    network: Network, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step: the network's parameters, nothing learnt yet."""
    params = network.load()
    key = stream_key(seed, SAMPLING)
    return TrainState(params, optimizer.init(params), jnp.zeros([], jnp.int32), key)


def state_shapes(network: Network, optimizer: optax.GradientTransformation) -> TrainState:
    """The same as shapes and dtypes, without reading any weights."""
    return TrainState(
        network.shapes,
        jax.eval_shape(optimizer.init, network.shapes),
        jax.eval_shape(lambda: jnp.zeros([], jnp.int32)),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
