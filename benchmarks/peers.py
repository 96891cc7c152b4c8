"""One GRPO step here and in two other libraries, one after the other on this machine.

    python -m benchmarks.peers      # 64+64, 512+64 and 16+256 tokens, each system
    python -m benchmarks.peers --shapes 64+64 --only tunix grpo_jax --steps 3
    python -m benchmarks.peers --shape toy --shapes 4+4 --prompts 2 --group 2 --steps 2  # a check

Each system gets the same work: P prompts of exactly L random tokens, G completions of exactly T
tokens each (no end token), sampled at temperature 1 from all of the vocabulary; a reward that costs
nothing; a KL term to a frozen reference; one AdamW update of all weights. float32, random weights
of the same shape, the same number of threads. Each of the others asserts those numbers at every
step, in `peers_trl.py` and `peers_tunix.py`, which also say what each does differently.

Measured: wall seconds of whole steps (median, after a warm-up that compiles), of their parts where
the system's own methods can be timed, and the largest resident memory of the process, start and
compilation included. Not measured: anything on an accelerator; whether a library learns as fast by
step; text, padding and end tokens, which cost each library something else.

For each shape ours runs before and after the others, to show how much the machine drifts; ratios
take the mean of the two. The systems run in environments made for them, in the cache folder
(`$GRPO_JAX_CACHE`, else `$XDG_CACHE_HOME/grpo_jax`, else `~/.cache/grpo_jax`).

The activations of all rows at once do not always fit. TRL and Tunix take at most
`--tokens-at-once` tokens through the network while they train, in whole groups, and add up
gradients; that costs them hardly any time on a CPU, and lowers their memory.

The last line on stdout is one JSON object, also written to `--out`. The exit code is 1 if a system
failed; the others are measured all the same.
"""

import argparse
import contextlib
import dataclasses
import datetime
import glob
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

from benchmarks.shapes import SHAPES

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = "grpo_jax"
GIB = 2**30


class Peer(NamedTuple):
    """Another library: where its environment goes, what is installed, what runs in it.

    Attributes:
        environment: folder name in the cache.
        requirements: for the installer; what they bring is reported with each result.
        driver: module that measures it.
        xla_flags: set where its XLA knows them.
    """

    environment: str
    requirements: tuple[str, ...]
    driver: str
    xla_flags: str = ""


