"""Names of tensors in checkpoints -> paths of parameters: one row a tensor, for every family.

A tensor holds one parameter, or several on top of each other (a fused product), or one expert of
the array that we keep of all of them.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from grpo_jax.models.config import DecoderConfig, Layer
from grpo_jax.models.directory import ModelDirectory

Path = tuple[str, ...]


class Part(NamedTuple):
    """A parameter, or one expert of it."""

    path: Path
    expert: int | None = None


class Row(NamedTuple):
    """A tensor of a checkpoint: its name, and the parameters that its rows are, in order."""

    name: str
    parts: tuple[Part, ...]


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# In some checkpoints, and derived from others here, or of no use to the function.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.attention\.(masked_)?bias")


def rows(directory: ModelDirectory) -> Iterator[Row]:
    """Every tensor of a checkpoint of this family."""
    config = directory.config
    yield _row(EMBEDDING, "embedding")
    yield _row("model.norm.weight", "norm", "scale")
    if config.num_labels:
        yield _row("score.weight", "score")
    elif not config.tie_embeddings:
        yield _row(HEAD, "head")
    for i, layer in enumerate(config.layers):
        for name, parts in _layer_rows(config, layer, directory.model_type):
            placed = tuple(Part((f"layers_{i}", *part.path), part.expert) for part in parts)
            yield Row(f"model.layers.{i}.{name}", placed)


def ignored(name: str, config: DecoderConfig) -> bool:
    """Whether a tensor may be in the file and is no parameter: multi-token prediction comes in
    layers after the last (DeepSeek-V3), a tied head is a copy of the embedding, a score head takes
    the place of the other."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    beyond = bool(layer and int(layer.group(1)) >= config.num_layers and config.latent)
    copied = name == HEAD and (config.tie_embeddings or config.num_labels > 0)
    return beyond or copied or bool(IGNORED.fullmatch(name))


def _row(name: str, *path: str) -> Row:
    return Row(name, (Part(path),))


def _layer_rows(config: DecoderConfig, layer: Layer, model_type: str) -> Iterator[Row]:
    yield from _norm_rows(config)
    if config.latent:
        yield from _latent_rows(config)
    elif model_type == "phi3":
        three = tuple(Part(("attention", name, "kernel")) for name in ("query", "key", "value"))
        yield Row("self_attn.qkv_proj.weight", three)
        yield _row("self_attn.o_proj.weight", "attention", "output", "kernel")
    else:
        names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
        for theirs, ours in names.items():
            biased = config.output_bias if ours == "output" else config.attention_bias
            yield from _linear(f"self_attn.{theirs}", "attention", ours, biased=biased)
        if config.head_norm:
            yield _row("self_attn.q_norm.weight", "attention", "query_norm", "scale")
            yield _row("self_attn.k_norm.weight", "attention", "key_norm", "scale")
    if layer.experts:
        yield from _expert_rows(layer, model_type)
    elif model_type == "phi3":
        two = tuple(Part(("mlp", name, "kernel")) for name in ("gate", "up"))
        yield Row("mlp.gate_up_proj.weight", two)
        yield _row("mlp.down_proj.weight", "mlp", "down", "kernel")
    else:
        yield from _mlp_rows("mlp", "mlp", biased=config.mlp_bias)


def _norm_rows(config: DecoderConfig) -> Iterator[Row]:
    if config.norm_before:
        yield _row("input_layernorm.weight", "attention_norm", "scale")
        before_mlp = "pre_feedforward" if config.norm_after else "post_attention"
        yield _row(f"{before_mlp}_layernorm.weight", "mlp_norm", "scale")
    if config.norm_after:
        yield _row("post_attention_layernorm.weight", "attention_out_norm", "scale")
        yield _row("post_feedforward_layernorm.weight", "mlp_out_norm", "scale")


def _latent_rows(config: DecoderConfig) -> Iterator[Row]:
    assert config.latent
    if config.latent.query_rank:
        biased = config.attention_bias
        yield from _linear("self_attn.q_a_proj", "attention", "query_down", biased=biased)
        yield _row("self_attn.q_a_layernorm.weight", "attention", "query_norm", "scale")
        yield _row("self_attn.q_b_proj.weight", "attention", "query", "kernel")
    else:
        yield _row("self_attn.q_proj.weight", "attention", "query", "kernel")
    name = "self_attn.kv_a_proj_with_mqa"
    yield from _linear(name, "attention", "latent_down", biased=config.attention_bias)
    yield _row("self_attn.kv_a_layernorm.weight", "attention", "latent_norm", "scale")
    yield _row("self_attn.kv_b_proj.weight", "attention", "latent_up")
    yield from _linear("self_attn.o_proj", "attention", "output", biased=config.attention_bias)


def _expert_rows(layer: Layer, model_type: str) -> Iterator[Row]:
    assert layer.experts
    block, names = "mlp", {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    if model_type == "mixtral":
        block, names = "block_sparse_moe", {"w1": "gate", "w3": "up", "w2": "down"}
    yield _row(f"{block}.gate.weight", "mlp", "router", "kernel")
    if layer.experts.corrected:
        yield _row(f"{block}.gate.e_score_correction_bias", "mlp", "correction")
    for expert in range(layer.experts.count):
        for theirs, ours in names.items():
            name = f"{block}.experts.{expert}.{theirs}.weight"
            yield Row(name, (Part(("mlp", ours), expert),))
    if layer.experts.shared_width:
        yield from _mlp_rows(f"{block}.shared_experts", "mlp", "shared")


def _mlp_rows(block: str, *path: str, biased: bool = False) -> Iterator[Row]:
    for theirs, ours in {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}.items():
        yield from _linear(f"{block}.{theirs}", *path, ours, biased=biased)


def _linear(name: str, *path: str, biased: bool) -> Iterator[Row]:
    yield _row(f"{name}.weight", *path, "kernel")
    if biased:
        yield _row(f"{name}.bias", *path, "bias")
