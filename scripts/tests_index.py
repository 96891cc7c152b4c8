"""Which tests look at what: read off the imports and names in tests/**/test_*.py."""

import ast
import functools
import pathlib
import pkgutil
from collections.abc import Iterable

from grpo_jax import ops

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A test that goes through one of these looks at every preset.
LISTS = {"paper_cases.CASES", "paper_cases.PRESETS", "grpo_jax.objectives.__all__"}


def tests_of_presets(presets: Iterable[str]) -> dict[str, list[str]]:
    """Preset -> the test files that name it, or go through the list of all."""
    found = {}
    for preset in presets:
        wanted = {f"grpo_jax.{preset}", f"grpo_jax.objectives.{preset}"}
        found[preset] = [path for path, names in _named().items() if names & (wanted | LISTS)]
    return found


def tests_of_parts() -> dict[str, list[str]]:
    """Module of `ops` -> the test files that name it, or something of it."""
    return {
        module.name: [
            path
            for path, names in _named().items()
            if any(f"{name}.".startswith(f"grpo_jax.ops.{module.name}.") for name in names)
        ]
        for module in pkgutil.iter_modules(ops.__path__)
    }


@functools.cache
def _named() -> dict[str, set[str]]:
    """Test file -> dotted names of what it imports, and of attributes of that."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        local: dict[str, str] = {}
        used: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
                local |= names
                used |= set(names.values())
            elif isinstance(node, ast.Import):
                local |= {a.asname or a.name: a.name for a in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                base = local.get(node.value.id)
                used |= {f"{base}.{node.attr}"} if base else set()
        found[path.relative_to(ROOT).as_posix()] = used
    return found
