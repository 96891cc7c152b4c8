"""A decoder-only transformer, all common families by its `DecoderConfig`, and its `Policy`.

Linen declares the parameters; the arithmetic is plain functions on arrays. Layers are separate
arrays (`layers_0`, ...), so that decoding slices no stack. Kernels are [out, in], as checkpoints
hold them. Parameters stay in the type they come in; the arithmetic is done in the policy's own.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grpo_jax.models.config import DecoderConfig, Layer
from grpo_jax.models.context import (
    Cache,
    Kept,
    Kind,
    Prefix,
    Sight,
    attend,
    empty_cache,
    repacked,
    sights,
)
from grpo_jax.models.experts import MLP, Mixture, Routed
from grpo_jax.models.latent import LatentAttention
from grpo_jax.models.layers import PLAIN, Compute, Linear, Norm, project
from grpo_jax.models.stacking import separated
from grpo_jax.policy import Policy
from grpo_jax.types import STACK, Params

NARROWED = frozenset(["kernel", "embedding", "head", "score", "down", "up", "gate", "latent_up"])
"""Parameters that are matrices, by their own names."""


class Attention(nn.Module):
    """Grouped-query attention of one layer."""

    config: DecoderConfig
    layer: Layer
    compute: Compute

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        sight: Sight,
        prefix: Kept | None,
        prompt_mask: jax.Array | None,
        slots: Kept | None,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, Kept]:
        """x [P, G, S, D] -> as much, and the completions' keys and values; the rest as `attend`."""
        c, rotary, lead = self.config, self.layer.rotary, x.shape[:3]

        def heads(name: str, count: int, *, normed: bool) -> jax.Array:
            y = Linear(count * c.head_dim, self.compute, c.attention_bias, name=name)(x)
            norm = Norm(c.norm_eps, c.unit_offset, name=f"{name}_norm") if normed else None
            y = norm(y) if norm and c.head_norm == "all" else y
            y = y.reshape(*lead, count, c.head_dim)
            return norm(y) if norm and c.head_norm == "head" else y

        query = heads("query", c.num_heads, normed=bool(c.head_norm))
        key = heads("key", c.num_kv_heads, normed=bool(c.head_norm))
        value = heads("value", c.num_kv_heads, normed=False)
        if rotary is not None and sight.angles is not None:
            query, key = (rotary.turn(y, sight.angles) for y in (query, key))
        attended, kept = attend(
            query.reshape(*lead, c.num_kv_heads, -1, c.head_dim),
            self.compute.kept(key),
            self.compute.kept(value),
            sight,
            prefix,
            prompt_mask,
            slots,
            slot,
            scale=c.scale,
            cap=c.score_cap,
            kernels=self.compute.kernels,
        )
        output = Linear(c.hidden_size, self.compute, c.output_bias, name="output")
        return output(attended.reshape(*lead, -1)), kept


class Block(nn.Module):
    """Attention and an MLP or experts, each added to the stream, with norms before or after."""

    config: DecoderConfig
    layer: Layer
    compute: Compute

    @nn.compact
    def __call__(
        self, x: jax.Array, replayed: jax.Array | None, *seen: Any
    ) -> tuple[jax.Array, tuple[Kept, Routed | None]]:
        """x [P, G, S, D], experts to take again, and what `Attention` takes besides -> as much, the
        completions' keys and values, what a router said."""
        c = self.config

        def normed(y: jax.Array, name: str, *, wanted: bool) -> jax.Array:
            return Norm(c.norm_eps, c.unit_offset, name=name)(y) if wanted else y

        kind = LatentAttention if c.latent else Attention
        h = normed(x, "attention_norm", wanted=c.norm_before)
        h, kept = kind(c, self.layer, self.compute, name="attention")(h, *seen)
        x = x + normed(h, "attention_out_norm", wanted=c.norm_after)

        h = normed(x, "mlp_norm", wanted=c.norm_before)
        routed = None
        if self.layer.experts is None:
            h = MLP(c.intermediate_size, self.compute, c.mlp_bias, c.gelu, name="mlp")(h)
        else:
            h, routed = Mixture(self.layer.experts, self.compute, name="mlp")(h, replayed)
        return x + normed(h, "mlp_out_norm", wanted=c.norm_after), (kept, routed)


