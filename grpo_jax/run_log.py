"""Reading the files of a run, as far as they can be read: short, cut off, or with NaN in them."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from grpo_jax.charts import MAX_DRAWN

MAX_STEP = 10**12


@dataclasses.dataclass
class Run:
    """What the files of a run say, as far as they can be read."""

    config: dict[str, Any]
    summary: dict[str, Any]
    steps: list[dict[str, Any]]  # one for each training step, by step
    evaluations: list[dict[str, Any]]  # likewise; step 0 is before training
    groups: list[dict[str, Any]]  # of the last logged steps: whole steps, three groups or more
    counts: dict[int, list[dict[str, float]]]  # step -> facts of each logged group
    unreadable: dict[str, int]  # file -> how many lines (or files) were skipped


def read_run(run_dir: pathlib.Path) -> Run:
    """Reads a run directory. Of two records of a step, as a resumed run logs, the last counts."""
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run directory {str(run_dir)!r}; give one with metrics.jsonl")
    unreadable: dict[str, int] = {}
    config, summary = (
        next(_records(run_dir / name, unreadable, whole=True), {})
        for name in ("config.json", "summary.json")
    )
    steps: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    for name, found in (("metrics.jsonl", steps), ("evaluations.jsonl", evaluations)):
        for record in _records(run_dir / name, unreadable):
            found[record["step"]] = record
    counts: dict[int, list[dict[str, float]]] = {}
    recent: dict[int, list[dict[str, Any]]] = {}
    for record in _records(run_dir / "completions.jsonl", unreadable):
        found = record.get("completions")
        found = [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []
        rewards = [number(c, "reward") for c in found]
        finite = [r for r in rewards if abs(r) < MAX_DRAWN]
        mean = sum(finite) / len(finite) if finite else math.nan
        flat = float(len({r for r in rewards if not math.isnan(r)}) < 2)
        fact = {"completions": len(found), "mean": mean, "flat": flat}
        counts.setdefault(record["step"], []).append(fact)
        recent.setdefault(record["step"], []).append(record | {"completions": found, "mean": mean})
        while len(recent) > 1 and sum(map(len, recent.values())) - len(recent[min(recent)]) >= 3:
            del recent[min(recent)]  # the log may be larger than memory
    return Run(
        config=config,
        summary=summary,
        steps=[steps[s] for s in sorted(steps)],
        evaluations=[evaluations[s] for s in sorted(evaluations)],
        groups=[group for s in sorted(recent) for group in recent[s]],
        counts=dict(sorted(counts.items())),
        unreadable=unreadable,
    )


def _records(
    path: pathlib.Path, unreadable: dict[str, int], *, whole: bool = False
) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file: one a line, each with an integer `step`, or one `whole` file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for text in [lines.read()] if whole else lines:
            try:
                record = json.loads(text)
                if not whole:
                    record["step"] = int(record["step"])
                    if not 0 <= record["step"] <= MAX_STEP:
                        raise ValueError(record["step"])
                yield record | {}
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                unreadable[path.name] = unreadable.get(path.name, 0) + bool(text.strip())


def number(record: dict[str, Any], key: str) -> float:
    """A number of a record, NaN if it is missing or is none."""
    try:
        return float(record[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        return math.nan
