"""The objectives: questions and fields, the table of all, and a section for each paper."""

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

from grpo_jax import objectives
from grpo_jax.objectives import Objective
from grpo_jax.objectives.choices import names

from . import docstrings, tests
from .docstrings import doc, one_line
from .markdown import (
    Named,
    code,
    file_link,
    label,
    linked,
    parameters,
    settings,
    short,
    table,
    value,
    with_links,
)

PRESETS = [name for name in objectives.__all__ if name not in ("Objective", "prepare")]
# Question -> in words, and the fields that answer it; each field once.
QUESTIONS = {
    "credit": (
        "What did each completion, or each token, do for the reward?",
        "advantages",
    ),
    "ratio": (
        "How is the policy compared with the one that sampled?",
        "log_ratio sampler_anchor",
    ),
    "trust region": (
        "How far may the updates of one step go?",
        "surrogate",
    ),
    "token weights": (
        "How much does each token count?",
        "weights length_weighted",
    ),
    "KL": (
        "What keeps the policy near a reference?",
        "kl kl_coef kl_in_reward kl_controller reference",
    ),
    "sampler": (
        "What if the sampler was not quite the policy?",
        "corrections",
    ),
    "selection": (
        "Which groups, completions and tokens count at all?",
        "select max_sampling_rounds",
    ),
    "entropy": (
        "Is there a bonus for entropy?",
        "entropy_coef entropy_controller entropy_gate",
    ),
}
FIELDS = [(question, field) for question, (_, fs) in QUESTIONS.items() for field in fs.split()]
_ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def questions() -> str:
    rows = [
        (name, said, ", ".join(code(field) for field in fields.split()))
        for name, (said, fields) in QUESTIONS.items()
    ]
    return table(("", "question", "fields"), rows)


def formula() -> str:
    """The loss, from the first line of the docstring of `Objective`."""
    found = re.search(r"`(sum\(.*\))`", doc(Objective))
    if not found:
        raise ValueError("the docstring of Objective does not begin with the loss in backquotes")
    return found[1]


def fields() -> str:
    """Each field: question, default, meaning.

    Raises:
        ValueError: a field of an objective is not listed here, or another one is.
    """
    said = docstrings.entries(doc(Objective), "Attributes")
    defaults = {f.name: f.default for f in dataclasses.fields(Objective)}
    listed = [field for _, field in FIELDS]
    if sorted(listed) != sorted(defaults):
        raise ValueError(f"QUESTIONS has {sorted(listed)}; an Objective has {sorted(defaults)}")
    rows = []
    for question, field in FIELDS:
        default = defaults[field]
        shown = "none" if default in (None, ()) else code(value(default))
        shown = "required" if default is dataclasses.MISSING else shown
        rows.append((question, code(field), shown, said[field]))
    return table(("question", "field", "default", "what it is"), rows)


@functools.cache
def composed(preset: str) -> Objective:
    """The objective with its defaults."""
    function = getattr(objectives, preset)
    needed = [p.name for p in parameters(function) if p.default is p.empty]
    return function(**{name: Named(name) for name in needed})


def by_date() -> dict[ModuleType, list[str]]:
    """The file of each paper -> its presets."""
    found: dict[ModuleType, list[str]] = {}
    for preset in sorted(
        PRESETS, key=lambda name: getattr(objectives, name).__code__.co_firstlineno
    ):
        module = importlib.import_module(getattr(objectives, preset).__module__)
        found.setdefault(module, []).append(preset)
    return dict(sorted(found.items(), key=lambda item: _date(item[0])))


def _date(module: ModuleType) -> str:
    """The first arXiv id; without one the end of the year that is named."""
    source = docstrings.title_and_source(module)[1]
    found = _ARXIV.search(source)
    if found:
        return found[0]
    year = re.search(r"\b20(\d\d)\b", source)
    if not year:
        raise ValueError(f"{module.__name__}: the source has neither an arXiv id nor a year")
    return year[1] + "99"


def path(module: ModuleType) -> str:
    return f"grpo_jax/objectives/{module.__name__.rpartition('.')[2]}.py"


# -- the table of all ------------------------------------------------------------------------------


def overview() -> str:
    rows = []
    for module, presets in by_date().items():
        source = docstrings.title_and_source(module)[1]
        ids = ", ".join(f"[{i}](https://arxiv.org/abs/{i})" for i in _ARXIV.findall(source))
        file = file_link(path(module), path(module).rpartition("/")[2])
        for preset in presets:
            objective = composed(preset)
            cells = (
                f"[`{preset}`](#{preset})",
                f"{file}, {ids or source}",
                short(objective.advantages),
                _ratio(objective),
                short(objective.surrogate),
                short(objective.weights),
                _kl(objective),
                "; ".join(_others(objective)),
            )
            rows.append(cells)
    return table(("objective", "file, paper", *list(QUESTIONS)[:5], "other"), rows)


