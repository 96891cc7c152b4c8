"""Reads docstrings laid out as in this repository: a summary, blocks, then sections by name.

An indented paragraph is an equation. `Args:` and `Returns:` open sections, and `Reference:` and
`Choice:` start lines of the last prose.
"""

import inspect
import re
from typing import Any

_ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)
_SHAPE = re.compile(r"\[[^\]]*\]|scalar|pytree")
_SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:")
_SAME = re.compile(r"\b(?:[Aa]rguments|[Rr]esult)[^.]*\bas for `(\w+)`")


def paragraphs(text: str) -> list[str]:
    """What stands between empty lines; equations that follow each other are one."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if found and paragraph.startswith(" ") and found[-1].startswith(" "):
            found[-1] += "\n\n" + paragraph
        else:
            found.append(paragraph)
    return found


def doc(thing: Any) -> str:
    """The docstring, or an error that says whose is missing."""
    if not thing.__doc__:
        raise ValueError(f"{thing.__name__} has no docstring; write one")
    return inspect.cleandoc(thing.__doc__)


def one_line(text: str) -> str:
    return " ".join(text.split())


def title_and_source(module: Any) -> tuple[str, str]:
    """The first line of a paper's file: "Title. Source, arXiv:..., section."."""
    title, dot, source = paragraphs(doc(module))[0].rstrip(".").rpartition(". ")
    if not dot:
        raise ValueError(f'{module.__name__}: the docstring must begin with "Title. Source."')
    return title, source


def body(text: str) -> list[str]:
    """Paragraphs behind the summary, without sections and doctests."""
    return [p for p in paragraphs(text)[1:] if not p.startswith((*_SECTIONS, ">>>"))]


def section(text: str, name: str) -> str:
    """What stands under `name:`, indented; empty if it is not there."""
    blocks = paragraphs(text)
    for block, following in zip(blocks, [*blocks[1:], ""], strict=True):
        if block == f"{name}:":
            return following
        if block.startswith(f"{name}:\n"):
            return block.partition("\n")[2]
    return ""


def entries(text: str, name: str = "Args") -> dict[str, str]:
    """Name -> what a section says of it, on one line. `a, b: ...` is both."""
    pieces = _ARGUMENT.split(section(text, name))[1:]
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    return {name: one_line(said) for names, said in pairs for name in names.split(", ")}


def reference(text: str) -> str:
    """What follows `Reference:`, up to `Choice:`; empty if it is not there."""
    for paragraph in paragraphs(text):
        if paragraph.startswith("Reference:"):
            return one_line(re.split(r"^Choice: ", paragraph, flags=re.MULTILINE)[0][10:])
    return ""


def shapes(function: Any, module: Any) -> tuple[dict[str, str], str]:
    """Argument -> shape, and the result's; also from a docstring that it says to look at."""
    text = doc(function)
    arguments = {name: _shape(said) for name, said in entries(text).items()}
    result = _shape(section(text, "Returns").strip())
    same = _SAME.search(one_line(text))
    if same:
        others, others_result = shapes(getattr(module, same[1]), module)
        arguments, result = others | arguments, result or others_result
    return arguments, result


def _shape(said: str) -> str:
    found = _SHAPE.match(said)
    return found[0] if found else ""
