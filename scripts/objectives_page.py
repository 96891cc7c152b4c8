"""Writes docs/objectives.md from the code: each paper, its choices, its defaults, its tests.

    python scripts/objectives_page.py            writes the page
    python scripts/objectives_page.py --check    exit code 1 if the page is not as the code is

What it says of a choice is read off the `Objective` that a preset returns, the rest off docstrings,
signatures and the imports of the tests.
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import docstrings
import refusals
from docstrings import doc, one_line
from tests_index import tests_of_parts, tests_of_presets

from grpo_jax import objectives, ops
from grpo_jax.objectives import Objective
from grpo_jax.objectives.choices import names, settings_of
from grpo_jax.objectives.choices import function_of as function_behind

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "objectives.md"
PRESETS = [name for name in objectives.__all__ if name not in ("Objective", "prepare")]

# Each field of an objective once.
QUESTIONS = {
    "credit": ("What did each completion, or each token, do for the reward?", "advantages"),
    "ratio": (
        "How is the policy compared with the one that sampled?",
        "log_ratio sampler_anchor",
    ),
    "trust region": ("How far may the updates of one step go?", "surrogate"),
    "token weights": ("How much does each token count?", "weights length_weighted"),
    "KL": (
        "What keeps the policy near a reference?",
        "kl kl_coef kl_in_reward kl_controller reference",
    ),
    "sampler": ("What if the sampler was not quite the policy?", "corrections"),
    "selection": (
        "Which groups, completions and tokens count at all?",
        "select max_sampling_rounds",
    ),
    "entropy": (
        "Is there a bonus for entropy?",
        "entropy_coef entropy_controller entropy_gate",
    ),
}
# Public functions of `ops` whose docstring names no paper and no choice of ours, and why.
WITHOUT_REFERENCE = {
    "diagnostics.log_ratio_extremes": "definition",
    "diagnostics.pass_rate": "definition",
    "draws.inverse_cdf": "inversion sampling",
    "kl.k1": "see the docstring of the module",
    "kl.k2": "see the docstring of the module",
    "log_probs.chunked": "an order of computing",
    "log_probs.entropy": "definition",
    "log_probs.token_log_probs": "definition",
    "moments.deviations": "definition",
    "moments.over_std": "definition",
    "moments.scored": "definition",
    "moments.variance": "definition",
    "ratios.ratio": "definition",
    "returns.carry_back": "parallel scan",
    "returns.terminal": "definition",
    "returns.to_go": "definition",
    "support.pack": "a format",
    "support.unpack": "a format",
}

INTRODUCTION = """\
<!-- Made from the code by scripts/objectives_page.py: edit that or a docstring, and run it. -->

# Objectives

