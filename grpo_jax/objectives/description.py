"""What an objective is made of, in words: for a run's config.json and a model card."""

import dataclasses
from typing import Any

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.choices import function_of, settings_of


def described(objective: Objective) -> dict[str, str]:
    """Its choices and coefficients by field, those left out that are at their default.

    >>> from grpo_jax.objectives import grpo
    >>> found = described(grpo(kl_coef=0.05))
    >>> found["kl"], found["kl_coef"]
    ('kl.k3', '0.05')
    """
    found = {}
    for field in dataclasses.fields(objective):
        value = getattr(objective, field.name)
        if value is not None and value != field.default:
            found[field.name] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if not callable(value):
        return repr(value)
    function = function_of(value)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if not hasattr(function, "__qualname__") and dataclasses.is_dataclass(function):
        return repr(function)
    bound = ", ".join(f"{key}={_text(one)}" for key, one in settings_of(value).items())
    return f"{function.__module__.rpartition('.')[2]}.{name}" + (f"({bound})" if bound else "")
