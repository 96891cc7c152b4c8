"""Adapters -> a directory as the PEFT library has it, whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.models.decoder import param_shapes
from grpo_jax.models.directory import ModelDirectory
from grpo_jax.models.loading import leaf_at
from grpo_jax.models.lora import Lora
from grpo_jax.models.saving import Provenance, card_of, unfinished, write_json
from grpo_jax.models.tensors import Row, rows
from grpo_jax.types import Params


def save_adapters(
    adapters: Params, lora: Lora, source: ModelDirectory, target: Path, provenance: Provenance
) -> None:
    """Writes adapters as a directory of the PEFT library.

    Where a checkpoint holds several products as one (Phi-3), so do its adapters: the sum of their
    ranks, `up` in blocks, with a rank and an alpha of their own (`rank_pattern`, `alpha_pattern`).

    Args:
        adapters: their tree (`lora`).
        lora: what kind they are.
        source: the model directory that training started from.
        target: a directory that does not exist yet; it appears whole or not at all.
        provenance: for the model card.

    Raises:
        ValueError: `target` exists.
    """
    from safetensors.numpy import save_file

    shapes = param_shapes(source.config)
    tensors: dict[str, np.ndarray] = {}
    count: dict[str, int] = {}
    for row in rows(source):
        found = _fused(adapters, row, shapes)
        if found is None:
            continue
        module = row.name.removesuffix(".weight")
        down, up = found
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        count[module] = down.shape[0] // lora.rank
    several = {module: number for module, number in count.items() if number > 1}
    with unfinished(target) as directory:
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(
            directory / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": provenance.base_model,
                "r": lora.rank,
                "lora_alpha": lora.alpha,
                "rank_pattern": {module: number * lora.rank for module, number in several.items()},
                "alpha_pattern": {
                    module: number * lora.alpha for module, number in several.items()
                },
                "lora_dropout": lora.dropout,
                "target_modules": sorted(count),
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
            },
        )
        (directory / "README.md").write_text(card_of(provenance))


def _fused(adapters: Params, row: Row, shapes: Params) -> tuple[np.ndarray, np.ndarray] | None:
    """`down` [r, in] and `up` [out, r] of a tensor from those of its parts; None without any."""
    downs, ups, above = [], [], 0
    total = sum(leaf_at(shapes, part.path).shape[0] for part in row.parts)
    for part in row.parts:
        out = leaf_at(shapes, part.path).shape[0]
        found = _adapter_at(adapters, part.path[:-1]) if part.path[-1] == "kernel" else None
        if found is not None:
            downs.append(np.asarray(found["down"]))
            ups.append(np.pad(found["up"], [(above, total - above - out), (0, 0)]))
        above += out
    if not downs:
        return None
    return np.concatenate(downs), np.ascontiguousarray(np.concatenate(ups, axis=1))


def _adapter_at(adapters: Params, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(adapters, dict) or key not in adapters:
            return None
        adapters = adapters[key]
    return adapters if isinstance(adapters, dict) and "down" in adapters else None
