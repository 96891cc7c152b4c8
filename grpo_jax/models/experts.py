"""Mixture of experts: which ones a token takes, and their product over tokens in any number.

E experts, of which each of N tokens takes k; D channels of the stream, F inside an expert.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from grpo_jax.models.config import Experts
from grpo_jax.models.layers import Compute, Linear

_EXPERT_MATRIX = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)


class Routed(NamedTuple):
    """What a router said of tokens [...].

    Attributes:
        scores: [..., E] float32, of all experts, as shares of their sum.
        chosen: [..., k] uint8 (uint16 beyond 256 experts), the experts taken.
    """

    scores: jax.Array
    chosen: jax.Array


def route(
    logits: jax.Array,
    experts: Experts,
    correction: jax.Array | None = None,
    chosen: jax.Array | None = None,
) -> tuple[jax.Array, Routed]:
    """The experts that each token takes, and their weights.

    Args:
        logits: [N, E] float32, the router's.
        experts: how they are chosen.
        correction: [E] float32, added to the scores where experts are chosen and not to their
            weights.
        chosen: [N, k] int, experts on record, which are then taken again.

    Returns:
        weights [N, k] float32, and what was chosen.

    Reference: DeepSeek-V2, arXiv:2405.04434, section 2.2.2 (groups); DeepSeek-V3,
    arXiv:2412.19437, equations 13 to 16 (sigmoid, correction).
    """
    scores = jax.nn.sigmoid(logits) if experts.sigmoid else jax.nn.softmax(logits, axis=-1)
    if chosen is None:
        wanted = scores if correction is None else scores + correction[None]
        if experts.groups > 1:
            grouped = wanted.reshape(len(wanted), experts.groups, -1)
            counted = 2 if experts.by_best_two else 1
            rank = jax.lax.top_k(grouped, counted)[0].sum(axis=-1)
            _, taken = jax.lax.top_k(rank, experts.groups_taken)
            kept = (taken[:, :, None] == jnp.arange(experts.groups)[None, None]).any(axis=1)
            wanted = jnp.where(kept[:, :, None], grouped, -jnp.inf).reshape(wanted.shape)
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(wanted), experts.taken)
    weights = jnp.take_along_axis(scores, chosen.astype(jnp.int32), axis=-1)
    if experts.normalised:
        # A token on record may have moved far from its experts: the square of what is added has to
        # be a float32, or the gradient would be 0 · inf.
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-12)
    narrow = jnp.uint8 if experts.count <= 256 else jnp.uint16
    shares = scores / scores.sum(axis=-1, keepdims=True)
    return weights * experts.scale, Routed(shares, chosen.astype(narrow))


def mixture(
    x: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    weights: jax.Array,
    chosen: jax.Array,
) -> jax.Array:
    """Σ_k weight_k · expert_k(x), as products over the tokens in the order of their experts.

    Args:
        x: [N, D] float.
        gate: [E, F, D] float.
        up: [E, F, D] float.
        down: [E, D, F] float.
        weights: [N, k] float32.
        chosen: [N, k] int.

    Returns:
        [N, D] in the type of x; the sum over experts is float32.
    """
    taken, chosen = chosen.shape[1], chosen.astype(jnp.int32)
    order = jnp.argsort(chosen.reshape(-1))
    counts = jnp.bincount(chosen.reshape(-1), length=len(gate))
    # A token for each of its experts, so that only permutations move rows, forward and back: sums
    # are then in the same order on every device, as those of scattered rows are not.
    tokens = jnp.broadcast_to(x[:, None], (len(x), taken, x.shape[1])).reshape(-1, x.shape[1])
    tokens = tokens.at[order].get(unique_indices=True)
    inner = jax.nn.silu(_by_expert(tokens, gate, counts)) * _by_expert(tokens, up, counts)
    out = _by_expert(inner, down, counts).astype(jnp.float32)
    out = out.at[jnp.argsort(order)].get(unique_indices=True).reshape(len(x), taken, -1)
    return (out * weights[..., None]).sum(axis=1).astype(x.dtype)


def _by_expert(rows: jax.Array, kernels: jax.Array, counts: jax.Array) -> jax.Array:
    """rows [M, in], so many for each expert, times kernels [E, out, in] -> [M, out]."""
    return jax.lax.ragged_dot(rows, kernels.astype(rows.dtype).swapaxes(1, 2), counts)


class MLP(nn.Module):
    """A gated MLP: down(act(gate x) · up x)."""

    width: int
    compute: Compute
    bias: bool = False
    gelu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = Linear(self.width, self.compute, self.bias, name="gate")(x)
        up = Linear(self.width, self.compute, self.bias, name="up")(x)
        act = jax.nn.gelu(gate, approximate=True) if self.gelu else jax.nn.silu(gate)
        return Linear(x.shape[-1], self.compute, self.bias, name="down")(act * up)


class Mixture(nn.Module):
    """Experts in the place of an MLP; `replayed` [..., k] are taken again."""

    experts: Experts
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, replayed: jax.Array | None = None) -> tuple[jax.Array, Routed]:
        e, width = self.experts, x.shape[-1]
        gate = self.param("gate", _EXPERT_MATRIX, (e.count, e.width, width))
        up = self.param("up", _EXPERT_MATRIX, (e.count, e.width, width))
        down = self.param("down", _EXPERT_MATRIX, (e.count, width, e.width))
        router = Linear(e.count, self.compute, name="router")
        rows = x.reshape(-1, width)
        logits = router(rows.astype(jnp.float32))
        correction = None
        if e.corrected:
            correction = self.param("correction", nn.initializers.zeros, (e.count,))
        if replayed is not None:
            replayed = replayed.reshape(-1, e.taken)
        weights, routed = route(logits, e, correction, replayed)
        y = mixture(rows, gate, up, down, weights, routed.chosen).reshape(x.shape)
        if e.shared_width:
            y = y + MLP(e.shared_width, self.compute, name="shared")(x)
        return y, jax.tree.map(lambda said: said.reshape(*x.shape[:-1], -1), routed)
