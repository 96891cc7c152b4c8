"""Other libraries' numbers, from compositions of ours; and the page that says what differs.

The numbers are those of `tests/fixtures/peers.npz`, the compositions those of
`scripts/peer_compositions.py`, which `docs/conformance.md` shows.
"""

import dataclasses
import inspect

import pytest

from grpo_jax.objectives import Objective
from grpo_jax.objectives.choices import function_of, settings_of
from scripts import conformance, peer_compositions

RECORDS = conformance.records()
EACH = pytest.mark.parametrize(
    "row", range(len(RECORDS)), ids=[conformance.composition(r).__name__ for r in RECORDS]
)
# The fields of an objective that answer each question.
QUESTIONS = {
    "credit": ("advantages",),
    "ratio": ("log_ratio",),
    "trust region": ("surrogate",),
    "reduction": ("weights",),
    "KL": ("kl", "kl_coef", "kl_in_reward"),
    "selection": ("select",),
}
PERMISSION = {"length_weighted"}  # changes no number


@EACH
def test_the_composition_computes_what_the_library_does(row):
    """All compute in float64 but Tunix, in float32; what is the largest entry: see `errors`."""
    errors = conformance.errors(row)
    assert max(errors.values()) < 1e-6, errors


def test_every_composition_belongs_to_a_record():
    functions = inspect.getmembers(peer_compositions, inspect.isfunction)
    composed = {
        name
        for name, function in functions
        if function.__module__ == peer_compositions.__name__
        and inspect.signature(function).return_annotation is Objective
    }
    assert composed == {conformance.composition(record).__name__ for record in RECORDS}


@EACH
def test_the_differences_that_are_named_are_those_that_there_are(row):
    record = RECORDS[row]
    theirs, ours = conformance.composition(record)(), conformance.PRESETS[record["name"]]()
    found = [q for q, fields in QUESTIONS.items() if answer(theirs, fields) != answer(ours, fields)]
    assert list(conformance.differences(record)) == found
    rest = {field.name for field in dataclasses.fields(Objective)} - PERMISSION
    for name in rest - {name for fields in QUESTIONS.values() for name in fields}:
        assert getattr(theirs, name) == getattr(ours, name), name


def answer(objective, fields):
    """What can be compared: functions, with all their settings."""
    if "kl" in fields and not objective.kl_coef:
        return None
    return [spelt_out(getattr(objective, name)) for name in fields]


def spelt_out(value):
    if isinstance(value, tuple):
        return [spelt_out(one) for one in value]
    if not callable(value):
        return value
    function = function_of(value)
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = defaults | settings_of(value)
    return function, {name: spelt_out(setting) for name, setting in settings.items()}


def test_the_page_is_what_the_script_writes():
    text = conformance.PAGE.read_text()
    assert text == conformance.page(text), "to be done: python -m scripts.conformance"
