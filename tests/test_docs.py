"""The pages in docs/: what is made from the code is up to date, and what is code runs."""

import doctest
import itertools
import pathlib
import re
import sys
import types

import pytest

import grpo_jax
from grpo_jax.objectives import Objective
from grpo_jax.objectives.choices import PLACES

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import objectives_page  # noqa: E402
from page import docstrings, papers, parts, refusals  # noqa: E402

ADDING = ROOT / "docs" / "adding-a-paper.md"
PAGES = (objectives_page.PAGE, ADDING)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


# -- docs/objectives.md ----------------------------------------------------------------------------


def test_the_page_is_as_the_code_is():
    made = objectives_page.page()
    same = made == objectives_page.PAGE.read_text()
    assert same, "run python scripts/objectives_page.py"


def test_every_objective_has_a_row_and_a_section():
    text = objectives_page.PAGE.read_text()
    for preset in papers.PRESETS:
        assert text.count(f"\n| [`{preset}`](#{preset}) | ") == 1, preset
        assert text.count(f"\n#### {preset}\n") == 1, preset
        assert ">>>" in docstrings.doc(getattr(grpo_jax.objectives, preset)), preset


def test_every_part_is_listed_and_says_where_it_is_from():
    text = objectives_page.PAGE.read_text()
    by_module = dict(re.findall(r"^#### ops\.(\w+)\n(.*?)(?=^##)", text + "\n##", re.M | re.S))
    assert len(parts.parts()) > 80
    for name, function in parts.parts().items():
        module, _, short = name.partition(".")
        assert by_module[module].count(f"\n| `{short}` | ") == 1, f"{name} is not listed"
        assert ">>>" in docstrings.doc(function), f"{name} has no doctest"
        assert parts.source_of(name), f"{name} has neither a reference nor a reason to have none"
    left = [name for name in parts.WITHOUT_REFERENCE if name not in parts.parts()]
    assert not left
    assert not [name for name in parts.WITHOUT_REFERENCE if "Reference: " in _doc(name)]


def _doc(name):
    return docstrings.doc(parts.parts()[name])


def test_every_refusal_has_an_example():
    assert not refusals.unprovoked(), "give scripts/page/refusals.py an example that meets it"


# -- docs/adding-a-paper.md ------------------------------------------------------------------------


def test_the_names_are_those_of_each_place():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", ADDING.read_text(), re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", places)) for name, places in rows}
    assert len(listed) == len(rows)
    for place, names in PLACES.items():
        assert {name for name, places in listed.items() if place in places} == names, place
    assert set().union(*listed.values()) == set(PLACES)


def run_blocks(page, monkeypatch):
    """Runs the Python of a page from top to bottom.

    A block that begins with the name of a file is that module, and later ones can import it; what
    is a test in it is run. Other blocks and the lines after >>> share one namespace.
    """
    shared = {"__name__": page.stem}
    text = page.read_text()
    count = 0
    for block in FENCED.finditer(text):
        language, source = block.groups()
        line = text[: block.start()].count("\n") + 1
        where = f"{page}, block in line {line}"
        if language == "python":
            code = compile("\n" * line + source, page, "exec")
            file = re.match(r"# (\S+)\.py\n", source)
            if file:
                module = types.ModuleType(file[1].replace("/", "."))
                monkeypatch.setitem(sys.modules, module.__name__, module)
                exec(code, vars(module))
                run_tests(module)
            else:
                exec(code, shared)
                for function in list(shared.values()):
                    own = getattr(function, "__module__", None) == page.stem
                    if own and ">>>" in (function.__doc__ or ""):
                        run_examples(function.__doc__, dict(shared), where)
        elif language == "pycon":
            run_examples(source, shared, where)
        count += language in ("python", "pycon")
    return count


def run_examples(source, names, where):
    """Lines after >>>; messages may be broken into lines."""
    test = doctest.DocTestParser().get_doctest(source, names, where, None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said = []
    runner.run(test, out=said.append, clear_globs=False)
    assert test.examples
    assert not runner.failures, f"{where}:\n{''.join(said)}"
    names.update(test.globs)


def run_tests(module):
    """Each test of a module, for each combination of its parameters."""
    for name, function in vars(module).items():
        if not name.startswith("test_"):
            continue
        marks = [mark.args for mark in getattr(function, "pytestmark", [])]
        for values in itertools.product(*(values for _, values in marks)):
            function(**dict(zip([names for names, _ in marks], values, strict=True)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, monkeypatch):
    assert run_blocks(page, monkeypatch) == page.read_text().count("\n```py")
    if page is ADDING:
        experiment = sys.modules["experiments.toy_loo_gspo"]
        monkeypatch.setattr(grpo_jax, "run", lambda config, **given: given["objective"])
        assert isinstance(experiment.main(experiment.Config()), Objective)


# -- both ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = FENCED.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("https:"):
            continue
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
