"""Norms and matrix products, which all the networks here are made of."""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

MATRIX = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
"""Of kernels [out, in]."""


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network is computed.

    Attributes:
        dtype: of activations and of the factors of matrix products, "float32" or "bfloat16".
            Parameters and their gradients keep the type of the parameters; norms, softmax and
            logits are float32 in either.
        kernels: attention by a flash kernel where the platform has one that fits (`flash`).
        longest: the longest sequence, prompt and completion, that there will be. Where positions
            are scaled by the length of the text (`rotary.LongRope`, `rotary.Dynamic`), by this one,
            for keys turned early have to fit queries turned late; 0 stays within the length that
            the model was trained at.
        remat: what a backward pass computes again, to hold less: "none", each layer but for the
            results of its matrix products ("all but products"), or each layer ("all").
        keep_routing: the experts that tokens take are put on record (`Rollout.routing`).
        cache_dtype: of the keys and values that are kept; "" for `dtype`. Scoring rounds its own in
            the same way, so that it says what sampling said.
        adapter_scale: what adapters add is multiplied by it (`lora`).
        adapter_dropout: share of an adapter's inputs that a pass with a key sets to 0.
    """

    dtype: str = "float32"
    kernels: bool = True
    longest: int = 0
    remat: Literal["none", "all but products", "all"] = "none"
    keep_routing: bool = False
    cache_dtype: str = ""
    adapter_scale: float = 1.0
    adapter_dropout: float = 0.0

    def kept(self, x: jax.Array) -> jax.Array:
        """x as the cache will give it back, in the type of x; gradients pass as they are."""
        if self.cache_dtype in ("", str(x.dtype)):
            return x
        return x + jax.lax.stop_gradient(x.astype(self.cache_dtype).astype(x.dtype) - x)


PLAIN = Compute()
"""Of a network that nothing more is said of."""


class Norm(nn.Module):
    """`rms_norm` with a scale for each channel; `unit_offset` adds 1 to it (Gemma)."""

    eps: float
    unit_offset: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],))
        if self.unit_offset:
            scale = scale.astype(jnp.float32) + 1
        return rms_norm(x, scale, eps=self.eps)


class Linear(nn.Module):
    """x [..., in] -> [..., features], by a kernel [features, in] as checkpoints hold it.

    Beside its parameters it takes, where there are any, the collection "adapters": `down` [r, in]
    and `up` [features, r], whose product is added to the kernel (`lora`).
    """

    features: int
    compute: Compute
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, dtype: Any = None) -> jax.Array:
        y = project(x, self.param("kernel", MATRIX, (self.features, x.shape[-1])), dtype)
        if self.has_variable("adapters", "down"):
            seen, rate = x, self.compute.adapter_dropout
            if rate and self.has_rng("dropout"):
                kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
                seen = jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
            low = project(seen, self.get_variable("adapters", "down"))
            added = project(low, self.get_variable("adapters", "up"), dtype)
            y = y + (self.compute.adapter_scale * added).astype(y.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
            y = y + jnp.expand_dims(bias, range(y.ndim - 1))
        return y


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
    """XLA's product on CPU reaches 1.1 to 1.4 times the rate with the long side first
    (`benchmarks.limits`); the barriers keep it from writing the product the other way round."""
    barrier = jax.lax.optimization_barrier
    return barrier(jnp.matmul(kernel, barrier(rows.T), preferred_element_type=dtype)).T
