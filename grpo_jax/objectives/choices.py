"""A choice: a function of named arrays, called with those that its signature names.

So the functions of `ops` stay plain functions of arrays, each with the arrays that its equation
has, and an objective can hold any of them, or one of yours: name an array and it is given.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Choice = Callable[..., Any]

PLACES = {
    # What an objective can give to the choice in each of its fields.
    "advantages": frozenset(
        {"rewards", "rewards_by_function", "reward_weights", "greedy_rewards", "lengths", "mask"}
        | {"truncated", "step_rewards", "step_ends", "values", "token_penalty", "old_log_probs"}
        | {"sum_sq_probs"}
    ),
    "select": frozenset({"mask", "rewards", "truncated", "entropy", "advantages"}),
    "weights": frozenset({"mask"}),
    "log_ratio": frozenset({"log_probs", "old_log_probs", "mask"}),
    "surrogate": frozenset(
        {"log_ratio", "log_probs", "old_log_probs", "advantages", "mask", "key"}
    ),
    "corrections": frozenset(
        {"log_probs", "old_log_probs", "sampler_log_probs", "advantages", "mask"}
    ),
    "kl": frozenset({"log_probs", "ref_log_probs", "token_log_ratio", "mask"}),
}


def function_of(choice: Choice) -> Choice:
    """The function behind settings that were bound with `functools.partial`."""
    while isinstance(choice, functools.partial):
        choice = choice.func
    return choice


def settings_of(choice: Choice) -> dict[str, Any]:
    """The settings that were bound with `functools.partial`; the outermost wins.

    >>> settings_of(functools.partial(functools.partial(max, key=len), default=0))
    {'key': <built-in function len>, 'default': 0}
    """
    found: dict[str, Any] = {}
    while isinstance(choice, functools.partial):
        found = {**choice.keywords, **found}
        choice = choice.func
    return found


def names(choice: Choice, *, required: bool = False) -> frozenset[str]:
    """The parameters that are not bound yet; only those without a default, if so asked.

    >>> sorted(names(functools.partial(lambda rewards, *, eps: 0, eps=1)))
    ['rewards']
    """
    parameters = inspect.signature(choice).parameters.values()
    bound = settings_of(choice)
    return frozenset(
        p.name
        for p in parameters
        if p.name not in bound and not (required and p.default is not p.empty)
    )


def name_of(choice: Choice) -> str:
    """What an error calls a choice: its name, with its file where that alone says nothing."""
    function = function_of(choice)
    name = getattr(function, "__name__", repr(function))
    return f"{function.__module__.rpartition('.')[2]}.{name}" if name == "credit" else name


def call(choice: Choice, arrays: Mapping[str, Any]) -> Any:
    """The choice's value, given those of the arrays that it names (None: there is no such array).

    Raises:
        ValueError: an array that it cannot do without is not there.
    """
    given = {name: arrays[name] for name in names(choice) if arrays.get(name) is not None}
    missing = sorted(names(choice, required=True) - given.keys())
    if missing:
        raise ValueError(
            f"{name_of(choice)} needs {', '.join(missing)}, which it was not given; "
            f"there are {', '.join(sorted(n for n in arrays if arrays[n] is not None))}"
        )
    return choice(**given)


def check_names(place: str, choice: Choice) -> None:
    """Refuses a choice that asks for an array which its place has not.

    Raises:
        ValueError: names the parameter, and what there is.
    """
    parameters = inspect.signature(choice).parameters
    unknown = sorted(names(choice, required=True) - PLACES[place])
    # An array may be optional; one that is never there is a slip of the pen.
    unknown += sorted(
        name
        for name in names(choice) - PLACES[place] - set(unknown)
        if parameters[name].default is None
    )
    if unknown:
        raise ValueError(
            f"{place}: {name_of(choice)} has a parameter {unknown[0]!r}; what it can "
            f"be given here is {', '.join(sorted(PLACES[place]))}. Bind settings with "
            "functools.partial"
        )
