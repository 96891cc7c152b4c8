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
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.peers_environments import ENVIRON, PEERS, known_flags, prepare_environment
from benchmarks.peers_processes import GIB, Failed, kilobytes, last_lines, run, say
from benchmarks.shapes import SHAPES
from benchmarks.timing import conditions
from grpo_jax.models.config import DecoderConfig

OURS = "grpo_jax"


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


def sizes(config: DecoderConfig) -> dict[str, Any]:
    """A decoder of the Llama shape as plain values: the numbers and flags of its config."""
    plain = {k: v for k, v in vars(config).items() if isinstance(v, int | float)}
    rotary = config.layers[0].rotary
    assert rotary is not None
    return plain | {"num_layers": config.num_layers, "rope_theta": rotary.theta}


def measure_peer(
    args: argparse.Namespace, name: str, prompt_len: int, new_tokens: int
) -> dict[str, Any]:
    peer = PEERS[name]
    python = prepare_environment(peer, args.timeout)
    flags = args.tunix_xla_flags if name == "tunix" else peer.xla_flags
    environ = {"XLA_FLAGS": known_flags(python, flags)} if flags else {}
    job = {
        "shape": sizes(SHAPES[args.shape]),
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
    report: dict[str, Any] = {
        **conditions(),
        "memory_bytes": kilobytes("/proc/meminfo", "MemTotal"),
        "settings": settings,
        "shapes": {},
    }
    for tokens in args.shapes:
        report["shapes"][tokens] = measure_shape(args, tokens)
        if args.out:  # after each: they take an hour
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report["shapes"])
    print(json.dumps(report))
    systems = [s for measured in report["shapes"].values() for s in measured["systems"].values()]
    return int(any("error" in system for system in systems))


if __name__ == "__main__":
    sys.exit(main())