def rematerialised(what: str) -> type[Block]:
    """`Block`, of which a backward pass computes so much again (`Compute.remat`)."""
    if what == "none":
        return Block
    policies = jax.checkpoint_policies
    keep = {"all": policies.nothing_saveable, "all but products": policies.dots_saveable}
    return nn.remat(Block, policy=keep[what])


def _scanned(block: type[Block], num_layers: int) -> Any:
    scan: Any = nn.scan  # its axes are said to be integers, and may be trees
    return scan(
        block,
        variable_axes={"params": 0, "adapters": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, 0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=num_layers,
    )


class Decoder(nn.Module):
    """The whole network; `prefill`, `extend` and `unembed` are the seam of `policy.py`.

    `stacked` runs its layers as one loop, over parameters as `stacked` has them; without a cache.
    """

    config: DecoderConfig
    compute: Compute = PLAIN
    stacked: bool = False

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", normal, (c.vocab_size, c.hidden_size))
        block = rematerialised(self.compute.remat)
        # The name of either is that of its parameters, `layers` or `layers_0`, ...
        self.layers: Any = (
            _scanned(block, c.num_layers)(c, c.layers[0], self.compute)
            if self.stacked
            else [block(c, layer, self.compute) for layer in c.layers]
        )
        self.norm = Norm(c.norm_eps, c.unit_offset)
        if c.num_labels:
            self.scores = self.param("score", normal, (c.num_labels, c.hidden_size))
        elif not c.tie_embeddings:
            self.head = self.param("head", normal, (c.vocab_size, c.hidden_size))

    def prefill(self, tokens, mask, replayed=None):
        """The prompts [P, L] by themselves -> Prefix, the last real token's hidden state [P, D]."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if replayed is not None:
            replayed = replayed[:, None]
        # A prompt is a group of one completion that follows nothing. Padding is on the right, so
        # causality alone keeps it from real tokens; the mask matters to those who come after.
        hidden, kept, routed = self._trunk(
            tokens[:, None], positions[:, None], None, None, replayed
        )
        last = jnp.maximum(mask.sum(axis=1) - 1, 0)
        last_hidden = jnp.take_along_axis(hidden[:, 0], last[:, None, None], axis=1)[:, 0]
        dtype = jnp.dtype(self.compute.cache_dtype or self.compute.dtype)
        keys, values = (tuple(x[:, :, 0].astype(dtype) for x in xs) for xs in kept)
        routing = taken_of(routed)[:, 0] if self.compute.keep_routing and routed else None
        return Prefix(keys, values, mask, routing), last_hidden

    def extend(self, prefix, tokens, cache=None, replayed=None):
        """Tokens [P, G, S] after their prompts and the cache -> hidden [P, G, S, D], cache; without
        a cache, what routers said of them [M, P, G, S], or None."""
        first = prefix.mask.sum(axis=1)[:, None] + (0 if cache is None else cache.length)
        positions = first[:, :, None] + jnp.arange(tokens.shape[2])[None, None]
        positions = jnp.broadcast_to(positions, tokens.shape)
        hidden, (keys, values), routed = self._trunk(tokens, positions, prefix, cache, replayed)
        if cache is None:
            return hidden, jax.tree.map(
                lambda *layers: jnp.stack(layers), *routed
            ) if routed else None
        new = tokens.shape[2]
        routing = taken_of(routed) if cache.routing is not None else None
        return hidden, Cache(keys, values, cache.length + new, cache.clock + new, routing)

    def unembed(self, hidden):
        """Hidden [..., D] -> logits [..., V] float32; scores [..., labels] of a score head."""
        c = self.config
        if c.num_labels:
            return project(hidden, self.scores, jnp.float32)
        head = self.embedding if c.tie_embeddings else self.head
        logits = project(hidden, head, jnp.float32)
        return c.logit_cap * jnp.tanh(logits / c.logit_cap) if c.logit_cap else logits

    def _trunk(self, tokens, positions, prefix, cache, replayed):
        """-> hidden, (keys, values) a layer, what the routers of M layers said."""
        c, dtype = self.config, jnp.dtype(self.compute.dtype)
        slot = 0 if cache is None else cache.clock % cache.capacity
        kinds = [Kind(layer.rotary, layer.window) for layer in c.layers]
        sight = sights(kinds, positions, prefix, cache, longest=self.compute.longest)
        x = self.embedding[tokens].astype(dtype)
        if c.embedding_scale != 1:
            x = x * jnp.asarray(c.embedding_scale, dtype)
        mask = None if prefix is None else prefix.mask
        if self.stacked:
            if cache is not None:
                raise ValueError("stacked layers do not decode; give Policy.read_often(params)")
            prompt = None if prefix is None else (jnp.stack(prefix.keys), jnp.stack(prefix.values))
            again = None if replayed is None else jnp.moveaxis(replayed, 3, 0)
            x, (kept, routed) = self.layers(x, again, sight[kinds[0]], prompt, mask, None, 0)
            routed = routed and [jax.tree.map(lambda y: y[i], routed) for i in range(c.num_layers)]  # noqa: B023
            return self.norm(x), (tuple(kept[0]), tuple(kept[1])), routed or []
        found, routed = [], []
        for i, (layer, kind) in enumerate(zip(self.layers, kinds, strict=True)):
            prompt = None if prefix is None else (prefix.keys[i], prefix.values[i])
            slots = None if cache is None else (cache.keys[i], cache.values[i])
            again = None
            if replayed is not None and c.layers[i].experts:
                again = replayed[:, :, :, len(routed)]
            x, (kept, said) = layer(x, again, sight[kind], prompt, mask, slots, slot)
            found.append(kept)
            routed += [said] if said else []
        return self.norm(x), tuple(zip(*found, strict=True)), routed


def taken_of(routed: list[Routed]) -> jax.Array:
    """The experts that tokens took in each of M layers, [P, G, S, M, k]."""
    return jnp.stack([said.chosen for said in routed], axis=3)


@functools.cache
def decoder_policy(config: DecoderConfig, compute: Compute = PLAIN) -> Policy:
    """The decoder as the functions that the algorithm asks for.

    The same object for the same arguments, so that what was compiled for it serves again.
    """

    def apply(params: Params, name: str, *args: Any) -> Any:
        model = Decoder(config, compute, STACK in params)
        return model.apply({"params": params}, *args, method=name)

    return policy_of(apply, compute)


def policy_of(
    apply: Callable[..., Any],
    compute: Compute,
    with_noise: Callable[[Params, jax.Array], Params] | None = None,
) -> Policy:
    """A `Policy` of a decoder.

    Args:
        apply: (params, name of a method of `Decoder`, its arguments) -> what it returns.
        compute: how it is computed.
        with_noise: as `Policy` has it.
    """
    dtype = jnp.dtype(compute.dtype)

    def prefill(
        params: Params, tokens: jax.Array, mask: jax.Array, routing: jax.Array | None = None
    ) -> tuple[Prefix, jax.Array]:
        return apply(params, "prefill", tokens, mask, routing)

    def extend(
        params: Params,
        prefix: Prefix,
        tokens: jax.Array,
        cache: Cache | None = None,
        routing: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | Routed | None]:
        return apply(params, "extend", prefix, tokens, cache, routing)

    def narrowed(path: Any, x: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        # Norms and biases multiply and add in float32; so does what chooses experts. What is as
        # narrow as that already is not widened: a second copy of it may not fit.
        stays = names[-1] not in NARROWED or "router" in names
        return x if stays or x.dtype.itemsize <= dtype.itemsize else x.astype(dtype)

    def cast(params: Params) -> Params:
        """Separate layers, and matrices in the type that they are read in."""
        trees = params.keys() & {"trained", "frozen"}
        apart = {name: separated(params[name]) for name in trees} if trees else separated(params)
        params = params | apart if trees else apart
        return jax.tree.map_with_path(narrowed, params)

    return Policy(
        prefill=prefill,
        extend=extend,
        unembed=lambda params, hidden: apply(params, "unembed", hidden),
        init_cache=empty_cache,
        repack=repacked,
        cast=cast,
        with_noise=with_noise,
    )


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Random float32 parameters: matrices of variance 1 / in, embeddings of 0.02², unit norms."""
    tokens = jnp.zeros([1, 1], jnp.int32)

    def initialise(key: jax.Array) -> Params:
        model = Decoder(config)
        return model.init(key, tokens, jnp.ones([1, 1], bool), method="prefill")["params"]

    return jax.jit(initialise)(key)


def param_shapes(config: DecoderConfig) -> Params:
    """The parameter tree as shapes and dtypes, without allocating anything."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
