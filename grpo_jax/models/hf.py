"""Hugging Face checkpoint directories: config fields and tensor names -> ours, and back.

Reads and writes safetensors only; no pickle is ever opened.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from grpo_jax.models.decoder import DecoderConfig, param_shapes
from grpo_jax.types import Params

WEIGHTS = "model.safetensors"

# Name in the checkpoint -> name in our tree, {} the layer number. Matrices are [out, in] in both.
_LAYER = {
    "model.layers.{}.input_layernorm.weight": "attention_norm",
    "model.layers.{}.self_attn.q_proj.weight": "query",
    "model.layers.{}.self_attn.k_proj.weight": "key",
    "model.layers.{}.self_attn.v_proj.weight": "value",
    "model.layers.{}.self_attn.o_proj.weight": "output",
    "model.layers.{}.post_attention_layernorm.weight": "mlp_norm",
    "model.layers.{}.mlp.gate_proj.weight": "gate",
    "model.layers.{}.mlp.up_proj.weight": "up",
    "model.layers.{}.mlp.down_proj.weight": "down",
}
_TOP = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}
# In some checkpoints, and derived from others here.
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

# Fields of config.json that change the function: what is understood besides a value read below.
_FIXED = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, 0.0, None),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "quantization_config": (None,),
}


def read_config(directory: Path) -> DecoderConfig:
    """config.json -> the decoder's config.

    Raises:
        ValueError: the file is missing, is not JSON, or describes a function that the decoder does
            not compute; all reasons at once.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no config.json; a model directory has config.json, tokenizer.json "
            f"and {WEIGHTS}"
        )
    fields = _read_object(path)
    problems = []
    if fields.get("model_type") != "llama":
        problems.append(
            f"model_type is {fields.get('model_type')!r}; understood: 'llama' (Llama, SmolLM2)"
        )
    for name, understood in _FIXED.items():
        if name in fields and fields[name] not in understood:
            problems.append(f"{name} is {fields[name]!r}; understood: {understood[0]!r}")
    rope = fields.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        problems.append(f"rope_type is {rope_type!r}; understood: 'default'")
    counts = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    counts += ["num_attention_heads"]
    counts += [name for name in ("num_key_value_heads", "head_dim") if fields.get(name) is not None]
    for name in counts:
        value = fields.get(name)
        if not isinstance(value, int) or value < 1:
            problems.append(f"{name} is {value!r}; it must be a positive integer")
    if problems:
        raise ValueError(f"cannot use {path}:" + "".join(f"\n  {problem}" for problem in problems))
    heads = fields["num_attention_heads"]
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        rope_theta=float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0),
        norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
    )


def load_params(directory: Path, config: DecoderConfig) -> Params:
    """The weights of a model directory as float32 parameters.

    Tensors are read one at a time; a bfloat16 or float16 checkpoint is widened.

    Raises:
        ValueError: no weights, unreadable weights, or tensors missing, unexpected or of another
            shape than the config asks for; all of them at once.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / WEIGHTS
    if not path.is_file():
        found = sorted(p.name for p in directory.glob("*") if p.suffix in (".bin", ".safetensors"))
        raise ValueError(
            f"{directory} holds no {WEIGHTS}"
            + (f" (but {', '.join(found)})" if found else "")
            + "; save the model as one safetensors file"
        )
    table = dict(_table(config))
    shapes = param_shapes(config)
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
            if config.tie_embeddings:
                names.discard("lm_head.weight")  # a copy of the embedding
            problems = [f"missing: {name}" for name in sorted(table.keys() - names)]
            unexpected = sorted(name for name in names - table.keys() if not _IGNORED.match(name))
            problems += [f"unexpected: {name}" for name in unexpected]
            for name in sorted(table.keys() & names):
                *parents, leaf = table[name]
                want = _at(shapes, parents)[leaf].shape
                have = tuple(file.get_slice(name).get_shape())
                if have != want:
                    problems.append(f"shape of {name}: {list(have)}, config.json asks {list(want)}")
            if problems:
                raise ValueError(
                    f"{path} does not fit its config.json:" + "".join(f"\n  {p}" for p in problems)
                )
            params: Params = {}
            for name, (*parents, leaf) in table.items():
                tensor = file.get_tensor(name).astype(np.float32, copy=False)
                _at(params, parents)[leaf] = jnp.asarray(tensor)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    return params


def save_params(params: Params, config: DecoderConfig, source: Path, target: Path) -> None:
    """Writes a complete model directory: the weights, with all else copied from `source`.

    Args:
        params: float32 parameters.
        config: of the decoder they belong to.
        source: the model directory that training started from (config, tokenizer, template).
        target: a directory that does not exist yet; it appears whole or not at all.

    Raises:
        ValueError: `target` exists.
    """
    from safetensors.numpy import save_file

    if target.exists():
        raise ValueError(f"{target} exists already; nothing was written, choose another name")
    tensors = {
        name: np.ascontiguousarray(_at(params, parents)[leaf])
        for name, (*parents, leaf) in _table(config)
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    unfinished.chmod(0o755)  # mkdtemp's own are for the user alone
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copy(path, unfinished / path.name)
    fields: dict[str, Any] = json.loads((source / "config.json").read_text())
    fields.pop("torch_dtype", None)
    fields["dtype"] = "float32"
    (unfinished / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    save_file(tensors, unfinished / WEIGHTS, metadata={"format": "pt"})
    unfinished.rename(target)


def stop_ids(directory: Path) -> tuple[int, ...]:
    """All end tokens that config.json and generation_config.json name, in ascending order.

    Raises:
        ValueError: a file is not a JSON object, or names something else than ids.
    """
    found: set[int] = set()
    for path in (directory / "config.json", directory / "generation_config.json"):
        if path.is_file():
            ids = _read_object(path).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            if not all(isinstance(one, int) for one in ids):
                raise ValueError(f"eos_token_id in {path} is {ids}; it must be an id or several")
            found.update(ids)
    return tuple(sorted(found))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not a JSON object but {str(fields)[:80]}")
    return fields


def _table(config: DecoderConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(checkpoint name, path in our tree) of every tensor."""
    for name, leaf in _TOP.items():
        if not (config.tie_embeddings and leaf == "head"):
            yield name, (leaf,)
    for i in range(config.num_layers):
        for name, leaf in _LAYER.items():
            yield name.format(i), (f"layers_{i}", leaf)


def _at(tree: Params, parents: Sequence[str]) -> Params:
    for key in parents:
        tree = tree.setdefault(key, {})
    return tree
