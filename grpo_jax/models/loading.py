"""Weights of a model directory -> parameters, tensor by tensor; and which tensors there are.

Only safetensors are read; no pickle is ever opened. A tensor goes from its file into its place, so
that no second copy of the model is held.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.decoder import param_shapes
from grpo_jax.models.directory import ModelDirectory
from grpo_jax.models.fields import read_object
from grpo_jax.models.tensors import EMBEDDING, HEAD, Part, Row, ignored, rows
from grpo_jax.types import Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAPPED_BYTES = 2**28
"""Of a file that is read through the memory map before it is opened again: pages that were read
count as memory of the process until then."""
_MOST_TOLD = 20


class _Stored(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    num_bytes: int


def load_params(directory: ModelDirectory, *, dtype: str = "float32") -> Params:
    """The weights of a model directory as parameters.

    Args:
        directory: the model's.
        dtype: of the parameters.

    Raises:
        ValueError: no weights, unreadable weights, or tensors missing, unexpected or of another
            shape or type than the config asks for; all of them at once.
    """
    table, config = list(rows(directory)), directory.config
    stored = _stored_tensors(directory.path)
    tied = config.tie_embeddings and not config.num_labels and HEAD in stored
    if tied and EMBEDDING not in stored:  # of two names of one tensor some programs keep this one
        table = [row._replace(name=HEAD) if row.name == EMBEDDING else row for row in table]
        tied = False
    shapes = param_shapes(config)
    _check(directory, table, stored, shapes)
    wanted, kind = {row.name: row for row in table}, jnp.dtype(dtype)
    params: Params = {}
    unfinished: dict[tuple[str, ...], tuple[np.ndarray, int]] = {}  # experts still to come
    for name, tensor in _tensors(stored, wanted):
        start = 0
        for part in wanted[name].parts:
            like = leaf_at(shapes, part.path)
            stop = start + (like.shape[0] if part.expert is None else tensor.shape[0])
            values = tensor[start:stop] if len(wanted[name].parts) > 1 else tensor
            start = stop
            values = values.astype(dtype_of(part.path, kind), copy=False)
            if part.expert is None:
                _put(params, part.path, jnp.asarray(values))
                continue
            whole, left = unfinished.pop(part.path, (None, like.shape[0]))
            whole = np.empty(like.shape, values.dtype) if whole is None else whole
            whole[part.expert] = values
            if left > 1:
                unfinished[part.path] = whole, left - 1
            else:
                _put(params, part.path, jnp.asarray(whole))
    if tied:
        _check_tied(directory, stored[HEAD], params["embedding"])
    return params


def _check_tied(directory: ModelDirectory, stored: _Stored, embedding: jax.Array) -> None:
    with _opened(stored.file) as tensors:
        head = tensors.get_tensor(HEAD).astype(embedding.dtype)
    if not np.array_equal(head, np.asarray(embedding)):
        raise ValueError(
            f"{stored.file}: {HEAD} differs from {EMBEDDING}, while config.json in "
            f"{directory.path} says that they are one (tie_word_embeddings); set it to false "
            "there if the head is meant"
        )


def keys_of(path: Any) -> tuple[str, ...]:
    """A path of `jax.tree_util` as names."""
    return tuple(key.key for key in path)


def dtype_of(path: tuple[str, ...], dtype: jnp.dtype) -> jnp.dtype:
    """Of a parameter: what chooses experts stays float32, or other ones would be chosen."""
    return jnp.dtype(jnp.float32) if path[-1] == "correction" else dtype


def expected_shape(row: Row, shapes: Params) -> tuple[int, ...]:
    """Of a tensor, from those of the parameters in it."""
    found = [
        leaf_at(shapes, part.path).shape[0 if part.expert is None else 1 :] for part in row.parts
    ]
    return (sum(shape[0] for shape in found), *found[0][1:])


def values_of(row: Row, params: Params) -> np.ndarray:
    """A tensor as a checkpoint holds it, from the parameters in it."""

    def value(part: Part) -> np.ndarray:
        found = leaf_at(params, part.path)
        return np.asarray(found if part.expert is None else found[part.expert])

    values = [value(part) for part in row.parts]
    return np.ascontiguousarray(values[0] if len(values) == 1 else np.concatenate(values))


def _check(
    directory: ModelDirectory, table: list[Row], stored: dict[str, _Stored], shapes: Params
) -> None:
    names = {row.name for row in table}
    problems = [f"missing: {row.name}" for row in table if row.name not in stored]
    unread = sorted(n for n in stored if n not in names and not ignored(n, directory.config))
    problems += [f"unexpected: {name}" for name in unread]
    for row in table:
        if row.name in stored:
            want, have = expected_shape(row, shapes), stored[row.name].shape
            if have != want:
                problems.append(f"shape of {row.name}: {list(have)}, config.json asks {list(want)}")
    if problems:
        told, rest = problems[:_MOST_TOLD], len(problems) - _MOST_TOLD
        told += [f"and {rest} more"] if rest > 0 else []
        raise ValueError(
            f"the weights in {directory.path} do not fit its config.json:"
            + "".join(f"\n  {problem}" for problem in told)
            + "\ntake both from the same checkpoint"
        )


def _stored_tensors(path: Path) -> dict[str, _Stored]:
    """Every tensor in the weight files, by name."""
    found: dict[str, _Stored] = {}
    for file in _weight_files(path):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                piece = tensors.get_slice(name)
                kind, shape = piece.get_dtype(), tuple(piece.get_shape())
                if kind not in _FLOATS:
                    raise ValueError(
                        f"{file}: {name} is stored as {kind}; plain weights are read "
                        f"({', '.join(_FLOATS)}): convert the checkpoint first"
                    )
                if name in found:
                    raise ValueError(
                        f"{name} is in {found[name].file} and in {file}; save the model again"
                    )
                size = {"F64": 8, "F32": 4}.get(kind, 2)
                found[name] = _Stored(file, shape, int(np.prod(shape)) * size)
    return found


def _weight_files(path: Path) -> list[Path]:
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        names = read_object(path / INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
            raise ValueError(
                f"{path / INDEX} has no weight_map from tensors to files; fetch it again"
            )
        shards = sorted(set(names.values()))
        outside = [name for name in shards if Path(name).name != name]
        if outside:
            raise ValueError(f"{path / INDEX} names files outside its directory: {outside}")
        missing = [name for name in shards if not (path / name).is_file()]
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}, which {INDEX} names; fetch them again"
            )
        return [path / name for name in shards]
    found = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pt", ".safetensors"))
    raise ValueError(
        f"{path} holds no {WEIGHTS} and no {INDEX}"
        + (f" (but {', '.join(found)})" if found else "")
        + "; save the model as safetensors"
    )


def _tensors(
    stored: dict[str, _Stored], wanted: dict[str, Row]
) -> Iterator[tuple[str, np.ndarray]]:
    """Every wanted tensor, file by file."""
    for file in sorted({one.file for one in stored.values()}):
        names = [name for name, one in stored.items() if one.file == file and name in wanted]
        while names:
            with _opened(file) as tensors:
                read = 0
                while names and read < _MAPPED_BYTES:
                    name = names.pop(0)
                    yield name, tensors.get_tensor(name)
                    read += stored[name].num_bytes


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); fetch or save it again"
        ) from None


def leaf_at(tree: Params, path: tuple[str, ...]) -> Any:
    """What stands at a path of the tree."""
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: Params, path: tuple[str, ...], value: jax.Array) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