A paper of this family answers seven questions, and some papers add a bonus for entropy. Here an
answer is a field of one [`Objective`](../grpo_jax/objectives/base.py), and most answers are plain
functions of arrays from [`grpo_jax/ops`](../grpo_jax/ops). So a paper is a short file that names
one function for each question. This page is made from those files: [what a field
means](#the-fields), [how to compose](#compose), [what is refused](#what-is-refused),
[all papers at a glance](#the-papers), [one by one](#one-by-one), and [all parts](#the-parts).
[A page of its own](adding-a-paper.md) shows how to add one.
"""
LOSS = """\
The loss of a batch is

```text
{formula}
```

`prepare` computes credit and selection once a step, from rewards [P, G] of P prompts with G
completions each. The loss is then a function of the log-probabilities [P, G, T] of their T tokens.
The weights come from the mask of all that one optimizer step sees, before it is cut into
micro-batches, so that the parts add up to the whole. Corrections are factors without gradient, and
act on the policy term alone. β is `kl_coef`, c is `entropy_coef`. A KL in the reward is no term of
the loss: it is a part of the credit.
"""
COMPOSE = """\
## Compose

Take a paper and replace what is to differ. Bind settings with `functools.partial`:

```python
import dataclasses
from functools import partial

from grpo_jax.objectives import dapo
from grpo_jax.ops import advantages, corrections

objective = dataclasses.replace(
    dapo(clip_eps_high=0.3),
    advantages=advantages.leave_one_out,
    corrections=(partial(corrections.truncated, max_ratio=2.0),),
)
```

A function is given the arrays that its parameters name. [Adding a paper](adding-a-paper.md) lists
the names that there are in each place. A function of your own takes part in the same way.
"""
REFUSED = """\
## What is refused

A combination that makes no sense is a `ValueError` that says why, and what to do instead. These are
the messages for one example of each kind. `replace` is `dataclasses.replace`.
"""
OVERVIEW = """\
## The papers

By date of the paper. Numbers in brackets are the settings that a paper binds; its section below
names them. μ is the policy that sampled, as the sampler reported it. A ratio is to the policy at
the start of the updates, π_old, unless it says "to μ".
"""
ONE_BY_ONE = """\
## One by one

Equations and remarks are those of the docstrings, where sg stops the gradient. A table of choices
lists all settings in effect, also those that the paper leaves at the default of the function.
"""
PARTS = """\
## The parts

Every function of [`grpo_jax/ops`](../grpo_jax/ops) that returns something. They need jax and chex,
and none of them needs an `Objective`. Shapes are those of the docstrings: P prompts, G completions
of each, T tokens, V vocabulary. The last column counts the objectives above that choose the
function directly.
"""


class Named(int):
    """Stands for an argument without a default, and is spelled as its name."""

    name: str

    def __new__(cls, name: str) -> "Named":
        made = super().__new__(cls, 2)
        made.name = name
        return made


@functools.cache
def composed(preset: str) -> Objective:
    """The objective with its defaults."""
    function = getattr(objectives, preset)
    needed = [p.name for p in parameters(function) if p.default is p.empty]
    return function(**{name: Named(name) for name in needed})


def parameters(function: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def settings(choice: Callable, *, bound_only: bool = False) -> dict[str, Any]:
    """Name -> value in effect of a choice's keyword-only parameters, in their order."""
    bound = settings_of(choice)
    wanted = [p for p in parameters(function_behind(choice)) if p.kind is p.KEYWORD_ONLY]
    return {
        p.name: bound.get(p.name, p.default) for p in wanted if p.name in bound or not bound_only
    }


# -- markdown --------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells on one line each; a bar in a cell is not the end of it."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[one_line(cell).replace("|", r"\|") for cell in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def code(text: str) -> str:
    return f"`{text}`"


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
    function = function_behind(choice)
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def short(choice: Callable) -> str:
    """`group_center`, or `clipped(0.2, 0.28)`; with the file where it is not one of `ops`."""
    function = function_behind(choice)
    name = function.__name__ if _is_part(function) else label(function)
    bound = ", ".join(value(v) for v in settings(choice, bound_only=True).values())
    return code(f"{name}({bound})" if bound else name)


def linked(choice: Callable) -> str:
    """With a link to the table of its room, or to the paper's file."""
    module = function_behind(choice).__module__
    name = module.rpartition(".")[2]
    where = f"#ops{name}" if _is_part(function_behind(choice)) else paper_file(name)
    return f"[`{label(choice)}`]({where})"


def with_links(text: str) -> str:
    """arXiv ids as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def all_links(source: str) -> str:
    """Also of ids that follow the first one: "arXiv:1707.06347, 1506.02438"."""
    rest = re.sub(r"(?<![:\d])(\d{4}\.\d{5})", r"arXiv:\1", source)
    return with_links(rest)


def file_link(path: str, text: str = "") -> str:
    return f"[{text or path}](../{path})"


def paper_file(module: str) -> str:
    return f"../grpo_jax/objectives/{module}.py"


def _is_part(function: Callable) -> bool:
    return function.__module__.startswith("grpo_jax.ops.")


# -- papers ----------------------------------------------------------------------------------------


def papers() -> dict[ModuleType, list[str]]:
    """The file of each paper -> its presets, by date."""
    found: dict[ModuleType, list[str]] = {}
    for preset in PRESETS:
        module = importlib.import_module(getattr(objectives, preset).__module__)
        found.setdefault(module, []).append(preset)
    return dict(sorted(found.items(), key=lambda item: _date(item[0])))


def _date(module: ModuleType) -> str:
    """The first arXiv id; without one the end of the year that is named."""
    source = docstrings.title_and_source(module)[1]
    found = re.search(r"\d{4}\.\d{5}", source)
    if found:
        return found[0]
    year = re.search(r"\b20(\d\d)\b", source)
    if not year:
        raise ValueError(f"{module.__name__}: the source has neither an arXiv id nor a year")
    return year[1] + "99"


def ids(module: ModuleType) -> str:
    """Links to the papers, the ids alone."""
    source = docstrings.title_and_source(module)[1]
    found = re.findall(r"\d{4}\.\d{5}", source)
    return ", ".join(f"[{i}](https://arxiv.org/abs/{i})" for i in found) or source


def overview() -> str:
    head = ("objective", "file, paper", *list(QUESTIONS)[:5], "other")
    rows = []
    for module, presets in papers().items():
        name = module.__name__.rpartition(".")[2]
        for preset in presets:
            objective = composed(preset)
            cells = (
                f"[`{preset}`](#{preset})",
                f"[{name}.py]({paper_file(name)}), {ids(module)}",
                short(objective.advantages),
                ratio(objective),
                short(objective.surrogate),
                short(objective.weights),
                kl(objective),
                "; ".join(others(objective)),
            )
            rows.append(cells)
    return table(head, rows)


def ratio(objective: Objective) -> str:
    to = " to μ" if objective.sampler_anchor else ""
    if objective.log_ratio is not None:
        return short(objective.log_ratio) + to
    own = "old_log_probs" in names(objective.surrogate)
    return f"that of the loss{to}" if own else "none"


def kl(objective: Objective) -> str:
    if objective.kl is None or not objective.kl_coef:
        return "none"
    place = ", in the reward" if objective.kl_in_reward else ""
    return f"{short(objective.kl)} β {value(objective.kl_coef)}{place}"


def others(objective: Objective) -> Iterator[str]:
    for correction in objective.corrections:
        yield f"sampler {short(correction)}"
    for rule in objective.select:
        yield f"selection {short(rule)}"
    if objective.max_sampling_rounds > 1:
        yield f"up to {objective.max_sampling_rounds} rounds of sampling"
    if objective.length_weighted:
        yield "length weighted"
    if objective.reference:
        yield f"reference {short(objective.reference)}"
    if objective.kl_controller:
        yield f"β {short(objective.kl_controller)}"
    if objective.entropy_coef:
        yield f"entropy {value(objective.entropy_coef)}"
    for rule in (objective.entropy_controller, objective.entropy_gate):
        if rule:
            yield f"c {short(rule)}"
    if objective.of_the_whole_step:
        yield "no micro-batches"
    yield from (f"wants {what}" for what in wants(objective) if "log_probs" not in what)


def wants(objective: Objective) -> list[str]:
    """What `prepare` must be given beside the rollout and its rewards."""
    needed = objective.needs | ({"ref_log_probs"} if objective.needs_reference else set())
    by_function = "rewards_by_function" in needed
    found = [code(name) for name in sorted(needed - {"rewards_by_function", "reward_weights"})]
    return (["rewards [P, G, K]"] if by_function else []) + found


def choices(objective: Objective) -> list[tuple[str, str, str]]:
    """Question, choice, settings; one row for each field that is not left alone."""
    left_alone = {f.name: f.default for f in dataclasses.fields(Objective)}
    rows = []
    for question, (_, fields) in QUESTIONS.items():
        for field in fields.split():
            chosen = getattr(objective, field)
            if chosen == left_alone[field] and field != "log_ratio":
                continue
            if field in ("kl", "reference", "kl_in_reward") and not objective.kl_coef:
                continue
            for choice in chosen if isinstance(chosen, tuple) else (chosen,):
                said = f"{question}: `{field}`"
                if callable(choice):
                    found = (f"{name}={value(v)}" for name, v in settings(choice).items())
                    rows.append((said, linked(choice), code(", ".join(found))))
                else:
                    rows.append((said, value(choice), ""))
    return [(a, b, "" if c == "``" else c) for a, b, c in rows]


def section(preset: str) -> Iterator[str]:
    """Its docstring with the arguments and choices in tables."""
    function, objective = getattr(objectives, preset), composed(preset)
    text = doc(function)
    yield f"#### {preset}\n"
    yield one_line(docstrings.paragraphs(text)[0]) + "\n"
    said = meanings(preset)
    arguments = [
        (code(p.name), "required" if p.default is p.empty else value(p.default), said[p.name])
        for p in parameters(function)
    ]
    for paragraph in docstrings.body(text):
        if paragraph.startswith("    "):
            yield f"```text\n{inspect.cleandoc(paragraph)}\n```\n"
        else:
            yield prose(paragraph) + "\n"
    if arguments:
        yield table(("argument", "default", ""), arguments)
    yield table(("choice", "", "settings in effect"), choices(objective))
    needed = wants(objective)
    if needed:
        yield f"`prepare` wants {', '.join(needed)}.\n"
    yield f"Tests: {', '.join(tests_of(preset))}.\n"


def meanings(preset: str) -> Mapping[str, str]:
    """Argument -> what it is; of the objective that it is said to be like, where it says nothing.

    Raises:
        ValueError: an argument without a word.
    """
    function = getattr(objectives, preset)
    text = doc(function)
    found = docstrings.entries(text)
    like = re.search(r"as\s+(?:in|for)\s+`(\w+)`", text)
    if like and like[1] in PRESETS:
        found = {**meanings(like[1]), **found}
    silent = [p.name for p in parameters(function) if p.name not in found]
    if silent:
        raise ValueError(f"{preset}: the docstring does not say what {silent[0]} is")
    return found


def prose(paragraph: str) -> str:
    """Lines that begin like "Choice:" or "Run:" are paragraphs of their own."""
    return re.sub(r"\n(?=(?:Choices?|Run)\b[^.]{0,40}:)", "\n\n", paragraph)


def tests_of(preset: str) -> list[str]:
    found = []
    if inspect.getsource(getattr(objectives, preset)) and preset in _oracles():
        found.append(file_link("tests/oracles/papers.py", "plain loops"))
    return found + [file_link(path, test_name(path)) for path in tests_of_presets(PRESETS)[preset]]


@functools.cache
def _oracles() -> set[str]:
    text = (ROOT / "tests" / "oracles" / "papers.py").read_text()
    return set(re.findall(r"^def (\w+)\(", text, re.MULTILINE))


def test_name(path: str) -> str:
    """`tests/reproductions/test_r5_clip_geometry.py` -> reproduction R5."""
    number = re.match(r"tests/reproductions/test_r(\d+)_", path)
    return f"reproduction R{number[1]}" if number else path.removeprefix("tests/")


# -- parts -----------------------------------------------------------------------------------------


def rooms() -> dict[str, list[str]]:
    """Question -> modules of `ops`, as its docstring lists them; then those that it does not."""
    listed = re.findall(r"^(\w[\w, ]*?) {2,}(\w.*)$", doc(ops), re.MULTILINE)
    found = {question: rooms.split(", ") for question, rooms in listed}
    known = {name for modules in found.values() for name in modules}
    there = sorted(m.name for m in pkgutil.iter_modules(ops.__path__))
    found["behind them"] = [name for name in there if name not in known]
    return found


def functions(module: ModuleType) -> dict[str, Callable]:
    """Its public functions that return something, in their order."""
    own = {
        name: f
        for name, f in vars(module).items()
        if not name.startswith("_")
        and callable(f)
        and not isinstance(f, type)
        and getattr(f, "__module__", None) == module.__name__
    }
    return {
        name: f for name, f in own.items() if inspect.signature(f).return_annotation is not None
    }


def parts() -> dict[str, Callable]:
    """`module.function` -> the function, of all of `ops`."""
    modules = [name for names in rooms().values() for name in names]
    return {
        f"{module}.{name}": function
        for module in modules
        for name, function in functions(_module(module)).items()
    }


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"grpo_jax.ops.{name}")


def source_of(name: str) -> str:
    """The reference of a part, or why it has none; empty if the docstring does not say."""
    text = doc(parts()[name])
    if docstrings.reference(text):
        return with_links(docstrings.reference(text))
    return "a choice of ours" if "Choice: " in text else WITHOUT_REFERENCE.get(name, "")


def part(name: str) -> tuple[str, ...]:
    function, module = parts()[name], _module(name.partition(".")[0])
    shapes, result = docstrings.shapes(function, module)
    arrays, bound = [], []
    for p in parameters(function):
        if p.kind is p.KEYWORD_ONLY:
            bound.append(p.name if p.default is p.empty else f"{p.name}={value(p.default)}")
        else:
            arrays.append(f"{p.name} {shapes.get(p.name, '')}".strip())
    summary = with_links(one_line(docstrings.paragraphs(doc(function))[0]))
    chosen = choosers().get(name, 0)
    return (
        code(function.__name__),
        code(", ".join(arrays)) + (f" → {code(result)}" if result else ""),
        code(", ".join(bound)) if bound else "",
        summary,
        source_of(name),
        str(chosen or ""),
    )


@functools.cache
def choosers() -> dict[str, int]:
    """Part -> how many objectives choose it."""
    found: dict[str, int] = {}
    for preset in PRESETS:
        rows = choices(composed(preset))
        for name in {re.sub(r"^\[`(.*)`\].*", r"\1", row[1]) for row in rows}:
            found[name] = found.get(name, 0) + 1
    return found


def all_parts() -> Iterator[str]:
    head = ("function", "arrays", "settings", "what", "reference", "in")
    for question, modules in rooms().items():
        yield f"### {question[0].upper()}{question[1:]}\n"
        for name in modules:
            summary = docstrings.paragraphs(doc(_module(name)))[0]
            found = [key for key in parts() if key.partition(".")[0] == name]
            path = f"grpo_jax/ops/{name}.py"
            yield f"#### ops.{name}\n"
            yield f"{one_line(summary)} {file_link(path, name + '.py')}\n"
            yield table(head, [part(key) for key in found])
            tests = (file_link(path, test_name(path)) for path in tests_of_parts()[name])
            yield f"Tests: {', '.join(tests)}.\n"


# -- the page --------------------------------------------------------------------------------------


def fields() -> str:
    """Each field of an objective: question, default, meaning."""
    said = docstrings.entries(doc(Objective), "Attributes")
    there = {f.name: f for f in dataclasses.fields(Objective)}
    listed = [name for _, names in QUESTIONS.values() for name in names.split()]
    if sorted(listed) != sorted(there):
        raise ValueError(f"QUESTIONS has {sorted(listed)}; an Objective has {sorted(there)}")
    rows = []
    for question, (_, names) in QUESTIONS.items():
        for name in names.split():
            default = there[name].default
            if default is dataclasses.MISSING:
                shown = "required"
            else:
                shown = "none" if default in (None, ()) else code(value(default))
            rows.append((question, code(name), shown, said[name]))
    return table(("question", "field", "default", "what it is"), rows)


def refused() -> Iterator[str]:
    found = refusals.answers()
    for head, examples in (
        ("When an objective is made:", refusals.COMPOSING),
        ("In `prepare`, with rewards [P, G] in `rewards`:", refusals.PREPARING),
        (f"In the loss, where `by_token` is `{refusals.BY_TOKEN}`:", refusals.IN_THE_LOSS),
    ):
        yield head + "\n"
        yield table(("this", "is told"), [(code(e), str(found[e])) for e in examples])


def page() -> str:
    """All of it."""
    formula = re.search(r"`(sum\(.*\))`", doc(Objective))
    if not formula:
        raise ValueError("the docstring of Objective does not begin with the loss in backquotes")
    questions = [
        (name, said, ", ".join(code(f) for f in names.split()))
        for name, (said, names) in QUESTIONS.items()
    ]
    pieces = [INTRODUCTION, table(("", "question", "fields"), questions)]
    pieces += [LOSS.format(formula=formula[1]), "### The fields\n", fields()]
    pieces += [COMPOSE, REFUSED, *refused(), OVERVIEW, overview(), ONE_BY_ONE]
    for module, presets in papers().items():
        title, source = docstrings.title_and_source(module)
        path = f"grpo_jax/objectives/{module.__name__.rpartition('.')[2]}.py"
        pieces += [f"### {title}\n", f"{file_link(path)}, {all_links(source)}\n"]
        pieces += [piece for preset in presets for piece in section(preset)]
    pieces += [PARTS, *all_parts()]
    return "\n".join(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=doc(sys.modules[__name__]).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    written = PAGE.read_text() if PAGE.exists() else ""
    if written == page():
        return
    if check:
        sys.exit("docs/objectives.md is not as the code is: run python scripts/objectives_page.py")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
