"""Which tests look at what: read off the imports and names in tests/**/test_*.py."""

import ast
import functools
import pathlib
import re

from .markdown import file_link

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# A test that goes through one of these looks at every preset.
LISTS = {"paper_cases.CASES", "paper_cases.PRESETS"}


def of_preset(preset: str) -> list[str]:
    """Test files that name it, or go through the list of all."""
    wanted = {f"grpo_jax.{preset}", f"grpo_jax.objectives.{preset}"}
    return [path for path, names in _named().items() if names & (wanted | LISTS)]


def of_all_presets() -> list[str]:
    """Test files that go through the list."""
    return [path for path, names in _named().items() if names & LISTS]


def of_part(module: str) -> list[str]:
    """Test files that name a module of `ops`, or something of it."""
    start = f"grpo_jax.ops.{module}."
    return [
        path
        for path, names in _named().items()
        if any(f"{name}.".startswith(start) for name in names)
    ]


def link(path: str) -> str:
    """`tests/reproductions/test_r5_clip_geometry.py` is reproduction R5."""
    number = re.match(r"tests/reproductions/test_r(\d+)_(\w+)\.py", path)
    text = f"reproduction R{number[1]}, {number[2].replace('_', ' ')}" if number else ""
    return file_link(path, text or path.removeprefix("tests/"))


@functools.cache
def _named() -> dict[str, set[str]]:
    """Test file -> dotted names of what it imports, and of attributes of that."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        local: dict[str, str] = {}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                local |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                local |= {a.asname or a.name: a.name for a in node.names}
        used = set(local.values())
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used.add(f"{local.get(node.value.id, '')}.{node.attr}")
        found[path.relative_to(ROOT).as_posix()] = used
    return found
