"""A model directory: what it says of its model, before any weights are read."""

import dataclasses
from pathlib import Path
from typing import Any

from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.families import config_of
from grpo_jax.models.fields import read_object
from grpo_jax.models.rotary import Dynamic, Yarn


@dataclasses.dataclass(frozen=True)
class ModelDirectory:
    """A Hugging Face model directory.

    Attributes:
        path: of the directory.
        config: of the decoder.
        model_type: the family, as config.json names it.
        max_positions: tokens that the model can place; 0 where nothing says.
        stop_ids: all end tokens that config.json and generation_config.json name, ascending.
        fields: config.json as it is.
    """

    path: Path
    config: DecoderConfig
    model_type: str
    max_positions: int
    stop_ids: tuple[int, ...]
    fields: dict[str, Any]


def open_directory(path: Path) -> ModelDirectory:
    """Reads config.json and generation_config.json.

    Raises:
        ValueError: there is no config.json, a file is not a JSON object, or the model is none that
            the decoder computes; all reasons at once.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{path} holds no config.json; a model directory has config.json, tokenizer.json and "
            "model.safetensors"
        )
    fields = read_object(file)
    config = config_of(fields, file)
    architectures = fields.get("architectures") or []
    classifies = any("ForSequenceClassification" in str(name) for name in architectures)
    if classifies:
        labels = len(fields.get("id2label") or {}) or fields.get("num_labels") or 2
        config = dataclasses.replace(config, num_labels=int(labels))
    longest = fields.get("max_position_embeddings")
    longest = longest if isinstance(longest, int) else 0
    for layer in config.layers:
        scaling = layer.rotary.scaling if layer.rotary else None
        if isinstance(scaling, Dynamic | Yarn):  # goes on beyond
            longest = max(longest, int(scaling.factor * scaling.trained_length))
    return ModelDirectory(
        path,
        config,
        str(fields["model_type"]),
        longest,
        _stop_ids(path),
        fields,
    )


def _stop_ids(path: Path) -> tuple[int, ...]:
    found: set[int] = set()
    for file in (path / "config.json", path / "generation_config.json"):
        if file.is_file():
            ids = read_object(file).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            if not all(isinstance(one, int) for one in ids):
                raise ValueError(f"eos_token_id in {file} is {ids}; it must be an id or several")
            found.update(ids)
    return tuple(sorted(found))
