"""The functions of `grpo_jax.ops`: a table for each module, by the question that it answers."""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType

from grpo_jax import ops

from . import docstrings, tests
from .docstrings import doc, one_line
from .markdown import code, file_link, parameters, table, value, with_links
from .papers import choosers

HELPERS = "behind them"
# Functions whose docstring names neither a paper nor a choice of ours, and why.
WITHOUT_REFERENCE = {
    "diagnostics.by_side_and_sign": "as `split_by_sign`",
    "diagnostics.log_ratio_extremes": "definition",
    "diagnostics.pass_rate": "definition",
    "draws.inverse_cdf": "inversion sampling",
    "kl.k1": "in the docstring of the module",
    "log_probs.chunked": "an order of computing",
    "log_probs.entropy": "definition",
    "log_probs.log_probs_and_entropy": "definition",
    "log_probs.token_log_probs": "definition",
    "ratios.ratio": "definition",
    "returns.carry_back": "parallel scan",
    "returns.terminal": "definition",
    "returns.to_go": "definition",
    "support.pack": "a format",
    "support.unpack": "a format",
}


def rooms() -> dict[str, list[str]]:
    """Question -> modules of `ops`, as its docstring lists them; then those that it does not."""
    listed = re.findall(r"^(\w[\w, ]*?) {2,}(\w.*)$", doc(ops), re.MULTILINE)
    found = {question: modules.split(", ") for question, modules in listed}
    known = {name for modules in found.values() for name in modules}
    there = sorted(m.name for m in pkgutil.iter_modules(ops.__path__))
    found[HELPERS] = [name for name in there if name not in known]
    return found


@functools.cache
def parts() -> dict[str, Callable]:
    """`module.function` -> each public function that returns something."""
    found = {}
    for modules in rooms().values():
        for room in modules:
            module = _module(room)
            for name, thing in vars(module).items():
                own = getattr(thing, "__module__", None) == module.__name__
                if (
                    own
                    and callable(thing)
                    and not (name.startswith("_") or isinstance(thing, type))
                ):
                    found[f"{room}.{name}"] = thing
    return {name: f for name, f in found.items() if not _is_check(f)}


def source_of(name: str) -> str:
    """The reference of a part, or why it has none; empty if nobody says."""
    text = doc(parts()[name])
    if docstrings.reference(text):
        return with_links(docstrings.reference(text))
    if name.partition(".")[0] in rooms()[HELPERS]:
        return "a helper"
    return "a choice of ours" if "Choice: " in text else WITHOUT_REFERENCE.get(name, "")


def tables() -> Iterator[str]:
    head = ("function", "arrays", "settings", "what", "reference", "chosen by")
    for question, modules in rooms().items():
        yield f"### {question[0].upper()}{question[1:]}\n"
        for name in modules:
            summary = one_line(docstrings.paragraphs(doc(_module(name)))[0])
            yield f"#### ops.{name}\n"
            yield f"{file_link(f'grpo_jax/ops/{name}.py')}: {summary}\n"
            yield table(head, [row(key) for key in parts() if key.startswith(f"{name}.")])
            looked = tests.of_part(name)
            yield f"Tests: {', '.join(map(tests.link, looked)) or 'through the others'}.\n"


def row(name: str) -> tuple[str, ...]:
    function = parts()[name]
    shapes, result = docstrings.shapes(function, _module(name.partition(".")[0]))
    arrays, free = [], []
    for p in parameters(function):
        if p.kind is p.KEYWORD_ONLY:
            free.append(p.name if p.default is p.empty else f"{p.name}={value(p.default)}")
        else:
            arrays.append(f"{p.name} {shapes.get(p.name, '')}".strip())
    summary = docstrings.paragraphs(doc(function))[0]
    summary = re.sub(r"\s*Arguments\b[^.]*\.$", "", summary)
    return (
        code(name.partition(".")[2]),
        code(", ".join(arrays)) + (f" → {code(result)}" if result else ""),
        code(", ".join(free)),
        with_links(summary),
        source_of(name),
        str(choosers().get(name, "")),
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"grpo_jax.ops.{name}")


def _is_check(function: Callable) -> bool:
    """Whether it only raises."""
    return getattr(function, "__annotations__", {}).get("return", "") is None