PEERS = {
    # torch comes from where the installer is configured to look. A build with CUDA's libraries, as
    # on PyPI for Linux, holds about 0.3 GiB more than one without; "+cpu" in the version tells.
    "trl": Peer(
        "trl-1.16.0",
        ("trl==1.16.0", "transformers==5.23.0", "torch==2.13.0"),
        "benchmarks.peers_trl",
    ),
    # With XLA's default order of operations on a CPU, more of the activations are held at once:
    # the plan of a train step of this shape, 32 rows of 64 + 64 tokens, is a quarter smaller so.
    # `--tunix-xla-flags=` leaves the default.
    "tunix": Peer(
        "tunix-0.1.7",
        ("google-tunix==0.1.7",),
        "benchmarks.peers_tunix",
        xla_flags="--xla_cpu_enable_concurrency_optimized_scheduler=false",
    ),
}
# What each system is given: no accelerator, no model hub.
ENVIRON = {
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# What would lead a peer's interpreter to packages that are not its own.
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class Failed(Exception):
    """A system that could not be measured; the message ends with the last lines it wrote."""


def say(line: str) -> None:
    print(f"[{datetime.datetime.now():%H:%M:%S}] {line}", file=sys.stderr, flush=True)


# Processes, one at a time


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
    for path, name in ((ROOT, "."), (cache_folder(), "CACHE"), (pathlib.Path.home(), "~")):
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


# Environments of the peers


def find_python() -> str:
    """An interpreter for the peers: this one, or else a 3.12; they have wheels for 3.11 to 3.13."""
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    candidates = [sys.executable, "python3.12", *glob.glob(f"{pyenv}/versions/3.12*/bin/python")]
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", "3.12"], capture_output=True, text=True)
        candidates.append(found.stdout.strip())
    check = "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
    for candidate in filter(None, candidates):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", check], capture_output=True).returncode == 0:
                return candidate
    raise Failed("no Python 3.11, 3.12 or 3.13 for the peers; install one, as python3.12 on PATH")


def cache_folder() -> pathlib.Path:
    if own := os.environ.get("GRPO_JAX_CACHE"):
        return pathlib.Path(own).absolute()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grpo_jax"


def prepare_environment(peer: Peer, timeout: float) -> str:
    """The interpreter of the peer's virtual environment, made if there is none.

    A marker, written last, says what it was made of; a folder without it is made anew.
    """
    folder = cache_folder() / "peers" / peer.environment
    marker, wanted = folder / "installed.txt", "\n".join(peer.requirements) + "\n"
    python = str(folder / "bin" / "python")
    if marker.exists() and marker.read_text() == wanted:
        return python
    if folder.exists():
        shutil.rmtree(folder)
    base = find_python()
    say(f"making the environment {peer.environment}, once: some minutes, some gigabytes")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("uv"):
        make = ["uv", "venv", "--quiet", "--python", base, str(folder)]
        install = ["uv", "pip", "install", "--python", python]
    else:
        make = [base, "-m", "venv", str(folder)]
        install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    run(make, {}, timeout=timeout)
    run([*install, *peer.requirements], {}, timeout=timeout)
    marker.write_text(wanted)
    return python


def known_flags(python: str, flags: str) -> str:
    """The flags, if the environment's XLA starts with them: it ends a process otherwise."""
    try:
        run([python, "-c", "import jax; jax.devices()"], ENVIRON | {"XLA_FLAGS": flags}, timeout=99)
    except Failed:
        say(f"this jax does not know {flags}")
        return ""
    return flags


# Measurements


def micro_batches(prompts: int, tokens_of_a_group: int, tokens_at_once: int) -> int:
    """Into how many parts of whole groups the rows are cut; 0 tokens at once takes all."""
    for parts in range(1, prompts + 1):
        fits = tokens_of_a_group * (prompts // parts) <= tokens_at_once
        if prompts % parts == 0 and (fits or not tokens_at_once):
            return parts
    return prompts


def measure_ours(args: argparse.Namespace, prompt_len: int, new_tokens: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.step", "--shape", args.shape, "--dtype", "float32"]
    for name, value in {
        "prompts": args.prompts,
        "group": args.group,
        "prompt-len": prompt_len,
        "new-tokens": new_tokens,
        "steps": args.steps,
    }.items():
        command += [f"--{name}", str(value)]
    return measure(args, command, {})


def measure_peer(
    args: argparse.Namespace, name: str, prompt_len: int, new_tokens: int
) -> dict[str, Any]:
    peer = PEERS[name]
    python = prepare_environment(peer, args.timeout)
    flags = args.tunix_xla_flags if name == "tunix" else peer.xla_flags
    environ = {"XLA_FLAGS": known_flags(python, flags)} if flags else {}
    job = {
        "shape": dataclasses.asdict(SHAPES[args.shape]),
        "prompts": args.prompts,
        "group": args.group,
        "prompt_len": prompt_len,
        "new_tokens": new_tokens,
        "steps": args.steps,
        "micro_batches": micro_batches(
            args.prompts, args.group * (prompt_len + new_tokens), args.tokens_at_once
        ),
        "threads": args.threads,
    }
    return measure(args, [python, "-m", peer.driver, json.dumps(job)], environ)


def measure(
    args: argparse.Namespace, command: Sequence[str], environ: dict[str, str]
) -> dict[str, Any]:
    """What a process of one system reports: the JSON object in its last line."""
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    free = kilobytes("/proc/meminfo", "MemAvailable")
    limit = args.memory_limit * GIB if args.memory_limit else (free or float("inf")) - GIB
    output = run(command, ENVIRON | threads | environ, timeout=args.timeout, memory_limit=limit)
    try:
        return json.loads(output.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise Failed(last_lines("its last line is no JSON", output)) from None


def measure_shape(args: argparse.Namespace, tokens: str) -> dict[str, Any]:
    """All systems at one L+T: ours first and last where others are measured too."""
    prompt_len, new_tokens = map(int, tokens.split("+"))
    order = [name for name in PEERS if name in args.only]
    if OURS in args.only:
        order = [OURS, *order, OURS] if order else [OURS]
    found = {}
    for name in order:
        say(f"{tokens} tokens, {name}: {args.steps} steps after a warm-up")
        try:
            if name == OURS:
                report = measure_ours(args, prompt_len, new_tokens)
            else:
                report = measure_peer(args, name, prompt_len, new_tokens)
            say(f"{tokens} tokens, {name}: {summary(report)}")
        except Failed as failure:
            report = {"error": str(failure)}
            say(f"{tokens} tokens, {name}: {failure}")
        found.setdefault(name, []).append(report)
    systems = {name: merged(runs) for name, runs in found.items()}
    return {"systems": systems, "ratios": ratios(systems)}


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One run as it is; of two, both, and the means of their seconds and bytes."""
    if len(runs) == 1:
        return runs[0]
    measured = [run for run in runs if "error" not in run]
    found: dict[str, Any] = {"runs": runs}
    if len(measured) < len(runs):
        found["error"] = next(run["error"] for run in runs if "error" in run)
    for name, value in measured[0].items() if measured else ():
        if name.endswith(("_seconds", "_bytes")) and isinstance(value, int | float):
            found[name] = statistics.fmean(run[name] for run in measured)
    return found


def ratios(systems: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each peer, its time by ours (above 1: ours is faster) and our memory by its own."""
    ours = systems.get(OURS, {})
    return {
        name: {
            "time_peer_by_ours": peer["step_seconds"] / ours["step_seconds"],
            "memory_ours_by_peer": ours["peak_rss_bytes"] / peer["peak_rss_bytes"],
        }
        for name, peer in systems.items()
        if name != OURS and "step_seconds" in peer and "step_seconds" in ours
    }


# The report


def summary(report: dict[str, Any]) -> str:
    parts = {
        name.removesuffix("_seconds"): report[name]
        for name in ("sample_seconds", "score_seconds", "reference_seconds", "update_seconds")
        if report.get(name) is not None
    }
    told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
    return (
        f"{report['step_seconds']:.2f} s a step ({told}), "
        f"{report['peak_rss_bytes'] / GIB:.2f} GiB at most"
    )


def print_table(shapes: dict[str, dict[str, Any]]) -> None:
    """One line for each run of each system."""
    for tokens, measured in shapes.items():
        print(f"\n{tokens} tokens", file=sys.stderr)
        for name, system in measured["systems"].items():
            for report in system.get("runs", [system]):
                failed = report.get("error", "").splitlines()[:1]
                line = f"failed: {failed[0]}" if failed else summary(report)
                print(f"  {name:10}{line}", file=sys.stderr)
        for name, ratio in measured["ratios"].items():
            time_ratio, memory_ratio = ratio.values()
            print(
                f"  {name} / {OURS} in time: {time_ratio:.2f}; "
                f"{OURS} / {name} in memory: {memory_ratio:.2f}",
                file=sys.stderr,
            )


def describe_machine() -> dict[str, Any]:
    """Processor and memory; nothing that names the machine."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    total = kilobytes("/proc/meminfo", "MemTotal")
    return {
        "cpu": cpu,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": total and round(total / GIB, 1),
    }


def our_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("grpo-jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    with contextlib.suppress(OSError):
        git = ["git", "describe", "--always", "--dirty"]
        described = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
        found["commit"] = described.stdout.strip()
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    systems = [OURS, *PEERS]
    parser.add_argument("--shapes", nargs="+", default=["64+64", "512+64", "16+256"], metavar="L+T")
    parser.add_argument("--steps", type=int, default=5, help="timed, after the warm-up")
    parser.add_argument("--only", nargs="+", choices=systems, default=systems)
    parser.add_argument("--prompts", type=int, default=4, help="P")
    parser.add_argument("--group", type=int, default=8, help="G")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m", help="decoder")
    parser.add_argument("--tokens-at-once", type=int, default=5000, help="of peers; 0 is all")
    parser.add_argument("--tunix-xla-flags", default=PEERS["tunix"].xla_flags)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds of one process")
    parser.add_argument(
        "--memory-limit", type=float, help="GiB of one process; what is free, less 1"
    )
    parser.add_argument("--out", type=pathlib.Path, help="file for the JSON")
    args = parser.parse_args(arguments)
    for tokens in args.shapes:
        if not all(part.isdecimal() for part in tokens.split("+")) or tokens.count("+") != 1:
            parser.error(f"--shapes takes L+T, as 64+64; not {tokens}")
    return args


def main() -> int:
    args = parse(sys.argv[1:])
    if hasattr(os, "sched_setaffinity"):
        # XLA takes as many threads as there are processors it may use; children inherit.
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, processors[: args.threads])
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    report = {
        "date": f"{datetime.date.today()}",
        "machine": describe_machine(),
        "versions": our_versions(),
        "command": command_line(sys.argv[1:]),
        "settings": settings,
        "shapes": {tokens: measure_shape(args, tokens) for tokens in args.shapes},
    }
    print_table(report["shapes"])
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    systems = [s for measured in report["shapes"].values() for s in measured["systems"].values()]
    return int(any("error" in system for system in systems))


def command_line(arguments: Sequence[str]) -> str:
    """What was called, without the file it was told to write."""
    kept = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if before != "--out" and not argument.startswith("--out")
    ]
    return shlex.join(["python", "-m", "benchmarks.peers", *kept])


if __name__ == "__main__":
    sys.exit(main())
