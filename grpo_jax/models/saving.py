"""Parameters -> a model directory that other programs take, whole or not at all."""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from grpo_jax.models.directory import ModelDirectory
from grpo_jax.models.loading import INDEX, WEIGHTS, expected_shape, leaf_at, values_of
from grpo_jax.models.tensors import Row, rows
from grpo_jax.types import Params
from grpo_jax.version import __version__

_SHARD_BYTES = 2 * 10**9
"""Of one weight file, which is written out of memory in one piece."""
_COPIED = (".json", ".jinja", ".model", ".txt")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a model card says of where a model comes from.

    Attributes:
        base_model: what training began with.
        experiment: its name.
        steps: of training.
        objective: what it was made of (`objectives.description`).
    """

    base_model: str
    experiment: str
    steps: int
    objective: Mapping[str, str] = dataclasses.field(default_factory=dict)


def save_model(
    params: Params, source: ModelDirectory, target: Path, provenance: Provenance
) -> None:
    """Writes a complete model directory in the type of the parameters.

    Weights in files of at most 2 GB, with tokenizer, chat template and all else copied from
    `source`; generation_config.json has all end tokens.

    Args:
        params: of the network.
        source: the model directory that training started from.
        target: a directory that does not exist yet; it appears whole or not at all.
        provenance: for the model card.

    Raises:
        ValueError: `target` exists.
    """
    with unfinished(target) as directory:
        for path in source.path.iterdir():
            if path.is_file() and path.suffix in _COPIED and path.name != INDEX:
                shutil.copy(path, directory / path.name)
        table = list(rows(source))
        dtype = str(leaf_at(params, table[0].parts[0].path).dtype)
        _write_weights(directory, table, params)
        fields = {k: v for k, v in source.fields.items() if k != "torch_dtype"} | {"dtype": dtype}
        for name in ("num_nextn_predict_layers", "num_mtp_layers"):
            if fields.get(name):  # their weights were read past
                fields[name] = 0
        fields.pop("auto_map", None)  # names code, which is neither run nor copied
        write_json(directory / "config.json", fields)
        write_json(
            directory / "generation_config.json",
            _existing(source.path / "generation_config.json")
            | {"eos_token_id": list(source.stop_ids)},
        )
        (directory / "README.md").write_text(card_of(provenance))


def _write_file(path: Path, table: Sequence[Row], params: Params) -> None:
    from safetensors.numpy import save_file

    tensors = {row.name: values_of(row, params) for row in table}
    save_file(tensors, path, metadata={"format": "pt"})


def _write_weights(directory: Path, table: Sequence[Row], params: Params) -> None:
    shards: list[list[Row]] = [[]]
    sizes, total = [0], 0
    for row in table:
        like = leaf_at(params, row.parts[0].path)
        size = int(np.prod(expected_shape(row, params))) * jnp.dtype(like.dtype).itemsize
        if shards[-1] and sizes[-1] + size > _SHARD_BYTES:
            shards.append([])
            sizes.append(0)
        shards[-1].append(row)
        sizes[-1] += size
        total += size
    if len(shards) == 1:
        _write_file(directory / WEIGHTS, table, params)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / name, shard, params)
        places |= dict.fromkeys((row.name for row in shard), name)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


@contextlib.contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A directory beside the target that takes its name once all is written."""
    if target.exists():
        raise ValueError(f"{target} exists already; nothing was written, choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        directory.chmod(0o755)  # mkdtemp's own are for the user alone
        yield directory
        directory.rename(target)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def card_of(provenance: Provenance) -> str:
    """The model card."""
    return (
        f"---\nbase_model: {provenance.base_model}\nlibrary_name: transformers\ntags: [grpo]\n---\n"
        f"# {Path(provenance.base_model).name}, trained\n\n"
        f"- base model: {provenance.base_model}\n- experiment: {provenance.experiment}\n"
        f"- steps: {provenance.steps}\n- by: grpo_jax {__version__}\n"
        + "".join(f"- {name}: `{value}`\n" for name, value in provenance.objective.items())
    )


def _existing(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Fields as a file."""
    path.write_text(json.dumps(fields, indent=2) + "\n")
