"""What an objective refuses: examples, and the message that each of them gets.

`answers` provokes them. `unprovoked` lists the refusals in the code that no example meets, so that
the list is whole: an example more belongs here for each.
"""

import ast
import dataclasses
import functools
import inspect
import pathlib
import traceback
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import objectives
from grpo_jax.objectives import base, checks, choices
from grpo_jax.ops import (
    advantages,
    corrections,
    kl,
    ratios,
    references,
    returns,
    selection,
    weights,
)
from grpo_jax.types import Rollout

COMPOSING = (
    "replace(grpo(), log_ratio=None)",
    "replace(gpg(), log_ratio=ratios.token)",
    "replace(gspo(), weights=weights.token_mean)",
    "replace(grpo(), length_weighted=True)",
    "replace(vespo(), corrections=(corrections.truncated,))",
    "replace(grpo(), weights=advantages.group_center)",
    "replace(grpo(), kl=None)",
    "grpo(kl_coef=-0.04)",
    "deepseek_r1(kl_coef=0.0)",
    "replace(grpo(), kl_in_reward=True)",
    "replace(remax(), advantages=advantages.greedy_baseline)",
    "replace(rloo(), kl=kl.ratio_corrected)",
    "replace(grpo(), entropy_coef=-0.001)",
    "replace(skywork_or1(), entropy_controller=None)",
    "dapo(max_sampling_rounds=0)",
    "grpo(clip_eps=-0.2)",
    "replace(grpo(), corrections=(corrections.truncated, corrections.masked))",
    "replace(gpg(), sampler_anchor=True)",
    "replace(dapo(), select=selection.signal_groups)",
    "replace(dapo(), weights=None)",
    "replace(gmpo(), log_ratio=ratios.sequence)",
    "replace(grpo(), entropy_coef=jnp.inf)",
    "tis(max_ratio=0.5)",
    "pkpo(k=0)",
    "deepseek_r1(refresh_every=0)",
)
AHEAD = (
    "check_ahead(grpo())",
    "check_adapters(replace(grpo(), reference=partial(references.polyak, rate=0.1)))",
    "check_ahead(replace(dapo(), corrections=tis().corrections))",
)
PREPARING = (
    "prepare(grpo(), rollout, rewards[0])",
    "prepare(grpo(), rollout, rewards, old_log_probs=log_probs[..., :2])",
    "prepare(grpo(), rollout, rewards, reward_weights=jnp.ones(2))",
    "prepare(gdpo(), rollout, rewards)",
    "prepare(rloo(), rollout, rewards)",
    "prepare(grpo(), rollout, rewards, signal_rewards=rewards)",
    "prepare(dapo(), rollout, rewards, old_support_log_mass=log_probs)",
    "prepare(replace(dapo(), advantages=first_only), rollout, rewards)",
    "prepare(remax(kl_coef=0.0), rollout, rewards)",
    "prepare(grpo(), rollout, rewards, greedy_rewards=jnp.zeros(2))",
)
IN_THE_LOSS = (
    "dapo().loss(log_probs[..., :2], prepare(dapo(), rollout, rewards))",
    "grpo().loss(log_probs, prepare(grpo(), rollout, rewards))",
    "skywork_or1().loss(log_probs, prepare(skywork_or1(), rollout, rewards))",
    "vespo().loss(log_probs, prepare(vespo(), rollout, rewards))",
    "tis().loss(log_probs, prepare(tis(), rollout, rewards))",
    "dapo().loss(log_probs, prepare(dapo(), rollout, rewards), coefs={'beta': 0.1})",
    "one_loss.loss(log_probs, prepare(one_loss, rollout, rewards))",
    "by_token.loss(log_probs, prepare(by_token, rollout, rewards))",
)
ONE_LOSS = "replace(gmpo(), advantages=returns.reinforce_plus_plus_baseline)"
BY_TOKEN = "replace(gspo(), advantages=returns.reinforce_plus_plus_baseline)"


@functools.cache
def answers() -> dict[str, ValueError]:
    """Example -> the error that it meets.

    Raises:
        RuntimeError: it meets none.
    """
    found = {}
    for example in COMPOSING + AHEAD + PREPARING + IN_THE_LOSS:
        try:
            # Traced, which is enough to be refused, and computes nothing.
            jax.eval_shape(functools.partial(_evaluate, example), _arrays())
        except ValueError as error:
            found[example] = error
        else:
            raise RuntimeError(f"{example} is not refused any more; take it off the list")
    return found


def _evaluate(example: str, arrays: dict[str, Any]) -> None:
    eval(example, _NAMES | arrays)


def unprovoked() -> list[str]:
    """Refusals in `objectives` that no example meets, as FILE:LINE."""
    frames = [f for e in answers().values() for f in traceback.extract_tb(e.__traceback__)]
    met = {(frame.filename, frame.lineno) for frame in frames}
    return [
        f"{pathlib.Path(file).name}:{lines[0]}"
        for file, lines in _sites()
        if not any((file, line) in met for line in lines)
    ]


def _sites() -> list[tuple[str, range]]:
    """File and lines of what refuses: `raise ...`, or a call of `refuse`."""
    found = []
    for module in (base, checks, choices, inspect.getmodule(objectives.prepare)):
        assert module is not None
        assert module.__file__ is not None
        for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "refuse":
                node.body.clear()  # what it raises is its callers'
            calls = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "refuse"
            if calls or isinstance(node, ast.Raise):
                assert isinstance(node, ast.expr | ast.stmt)
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found.append((module.__file__, lines))
    return found


_NAMES: dict[str, Any] = {name: getattr(objectives, name) for name in objectives.__all__} | {
    "advantages": advantages,
    "by_token": dataclasses.replace(
        objectives.gspo(), advantages=returns.reinforce_plus_plus_baseline
    ),
    "check_ahead": checks.check_ahead,
    "check_adapters": checks.check_adapters,
    "corrections": corrections,
    "first_only": lambda rewards: rewards[:, 0],
    "jnp": jnp,
    "kl": kl,
    "one_loss": dataclasses.replace(
        objectives.gmpo(), advantages=returns.reinforce_plus_plus_baseline
    ),
    "partial": partial,
    "ratios": ratios,
    "references": references,
    "replace": dataclasses.replace,
    "returns": returns,
    "selection": selection,
    "weights": weights,
}


def _arrays() -> dict[str, Any]:
    """Two groups of two completions of three tokens."""
    shape = (2, 2, 3)
    rollout = Rollout.from_arrays(jnp.ones(shape, bool))
    return {"rollout": rollout, "rewards": jnp.zeros(shape[:2]), "log_probs": jnp.zeros(shape)}
