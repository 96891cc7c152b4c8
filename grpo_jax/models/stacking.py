"""Layers as separate arrays (`layers_0`, ...), or one array for all of them (`layers`, [n, ...]).

Separate arrays decode fastest: no slice of a stack is copied. Stacked ones are one loop: a deep
network compiles in the time of one layer. What one holds the other holds, bit for bit.
"""

import jax
import jax.numpy as jnp

from grpo_jax.models.config import DecoderConfig
from grpo_jax.types import STACK, Params


def check_alike(config: DecoderConfig) -> None:
    """Raises ValueError unless all layers are of one kind."""
    if len(set(config.layers)) > 1:
        raise ValueError(
            "scan_layers runs all layers as one loop, and those of this model differ (positions, "
            "windows or experts); leave it out"
        )


def stacked(params: Params, num_layers: int) -> Params:
    """Separate layers -> one array for all, of parameters or of adapters.

    Empties the dictionaries that it is given, so that no layer need be held twice.

    Raises:
        ValueError: adapters that not all layers have.
    """
    names = [f"layers_{i}" for i in range(num_layers)]
    there = [name for name in names if name in params]
    if not there:
        return params
    kinds = {jax.tree.structure(params[name]) for name in there}
    if there != names or len(kinds) > 1:
        raise ValueError(
            "scan_layers runs all layers as one loop, and only some of them have these adapters; "
            "leave it out, or name all layers in lora_targets"
        )

    layers = [params.pop(name) for name in names]

    def stack(parts: list[Params]) -> Params:
        if not isinstance(parts[0], dict):
            return jnp.stack(parts)
        return {key: stack([part.pop(key) for part in parts]) for key in sorted(parts[0])}

    return params | {STACK: stack(layers)}


def separated(params: Params) -> Params:
    """The reverse; takes what is separate already as it is."""
    if STACK not in params:
        return params
    count = jax.tree.leaves(params[STACK])[0].shape[0]
    layers = {
        f"layers_{i}": jax.tree.map(lambda x: x[i], params[STACK])  # noqa: B023
        for i in range(count)
    }
    return {name: tree for name, tree in params.items() if name != STACK} | layers
