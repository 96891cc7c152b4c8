"""Processes of the comparison with other libraries, one at a time: run, watched, stopped."""

import contextlib
import datetime
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import TextIO

from grpo_jax.cache_directory import cache_root

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIB = 2**30
# What would lead a peer's interpreter to packages that are not its own.
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class Failed(Exception):
    """A system that could not be measured; the message ends with the last lines it wrote."""


def say(line: str) -> None:
    print(f"[{datetime.datetime.now():%H:%M:%S}] {line}", file=sys.stderr, flush=True)


def run(
    command: Sequence[str],
    environ: dict[str, str],
    *,
    timeout: float,
    memory_limit: float = float("inf"),
) -> str:
    """Runs a command in the repository's root, tells its progress, returns what it printed.

    Args:
        command: its arguments.
        environ: added to this process's environment.
        timeout: seconds until it is stopped.
        memory_limit: resident bytes at which it is stopped, before the machine has none left.

    Raises:
        Failed: it ended with an error, or was stopped.
    """
    inherited = {name: text for name, text in os.environ.items() if name not in NOT_INHERITED}
    with tempfile.TemporaryFile("w+") as printed, tempfile.NamedTemporaryFile("w+") as written:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | environ,
            stdout=printed,
            stderr=written,
            start_new_session=True,
        )
        try:
            with open(written.name) as lines:
                stopped = watch(process, lines, time.monotonic() + timeout, memory_limit)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        printed.seek(0)
        written.seek(0)
        output, errors = printed.read(), written.read()
    if stopped or process.returncode:
        reason = stopped or f"ended with code {process.returncode}"
        raise Failed(last_lines(reason, output + errors))
    return output


def last_lines(reason: str, text: str) -> str:
    """A reason, and how a text ends, without this machine's paths."""
    for path, name in ((ROOT, "."), (cache_root(), "CACHE"), (pathlib.Path.home(), "~")):
        text = text.replace(str(path), name)
    return "\n".join([reason, *text.strip().splitlines()[-12:]])


def watch(
    process: subprocess.Popen, lines: TextIO, deadline: float, memory_limit: float
) -> str | None:
    """Waits until a process ends, repeating what it tells; or says why it has to be stopped."""
    while process.poll() is None:
        time.sleep(0.2)
        for line in lines:
            if line.startswith("peers: "):
                say(line.removeprefix("peers: ").rstrip())
        if time.monotonic() > deadline:
            return "stopped: out of time (--timeout)"
        resident = kilobytes(f"/proc/{process.pid}/status", "VmRSS") or 0
        if resident > memory_limit:
            return (
                f"stopped at {resident / GIB:.1f} GiB, before the machine has no memory left "
                "(--memory-limit; a lower --tokens-at-once needs less)"
            )
    return None


def kilobytes(file: str, name: str) -> int | None:
    """A value that Linux gives as `name: N kB`, in bytes; None where there is none."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(file).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
