"""A decoder-only transformer of the Llama shape, and its `Policy`.

Linen declares the parameters; the arithmetic is plain functions on arrays. Layers are separate
arrays (`layers_0`, ...), so that decoding slices no stack. Kernels are [out, in], as checkpoints
hold them. Parameters stay in the type they come in; the arithmetic is done in the policy's own.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grpo_jax.models.attention import group_attention, rotary, rotary_angles
from grpo_jax.models.flash import kernel_here
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
    """Of the prompts: keys [P, K, H, L] and values [P, K, L, H] a layer; mask [P, L] bool."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Of the completions: keys and values in C slots, a ring.

    Completions that began at different times write into the same slot, so that a token is written
    as one slice; which slots hold tokens of a completion follows from its length.

    Attributes:
        keys: [P, K, G, H, C] a layer.
        values: [P, K, G, C, H] a layer.
        length: [P, G] int32, tokens of each completion so far.
        clock: int32 scalar, tokens written side by side since the start; the next go to slot
            clock mod C, and several at once must not run over the last.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    clock: jax.Array

    def visible(self, num_tokens: int) -> jax.Array:
        """[P, G, S, C] bool: which slots each of the next S tokens sees, itself included."""
        token = jnp.arange(num_tokens)
        age = (self.clock + token[:, None] - jnp.arange(self.capacity)[None]) % self.capacity
        return age[None, None] <= (self.length[:, :, None] + token[None, None])[..., None]

    @property
    def capacity(self) -> int:
        return self.values[0].shape[3]


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · scale over the last axis, in float32. arXiv:1910.07467."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    return (wide * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def project(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    """x [..., in] times kernel [out, in] in the type of x, as one product of two matrices.

    With the leading axes kept, XLA's backward pass on CPU makes batched products of it. The result
    is of the type of x, or of `dtype`: sums are float32 in any case, and then not rounded.
    """
    rows = x.reshape(-1, x.shape[-1])
    few = functools.partial(_few_rows, dtype=dtype)
    many = functools.partial(_many_rows, dtype=dtype)
    if rows.shape[0] <= _FEW_ROWS:
        product = jax.lax.platform_dependent(rows, kernel.astype(x.dtype), cpu=few, default=many)
    else:
        product = many(rows, kernel.astype(x.dtype))
    return product.reshape(*x.shape[:-1], kernel.shape[0])


_FEW_ROWS = 256


def _many_rows(rows: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    return jnp.matmul(rows, kernel.T, preferred_element_type=dtype)


def _few_rows(rows: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """XLA's product on CPU is faster with the long side first, the more so the fewer the rows; the
    barriers keep it from writing the product the other way round."""
    barrier = jax.lax.optimization_barrier
    return barrier(jnp.matmul(kernel, barrier(rows.T), preferred_element_type=dtype)).T


class Block(nn.Module):
    """Attention and a gated MLP, each after a norm and added to its input."""

    config: DecoderConfig
    kernels: bool = True

    def setup(self):
        c = self.config
        normal = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        ones = nn.initializers.ones
        inner, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.attention_norm = self.param("attention_norm", ones, (c.hidden_size,))
        self.query = self.param("query", normal, (inner, c.hidden_size))
        self.key = self.param("key", normal, (kv, c.hidden_size))
        self.value = self.param("value", normal, (kv, c.hidden_size))
        self.output = self.param("output", normal, (c.hidden_size, inner))
        self.mlp_norm = self.param("mlp_norm", ones, (c.hidden_size,))
        self.gate = self.param("gate", normal, (c.intermediate_size, c.hidden_size))
        self.up = self.param("up", normal, (c.intermediate_size, c.hidden_size))
        self.down = self.param("down", normal, (c.hidden_size, c.intermediate_size))

    def __call__(self, x, angles, visible, prefix, slots, slot):
        """One layer over S tokens.

        Args:
            x: [P, G, S, D].
            angles: of their positions.
            visible: which slots they see (`group_attention`).
            prefix: (keys, values, mask) of the prompts, or None.
            slots: (keys, values) of a `Cache`, to write into from `slot`, or None.
            slot: int32 scalar.

        Returns:
            [P, G, S, D], and the completions' keys and values with these tokens in.
        """
        c = self.config
        lead = x.shape[:3]
        h = rms_norm(x, self.attention_norm, eps=c.norm_eps)
        query = project(h, self.query).reshape(*lead, c.num_heads, c.head_dim)
        key = project(h, self.key).reshape(*lead, c.num_kv_heads, c.head_dim)
        value = project(h, self.value).reshape(*lead, c.num_kv_heads, c.head_dim)
        query, key = rotary(query, angles), rotary(key, angles)
        keys, values = key.transpose(0, 3, 1, 4, 2), value.transpose(0, 3, 1, 2, 4)
        if slots is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            keys, values = write(slots[0], keys, slot, 4), write(slots[1], values, slot, 3)
        query = query.reshape(*lead, c.num_kv_heads, -1, c.head_dim)
        kernel = None
        if self.kernels and slots is None:
            kernel = kernel_here(query, prefix[2].shape[1] if prefix else 0)
        if kernel is None:
            attended = group_attention(
                query, keys, values, visible, *(prefix or (None, None, None))
            )
        else:
            prompt = (prefix[0].swapaxes(2, 3), *prefix[1:]) if prefix else ()
            attended = kernel(query, key.swapaxes(2, 3), value.swapaxes(2, 3), *prompt)
        x = x + project(attended.reshape(*lead, -1), self.output)
        h = rms_norm(x, self.mlp_norm, eps=c.norm_eps)
        return x + project(jax.nn.silu(project(h, self.gate)) * project(h, self.up), self.down), (
            keys,
            values,
        )


class Decoder(nn.Module):
    """The whole network; `prefill`, `extend` and `unembed` are the seam of `policy.py`."""

    config: DecoderConfig
    dtype: Any = jnp.float32
    kernels: bool = True

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", normal, (c.vocab_size, c.hidden_size))
        self.layers = [Block(c, self.kernels) for _ in range(c.num_layers)]
        self.norm = self.param("norm", nn.initializers.ones, (c.hidden_size,))
        if not c.tie_embeddings:
            self.head = self.param("head", normal, (c.vocab_size, c.hidden_size))

    def prefill(self, tokens, mask):
        """The prompts [P, L] by themselves -> Prefix, the last real token's hidden state [P, D]."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # A prompt is a group of one completion that follows nothing. Padding is on the right, so
        # causality alone keeps it from real tokens; the mask matters to those who come after.
        hidden, keys, values = self._trunk(tokens[:, None], positions[:, None], None, None)
        last = jnp.maximum(mask.sum(axis=1) - 1, 0)
        last_hidden = jnp.take_along_axis(hidden[:, 0], last[:, None, None], axis=1)[:, 0]
        first_of_one = [tuple(x[:, :, 0] for x in xs) for xs in (keys, values)]
        return Prefix(*first_of_one, mask=mask), last_hidden

    def extend(self, prefix, tokens, cache=None):
        """Tokens [P, G, S] after their prompts and the cache -> hidden [P, G, S, D], cache."""
        first = prefix.mask.sum(axis=1)[:, None] + (0 if cache is None else cache.length)
        positions = first[:, :, None] + jnp.arange(tokens.shape[2])[None, None]
        positions = jnp.broadcast_to(positions, tokens.shape)
        hidden, keys, values = self._trunk(tokens, positions, prefix, cache)
        if cache is not None:
            new = tokens.shape[2]
            cache = Cache(keys, values, cache.length + new, cache.clock + new)
        return hidden, cache

    def unembed(self, hidden):
        """Hidden [..., D] -> logits [..., V] float32."""
        head = self.embedding if self.config.tie_embeddings else self.head
        return project(hidden, head, jnp.float32)

    def _trunk(self, tokens, positions, prefix, cache):
        c, count = self.config, tokens.shape[2]
        if cache is None:
            visible, slot = jnp.tri(count, dtype=bool)[None, None], 0
        else:  # the barrier: once for all layers
            visible = jax.lax.optimization_barrier(cache.visible(count))
            slot = cache.clock % cache.capacity
        x = self.embedding[tokens].astype(self.dtype)
        angles = rotary_angles(positions, head_dim=c.head_dim, theta=c.rope_theta)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            shared = None if prefix is None else (prefix.keys[i], prefix.values[i], prefix.mask)
            slots = None if cache is None else (cache.keys[i], cache.values[i])
            x, (layer_keys, layer_values) = layer(x, angles, visible, shared, slots, slot)
            keys.append(layer_keys)
            values.append(layer_values)
        return rms_norm(x, self.norm, eps=c.norm_eps), tuple(keys), tuple(values)


