"""Tables, links, and how a choice is spelled."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.objectives.choices import function_of, settings_of

from .docstrings import one_line


class Named(int):
    """Stands for an argument without a default, and is spelled as its name."""

    name: str

    def __new__(cls, name: str) -> "Named":
        made = super().__new__(cls, 2)
        made.name = name
        return made


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells on one line each; a bar in a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[one_line(cell).replace("|", r"\|") for cell in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def file_link(path: str, text: str = "") -> str:
    """To a file of the repository, from docs/."""
    return f"[{text or path}](../{path})"


def with_links(text: str) -> str:
    """arXiv ids become links, in "arXiv:1707.06347, 1506.02438" the second one too."""
    whole = re.sub(r"(?<=\d, )(\d{4}\.\d{5})\b", r"arXiv:\1", text)
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", whole)


def parameters(function: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def settings(choice: Callable) -> dict[str, Any]:
    """Name -> value in effect of each setting, bound or not."""
    bound = settings_of(choice)
    known = [p for p in parameters(function_of(choice)) if p.kind is p.KEYWORD_ONLY]
    return {p.name: bound.get(p.name, p.default) for p in known}


def value(setting: Any) -> str:
    if isinstance(setting, Named):
        return setting.name
    if callable(setting):
        return label(setting)
    if isinstance(setting, float | int) and not isinstance(setting, bool):
        return f"{setting:g}"
    return str(setting)


def label(choice: Callable) -> str:
    """`advantages.group_center`, whatever is bound."""
    function = function_of(choice)
    return f"{_file(function)}.{function.__name__}"


def short(choice: Callable) -> str:
    """`group_center`, or `clipped(0.2, 0.28)`; with its file where that is not in `ops`."""
    function, bound = function_of(choice), settings_of(choice)
    name = function.__name__ if _is_part(function) else label(function)
    values = [value(v) for key, v in settings(choice).items() if key in bound]
    return code(f"{name}({', '.join(values)})" if values else name)


def linked(choice: Callable) -> str:
    """With a link to the table of its room, or to the paper's file."""
    function = function_of(choice)
    if _is_part(function):
        return f"[`{label(choice)}`](#ops{_file(function)})"
    return file_link(f"grpo_jax/objectives/{_file(function)}.py", code(label(choice)))


def _file(function: Callable) -> str:
    return function.__module__.rpartition(".")[2]


def _is_part(function: Callable) -> bool:
    return function.__module__.startswith("grpo_jax.ops.")
