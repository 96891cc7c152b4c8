"""A decoder-only transformer of the Llama shape, and its `Policy`.

Linen declares the parameters; the arithmetic is plain functions on arrays. Layers are separate
arrays (`layers_0`, ...), so that decoding slices no stack. Kernels are [in, out].
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grpo_jax.models.attention import group_attention, rotary
from grpo_jax.policy import Policy
from grpo_jax.types import Params


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder, and the numbers that its function depends on."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not divide over {self.num_kv_heads} key heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even one")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Keys and values of the prompts: [P, K, L, H] a layer; and their mask, [P, L] bool."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the completions: [P, G, K, T, H] a layer; slots filled, int32 scalar."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · scale over the last axis, in float32. arXiv:1910.07467."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    return (wide * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] times kernel [in, out], as one product of two matrices.

    With the leading axes kept, XLA's backward pass on CPU makes batched products of it.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Block(nn.Module):
    """Attention and a gated MLP, each after a norm and added to its input."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        normal, ones = nn.initializers.lecun_normal(), nn.initializers.ones
        inner, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.attention_norm = self.param("attention_norm", ones, (c.hidden_size,))
        self.query = self.param("query", normal, (c.hidden_size, inner))
        self.key = self.param("key", normal, (c.hidden_size, kv))
        self.value = self.param("value", normal, (c.hidden_size, kv))
        self.output = self.param("output", normal, (inner, c.hidden_size))
        self.mlp_norm = self.param("mlp_norm", ones, (c.hidden_size,))
        self.gate = self.param("gate", normal, (c.hidden_size, c.intermediate_size))
        self.up = self.param("up", normal, (c.hidden_size, c.intermediate_size))
        self.down = self.param("down", normal, (c.intermediate_size, c.hidden_size))

    def __call__(self, x, positions, prefix, slots, offset):
        """One layer over S tokens.

        Args:
            x: [P, G, S, D].
            positions: [P, G, S] int32.
            prefix: (keys, values, mask) of the prompts, or None.
            slots: (keys, values), each [P, G, K, T, H], to write into from `offset`, or None.
            offset: tokens already in the slots.

        Returns:
            [P, G, S, D], and the completions' keys and values with these tokens in.
        """
        c = self.config
        lead = x.shape[:3]
        h = rms_norm(x, self.attention_norm, eps=c.norm_eps)
        query = project(h, self.query).reshape(*lead, c.num_heads, c.head_dim)
        key = project(h, self.key).reshape(*lead, c.num_kv_heads, c.head_dim)
        value = project(h, self.value).reshape(*lead, c.num_kv_heads, c.head_dim)
        query = rotary(query, positions, theta=c.rope_theta)
        key = rotary(key, positions, theta=c.rope_theta)
        keys, values = key.swapaxes(2, 3), value.swapaxes(2, 3)  # [P, G, K, S, H]
        if slots is not None:
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, axis=3)
                for old, new in zip(slots, (keys, values), strict=True)
            )
        query = query.reshape(*lead, c.num_kv_heads, -1, c.head_dim)
        attended = group_attention(query, keys, values, offset, *(prefix or (None, None, None)))
        x = x + project(attended.reshape(*lead, -1), self.output)
        h = rms_norm(x, self.mlp_norm, eps=c.norm_eps)
        return x + project(jax.nn.silu(project(h, self.gate)) * project(h, self.up), self.down), (
            keys,
            values,
        )


class Decoder(nn.Module):
    """The whole network; `prefill`, `extend` and `unembed` are the seam of `policy.py`."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", normal, (c.vocab_size, c.hidden_size))
        self.layers = [Block(c) for _ in range(c.num_layers)]
        self.norm = self.param("norm", nn.initializers.ones, (c.hidden_size,))
        if not c.tie_embeddings:
            self.head = self.param("head", normal, (c.hidden_size, c.vocab_size))

    def prefill(self, tokens, mask):
        """The prompts [P, L] by themselves -> Prefix, the last real token's hidden state [P, D]."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # A prompt is a group of one completion that follows nothing. Padding is on the right, so
        # causality alone keeps it from real tokens; the mask matters to those who come after.
        hidden, keys, values = self._trunk(tokens[:, None], positions[:, None], None, None, 0)
        last = jnp.maximum(mask.sum(axis=1) - 1, 0)
        last_hidden = jnp.take_along_axis(hidden[:, 0], last[:, None, None], axis=1)[:, 0]
        first_of_one = [tuple(x[:, 0] for x in xs) for xs in (keys, values)]
        return Prefix(*first_of_one, mask=mask), last_hidden

    def extend(self, prefix, tokens, cache=None):
        """Tokens [P, G, S] after their prompts and the cache -> hidden [P, G, S, D], cache."""
        offset = 0 if cache is None else cache.length
        lengths = prefix.mask.sum(axis=1)
        positions = lengths[:, None, None] + offset + jnp.arange(tokens.shape[2])[None, None]
        positions = jnp.broadcast_to(positions, tokens.shape)
        hidden, keys, values = self._trunk(tokens, positions, prefix, cache, offset)
        if cache is not None:
            cache = Cache(keys, values, cache.length + tokens.shape[2])
        return hidden, cache

    def unembed(self, hidden):
        """Hidden [..., D] -> logits [..., V]."""
        head = self.embedding.T if self.config.tie_embeddings else self.head
        return project(hidden, head)

    def _trunk(self, tokens, positions, prefix, cache, offset):
        x = self.embedding[tokens]
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            shared = None if prefix is None else (prefix.keys[i], prefix.values[i], prefix.mask)
            slots = None if cache is None else (cache.keys[i], cache.values[i])
            x, (layer_keys, layer_values) = layer(x, positions, shared, slots, offset)
            keys.append(layer_keys)
            values.append(layer_values)
        return rms_norm(x, self.norm, eps=self.config.norm_eps), tuple(keys), tuple(values)


@functools.cache
def decoder_policy(config: DecoderConfig) -> Policy:
    """The decoder as the four functions that the algorithm asks for.

    The same object for the same shape, so that what was compiled for it serves again.
    """
    model = Decoder(config)

    def init_cache(prefix: Prefix, group_size: int, num_tokens: int) -> Cache:
        num_prompts = prefix.mask.shape[0]
        shape = (num_prompts, group_size, config.num_kv_heads, num_tokens, config.head_dim)
        slots = tuple(jnp.zeros(shape, keys.dtype) for keys in prefix.keys)
        return Cache(slots, tuple(jnp.zeros_like(s) for s in slots), jnp.zeros([], jnp.int32))

    def method(name: str) -> Any:
        return lambda params, *args: model.apply({"params": params}, *args, method=name)

    return Policy(
        prefill=method("prefill"),
        extend=lambda params, prefix, tokens, cache=None: method("extend")(
            params, prefix, tokens, cache
        ),
        unembed=method("unembed"),
        init_cache=init_cache,
    )


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Random float32 parameters: normal(0.02) matrices, unit norms."""
    tokens = jnp.zeros([1, 1], jnp.int32)

    def initialise(key: jax.Array) -> Params:
        model = Decoder(config)
        return model.init(key, tokens, jnp.ones([1, 1], bool), method="prefill")["params"]

    return jax.jit(initialise)(key)


def param_shapes(config: DecoderConfig) -> Params:
    """The parameter tree as shapes and dtypes, without allocating anything."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