@functools.cache
def decoder_policy(config: DecoderConfig, dtype: str = "float32", kernels: bool = True) -> Policy:
    """The decoder as the four functions that the algorithm asks for.

    The same object for the same shape, so that what was compiled for it serves again.

    Args:
        config: the shape.
        dtype: of activations, of the cache and of the factors of matrix products, "float32" or
            "bfloat16". Parameters and their gradients keep the type of the parameters; norms,
            softmax and logits are float32 in either.
        kernels: attention by a flash kernel where the platform has one that fits (`flash`).
    """
    model = Decoder(config, jnp.dtype(dtype), kernels)

    def init_cache(prefix: Prefix, group_size: int, num_tokens: int) -> Cache:
        leading = (prefix.mask.shape[0], config.num_kv_heads, group_size)
        keys, values = (
            (*leading, config.head_dim, num_tokens),
            (*leading, num_tokens, config.head_dim),
        )
        return Cache(
            tuple(jnp.zeros(keys, like.dtype) for like in prefix.keys),
            tuple(jnp.zeros(values, like.dtype) for like in prefix.values),
            jnp.zeros([prefix.mask.shape[0], group_size], jnp.int32),
            jnp.zeros([], jnp.int32),
        )

    def repack(
        cache: Cache, lanes: jax.Array, rows: jax.Array, kept: jax.Array, num_tokens: int
    ) -> Cache:
        channel = jnp.arange(config.num_kv_heads)[None, :, None]
        age = (cache.clock - 1 - jnp.arange(num_tokens)) % num_tokens
        slot = (cache.clock - 1 - age) % cache.capacity  # where the token is that a new slot gets

        def taken(x: jax.Array, slots: int) -> jax.Array:
            x = x[lanes[:, None], channel, rows[:, None]]
            # What was there before is masked, but a weight of 0 times a NaN would not be 0.
            x = jnp.where(kept[:, None, :, None, None], x, 0)
            return x if num_tokens == cache.capacity else jnp.take(x, slot, axis=slots)

        return Cache(
            tuple(taken(x, 4) for x in cache.keys),
            tuple(taken(x, 3) for x in cache.values),
            jnp.where(kept, cache.length[lanes, rows], 0),
            cache.clock,
        )

    def cast(params: Params) -> Params:
        """Matrices alone: norms multiply in float32."""
        return jax.tree.map(lambda x: x.astype(model.dtype) if x.ndim == 2 else x, params)

    def method(name: str) -> Any:
        return lambda params, *args: model.apply({"params": params}, *args, method=name)

    return Policy(
        prefill=method("prefill"),
        extend=lambda params, prefix, tokens, cache=None: method("extend")(
            params, prefix, tokens, cache
        ),
        unembed=method("unembed"),
        init_cache=init_cache,
        repack=repack,
        cast=None if model.dtype == jnp.float32 else cast,
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
