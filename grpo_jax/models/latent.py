"""Multi-head latent attention: keys and values of all heads follow from one narrow vector.

What is kept of a token is that vector and one key with positions, which all heads share: the keys
[P, 1, C + R, L] and values [P, 1, L, C] of a decoder with one key head, for latents of C channels
and R turned ones. Decoding attends over them as they are, with the matrices that would widen them
multiplied into the queries and out of the result. Scoring widens them first, which costs fewer
operations where each key meets many queries.

Reference: DeepSeek-V2, arXiv:2405.04434, section 2.1 and appendix C.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from grpo_jax.models.config import DecoderConfig, Layer
from grpo_jax.models.context import Kept, Sight, attend
from grpo_jax.models.layers import MATRIX, Compute, Linear, Norm

_EPS = 1e-6
"""Of the norms of latents, whatever the config says of the others, as DeepSeek's code has it."""


class LatentAttention(nn.Module):
    """As `decoder.Attention`, of H = plain + R channels a query and V a value."""

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
        c, latent, rotary = self.config, self.config.latent, self.layer.rotary
        assert latent is not None
        assert rotary is not None
        assert sight.angles is not None
        lead, heads, plain = x.shape[:3], c.num_heads, latent.plain_width

        asked = x
        if latent.query_rank:
            asked = Linear(latent.query_rank, self.compute, c.attention_bias, name="query_down")(x)
            asked = Norm(_EPS, name="query_norm")(asked)
        query = Linear(heads * (plain + rotary.width), self.compute, name="query")(asked)
        query = query.reshape(*lead, heads, -1)
        turned = rotary.turn(query[..., plain:], sight.angles)

        width = latent.key_rank + rotary.width
        down = Linear(width, self.compute, c.attention_bias, name="latent_down")(x)
        shared = Norm(_EPS, name="latent_norm")(down[..., : latent.key_rank])
        shared = self.compute.kept(shared[..., None, :])
        shared_key = rotary.turn(down[..., None, latent.key_rank :], sight.angles)
        shared_key = self.compute.kept(shared_key)
        key = jnp.concatenate([shared, shared_key], axis=-1)

        rows = heads * (plain + latent.value_width)
        widen = self.param("latent_up", MATRIX, (rows, latent.key_rank)).astype(x.dtype)
        widen = widen.reshape(heads, -1, latent.key_rank)
        to_key, to_value = widen[:, :plain], widen[:, plain:]

        if slots is not None:
            query = jnp.einsum("pgshd,hdc->pgshc", query[..., :plain], to_key)
            query = jnp.concatenate([query, turned], axis=-1)[:, :, :, None]
            value, kept = shared, None
        else:
            query = jnp.concatenate([query[..., :plain], turned], axis=-1)[:, :, :, :, None]
            kept = key.transpose(0, 3, 1, 4, 2), shared.transpose(0, 3, 1, 2, 4)
            wide_key = jnp.einsum("pgsc,hdc->pgshd", shared[..., 0, :], to_key)
            repeated = jnp.broadcast_to(shared_key, (*lead, heads, rotary.width))
            key = jnp.concatenate([wide_key, repeated], axis=-1)
            value = jnp.einsum("pgsc,hdc->pgshd", shared[..., 0, :], to_value)
            if prefix is not None:
                prefix = _widened(prefix, to_key, to_value)
        attended, written = attend(
            query,
            key,
            value,
            sight,
            prefix,
            prompt_mask,
            slots,
            slot,
            scale=c.scale,
            cap=c.score_cap,
            kernels=self.compute.kernels,
        )
        if slots is not None:
            attended = jnp.einsum("pgshc,hdc->pgshd", attended[:, :, :, 0], to_value)
        output = Linear(c.hidden_size, self.compute, c.attention_bias, name="output")
        return output(attended.reshape(*lead, -1)), kept or written


def _widened(prefix: Kept, to_key: jax.Array, to_value: jax.Array) -> Kept:
    """Of prompts: one shared key [P, 1, C + R, L] and latent [P, 1, L, C] -> those of each head,
    [P, heads, H, L] and [P, heads, L, V]."""
    keys, values = (x.astype(to_key.dtype) for x in prefix)
    latents = values[:, 0]
    own = jnp.einsum("plc,hdc->phdl", latents, to_key)
    shared = keys[:, :, values.shape[3] :]
    shared = jnp.broadcast_to(shared, (len(keys), len(to_key), *shared.shape[2:]))
    wide_values = jnp.einsum("plc,hdc->phld", latents, to_value)
    return jnp.concatenate([own, shared], axis=2), wide_values
