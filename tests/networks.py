"""Small networks that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.types import Prompts

CONFIG = DecoderConfig.llama(
    vocab_size=53,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=False,
)
POLICY = decoder_policy(CONFIG)


@functools.cache
def params(seed=0):
    """Random parameters; the larger head makes some tokens much likelier than others."""
    params = init_params(CONFIG, jax.random.key(seed))
    return params | {"head": 3 * params["head"]}


def prompts(lengths=(7, 1, 4), width=None, seed=0, fill=0):
    """Random prompts of these lengths, padded with `fill`; the same tokens whatever the width."""
    width = width or max(lengths)
    tokens = np.random.default_rng(seed).integers(CONFIG.vocab_size, size=[len(lengths), 64])
    mask = np.arange(width) < np.array(lengths)[:, None]
    return Prompts(jnp.array(np.where(mask, tokens[:, :width], fill), jnp.int32), jnp.array(mask))
