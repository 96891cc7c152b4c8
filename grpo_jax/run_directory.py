"""What a run leaves on disk, and what may be done with what is there already. No JAX.

config.json         the experiment, its values, versions, when it started
metrics.jsonl       a line a step
evaluations.jsonl   a line each time held-out questions were asked
completions.jsonl   a line a group: prompt, completions, each reward, advantages
checkpoints/        Orbax
summary.json        the figures at the end
report.html         all of it to look at
"""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.config import Config, differences
from grpo_jax.rewards.base import Completion, Question
from grpo_jax.version import __version__

LOGS = ("metrics.jsonl", "evaluations.jsonl", "completions.jsonl")
CLOCK = ("step_time", "tokens_per_second", "eval_time")
"""Keys of log lines that are readings of a clock: all else is the same when a run is repeated."""


class RunStopped(RuntimeError):
    """A run cannot go on; the message says why, what was saved and how to continue."""


class RunInterrupted(RunStopped):
    """A signal asked a run to stop; what it reached is saved."""


class RunDirectory:
    """The files of one run.

    Use `create` for a new run and `reopen` to continue one; both refuse before they write.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(
        cls, config: Config, rewards: Mapping[str, float], objective: Mapping[str, str]
    ) -> "RunDirectory":
        """A new directory with the config in it, the weight of each reward function, and what the
        objective is made of (`objectives.description`).

        Raises:
            ValueError: the directory holds something already.
        """
        experiment = experiment_of(config)
        path = Path(config.run_dir) if config.run_dir else _new_name(experiment)
        check_unused(path)
        path.mkdir(parents=True, exist_ok=True)
        saved = {
            "experiment": experiment,
            "started": _now(),
            "versions": _versions(),
            "rewards": dict(rewards),
            "objective": dict(objective),
            "config": dataclasses.asdict(config),
        }
        run = cls(path)
        run.write("config.json", to_json(saved, indent=2) + "\n")
        return run

    @classmethod
    def reopen(
        cls, config: Config, rewards: Mapping[str, float], objective: Mapping[str, str]
    ) -> "RunDirectory":
        """The directory of a run to be continued.

        Raises:
            ValueError: it holds no run, or one of another experiment, with another config (lists
                every field that differs), other rewards or another objective.
        """
        path = Path(config.run_dir)
        saved, experiment = read_config(path), experiment_of(config)
        if saved["experiment"] != experiment:
            raise ValueError(
                f"{path} holds a run of {saved['experiment']}, not of {experiment}; resume it with "
                "that experiment, or choose another --run-dir"
            )
        changed = differences(saved["config"], config)
        if saved.get("rewards") != dict(rewards):
            changed["rewards"] = (saved.get("rewards"), dict(rewards))
        # Values of the config are in the objective, too: told once.
        if not changed and saved.get("objective") != dict(objective):
            changed["objective"] = (saved.get("objective"), dict(objective))
        if changed:
            lines = [
                f"\n  {name}: {was!r} there, {now!r} here" for name, (was, now) in changed.items()
            ]
            raise ValueError(
                f"{path} holds a run with another config:{''.join(lines)}\n"
                "give the same values to resume it, or choose another --run-dir for a new run"
            )
        return cls(path)

    @property
    def began(self) -> str:
        """The day of its start, "2026-11-30"."""
        return str(read_config(self.path)["started"])[:10]

    def save_config(self, config: Config) -> None:
        """Notes in config.json that the run goes on, with which values and versions."""
        saved = read_config(self.path)
        now = {"date": _now(), "versions": _versions()}
        saved |= {"config": dataclasses.asdict(config), "resumed": [*saved.get("resumed", []), now]}
        self.write("config.json", to_json(saved, indent=2) + "\n")

    def append(self, name: str, lines: Iterable[dict[str, Any]]) -> None:
        """Adds JSON lines to a log, all of them or (if the machine stops here) a part."""
        with (self.path / name).open("a") as file:
            file.writelines(to_json(line) + "\n" for line in lines)

    def read(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a log; a last line that was cut off is left out."""
        return read_lines(self.path / name)

    def rewind(self, step: int) -> None:
        """Takes out of the logs what came after `step`: it will be done again."""
        for name in LOGS:
            lines = [line for line in self.read(name) if line["step"] <= step]
            self.write(name, "".join(to_json(line) + "\n" for line in lines))

    def write(self, name: str, text: str) -> None:
        """Replaces a file at once: a reader sees the old or the new one, never a part."""
        path = self.path / name
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text(text)
        os.replace(unfinished, path)


def experiment_of(config: Config) -> str:
    """Where an experiment is found again: `experiments.NAME`, or the path of its file."""
    module = sys.modules[type(config).__module__]
    name = module.__spec__.name if module.__spec__ else ""
    file = getattr(module, "__file__", None)
    return name if name.startswith("experiments.") or not file else str(Path(file).resolve())


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text in which what is no number, or not finite, is null.

    >>> to_json({"reward": float("nan"), "step": 1})
    '{"reward": null, "step": 1}'
    """

    def plain(x: Any) -> Any:
        if isinstance(x, float) and not math.isfinite(x):
            return None
        if isinstance(x, dict):
            return {key: plain(item) for key, item in x.items()}
        return [plain(item) for item in x] if isinstance(x, list | tuple) else x

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def group_lines(
    step: int,
    questions: Sequence[Question],
    completions: Sequence[Sequence[Completion]],
    by_function: Mapping[str, np.ndarray],
    rewards: np.ndarray,
    advantages: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """The lines of completions.jsonl, one a group.

    Args:
        step: the training step.
        questions: P of them.
        completions: P groups of G.
        by_function: name -> [P, G], of each reward function.
        rewards: [P, G], combined.
        advantages: [P, G, 1] or [P, G, T]; credit by token is written as its mean.
    """
    for p, (question, group) in enumerate(zip(questions, completions, strict=True)):
        rows = [
            {
                "text": row.text,
                "num_tokens": row.num_tokens,
                "truncated": row.truncated,
                "rewards": {name: float(values[p, g]) for name, values in by_function.items()},
                "reward": float(rewards[p, g]),
                "advantage": float(advantages[p, g, : max(row.num_tokens, 1)].mean()),
            }
            for g, row in enumerate(group)
        ]
        yield {
            "step": step,
            "question": question.number,
            "prompt": question.prompt,
            "answer": question.answer,
            "completions": rows,
        }


def check_unused(path: Path) -> None:
    """Raises ValueError if a directory holds something already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "another run" if (path / "config.json").is_file() else "something else"
        raise ValueError(
            f"{path} already holds {kind}; nothing was written. Choose another --run-dir"
            + (", or continue that run with --resume" if kind == "another run" else "")
        )


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run directory.

    Raises:
        ValueError: it holds none, or not a run's.
    """
    try:
        saved = json.loads((path / "config.json").read_text())
        if "experiment" in saved and "config" in saved:
            return saved
    except (OSError, ValueError):
        pass
    raise ValueError(f"{path} holds no run: there is no config.json of one in it")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, without a last one that was cut off; none if there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {line[:80]!r}") from None
    return found


def _new_name(experiment: str) -> Path:
    stem = Path(experiment.removeprefix("experiments.")).stem
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path("runs") / f"{stem}-{now}"
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{stem}-{now}-{number}")
    return path


def _now() -> str:
    return datetime.datetime.now().isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "transformers")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"grpo-jax": __version__, "python": platform.python_version(), **found}
