"""Timing of device work, and the one JSON object that each benchmark prints last."""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import jax


def seconds_of(work: Callable[[], Any], *, repeats: int = 5) -> float:
    """Median wall-clock seconds of `work`, which has been called once before (it compiles)."""
    jax.block_until_ready(work())
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(work())
        found.append(time.perf_counter() - started)
    return statistics.median(found)


class Laps:
    """Seconds between calls, by name: what the device was given is waited for."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, results: Any = None) -> None:
        jax.block_until_ready(results)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def conditions() -> dict[str, Any]:
    """Where and when a figure was measured."""
    device = jax.devices()[0]
    kind = _cpu() if device.platform == "cpu" else device.device_kind
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", _module(), *_arguments()]),
        "commit": _commit(),
        "device": f"{device.platform}: {kind}",
        "cores": len(_affinity()),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def report(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints one JSON object as the last line, and writes it to `--out`."""
    found = conditions() | found
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found), flush=True)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def _arguments() -> list[str]:
    """What was asked, without the file that the result goes to."""
    pairs = zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)
    return [here for before, here in pairs if before != "--out" and not here.startswith("--out")]


def _commit() -> str:
    """Of the source measured; a plus where it has been changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _affinity() -> set[int]:

    return (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )
