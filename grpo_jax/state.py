"""The state that a run begins with, and its shape."""

import jax
import jax.numpy as jnp
import optax

from grpo_jax.keys import SAMPLING, stream_key
from grpo_jax.models.network import Network
from grpo_jax.objectives.base import Objective
from grpo_jax.types import TrainState


def initial_state(
    network: Network, objective: Objective, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step: the network's parameters, nothing learnt yet."""
    params = network.load()
    return TrainState(
        params,
        optimizer.init(params),
        jnp.zeros([], jnp.int32),
        stream_key(seed, SAMPLING),
        # A reference that moves is state; in buffers of its own, since the state is donated.
        network.load() if objective.reference else None,
        objective.initial_coefs(),
        network.load_frozen() if network.load_frozen else None,
    )


def state_shapes(
    network: Network, objective: Objective, optimizer: optax.GradientTransformation
) -> TrainState:
    """The same as shapes and dtypes, without reading any weights, as far as checkpoints hold it."""
    return TrainState(
        network.shapes,
        jax.eval_shape(optimizer.init, network.shapes),
        jax.eval_shape(lambda: jnp.zeros([], jnp.int32)),
        jax.eval_shape(lambda: jax.random.key(0)),
        network.shapes if objective.reference else None,
        jax.eval_shape(objective.initial_coefs),
    )