def _ratio(objective: Objective) -> str:
    to = " to μ" if objective.sampler_anchor else ""
    if objective.log_ratio is not None:
        return short(objective.log_ratio) + to
    own = "old_log_probs" in names(objective.surrogate)
    return f"in the loss{to}" if own else "none"


def _kl(objective: Objective) -> str:
    if objective.kl is None or not objective.kl_coef:
        return "none"
    place = ", in the reward" if objective.kl_in_reward else ""
    return f"{short(objective.kl)} β {value(objective.kl_coef)}{place}"


def _others(objective: Objective) -> Iterator[str]:
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
        yield f"β by {short(objective.kl_controller)}"
    if objective.entropy_coef or objective.entropy_controller:
        rules = (objective.entropy_controller, objective.entropy_gate)
        by = " and ".join(short(rule) for rule in rules if rule)
        yield f"entropy {value(objective.entropy_coef)}" + (f" by {by}" if by else "")
    if objective.of_the_whole_step:
        yield "no micro-batches"
    wanted = [what for what in wants(objective) if "log_probs" not in what]
    if wanted:
        yield f"wants {', '.join(wanted)}"


def wants(objective: Objective) -> list[str]:
    """What `prepare` must be given beside the rollout and its rewards."""
    needed = objective.needs | ({"ref_log_probs"} if objective.needs_reference else set())
    found = [code(name) for name in sorted(needed - {"rewards_by_function", "reward_weights"})]
    return (["rewards [P, G, K]"] if "rewards_by_function" in needed else []) + found


# -- a section for each ----------------------------------------------------------------------------


def chosen(objective: Objective) -> list[tuple[str, str, object]]:
    """Question, field, choice: of each field that is not left alone."""
    left_alone = {f.name: f.default for f in dataclasses.fields(Objective)}
    found = []
    for question, field in FIELDS:
        choice = getattr(objective, field)
        idle = question == "KL" and not objective.kl_coef
        if idle or (choice == left_alone[field] and field != "log_ratio"):
            continue
        each = choice if isinstance(choice, tuple) else (choice,)
        found += [(question, field, one) for one in each]
    return found


def sections() -> Iterator[str]:
    for module, presets in by_date().items():
        title, source = docstrings.title_and_source(module)
        yield f"### {title}\n"
        yield f"{file_link(path(module))}, {with_links(source)}\n"
        for preset in presets:
            yield from section(preset)


def section(preset: str) -> Iterator[str]:
    """Its docstring, with the arguments and the choices in tables."""
    function, objective = getattr(objectives, preset), composed(preset)
    yield f"#### {preset}\n"
    yield one_line(docstrings.paragraphs(doc(function))[0]) + "\n"
    for paragraph in docstrings.body(doc(function)):
        if paragraph.startswith(" "):
            yield f"```text\n{inspect.cleandoc(paragraph)}\n```\n"
        else:
            # What begins like "Run:" is a paragraph of its own.
            yield re.sub(r"\n(?=(?:Choices?|Run)\b[^.]{0,40}:)", "\n\n", paragraph) + "\n"
    said = meanings(preset)
    arguments = [
        (code(p.name), "required" if p.default is p.empty else value(p.default), said[p.name])
        for p in parameters(function)
    ]
    if arguments:
        yield table(("argument", "default", "what it is"), arguments)
    rows = []
    for question, field, choice in chosen(objective):
        shown, in_effect = value(choice), ""
        if callable(choice):
            shown = linked(choice)
            in_effect = ", ".join(f"{name}={value(v)}" for name, v in settings(choice).items())
        rows.append((question, code(field), shown, code(in_effect)))
    yield table(("question", "field", "choice", "settings in effect"), rows)
    if wants(objective):
        yield f"`prepare` needs {', '.join(wants(objective))}.\n"
    own = [file for file in tests.of_preset(preset) if file not in tests.of_all_presets()]
    yield f"Tests: {', '.join(['[those of all](#one-by-one)', *map(tests.link, own)])}.\n"


def meanings(preset: str) -> dict[str, str]:
    """Argument -> what it is; where a docstring is silent, from the objective it refers to.

    Raises:
        ValueError: an argument without a word.
    """
    function = getattr(objectives, preset)
    found = docstrings.entries(doc(function))
    like = re.search(r"as\s+(?:in|for)\s+`(\w+)`", doc(function))
    if like and like[1] in PRESETS:
        found = meanings(like[1]) | found
    silent = [p.name for p in parameters(function) if p.name not in found]
    if silent:
        raise ValueError(f"{preset}: the docstring does not say what {silent[0]} is")
    return found


@functools.cache
def choosers() -> dict[str, int]:
    """Part, like `advantages.group_center` -> how many objectives choose it."""
    found: dict[str, int] = {}
    for preset in PRESETS:
        for part in {label(c) for _, _, c in chosen(composed(preset)) if callable(c)}:
            found[part] = found.get(part, 0) + 1
    return found
