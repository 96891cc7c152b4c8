"""What the drivers of the peers share: the job, the clock of its steps, and the line they print.

Runs inside the peers' own environments: standard library only, nothing of grpo_jax.
"""

import collections
import dataclasses
import functools
import importlib.metadata
import json
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Steps before those that are timed: the first compiles, or makes the first of each buffer.
WARMUP = 1


class Job(NamedTuple):
    """One measurement: P prompts of exactly L tokens, G completions of exactly T tokens each.

    Attributes:
        shape: the decoder's sizes, by the names that `DecoderConfig.llama` has for them.
        prompts: P.
        group: G.
        prompt_len: L.
        new_tokens: T.
        steps: how many are timed, after the warm-up.
        micro_batches: parts that the P * G rows are cut into for the reference and for the
            gradients; 1 takes all rows at once. Sampling always takes all.
        threads: of torch; XLA takes as many as the process may use processors.
    """

    shape: dict[str, Any]
    prompts: int
    group: int
    prompt_len: int
    new_tokens: int
    steps: int
    micro_batches: int
    threads: int

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def all_steps(self) -> int:
        return WARMUP + self.steps

    @property
    def end_id(self) -> int:
        """End and padding token: the first id the network has no logit for, so never drawn."""
        return self.shape["vocab_size"]


def read_job() -> Job:
    """The job, from the one argument of the process."""
    return Job(**json.loads(sys.argv[1]))


def random_prompts(job: Job) -> list[str]:
    """All steps' prompts, of L numbers each: a tokenizer of one number a token makes L tokens."""
    draw = random.Random(0)
    vocab_size = job.shape["vocab_size"]
    return [
        " ".join(str(draw.randrange(vocab_size)) for _ in range(job.prompt_len))
        for _ in range(job.prompts * job.all_steps)
    ]


def reward(completion: str) -> float:
    """A function of the completion's ids that costs nothing and seldom ties, in [0, 1)."""
    return sum(map(int, completion.split())) % 997 / 997


@dataclasses.dataclass
class Clock:
    """Wall time of steps, and of the peer's own methods within them.

    A step is the time between the ends of two: nothing a trainer does between its steps is left
    out. What is in no timed method (forward and backward pass, optimizer, batching, the trainer's
    bookkeeping) is the update.
    """

    steps: list[dict[str, float]] = dataclasses.field(default_factory=list)
    parts: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    last: float = dataclasses.field(default_factory=time.perf_counter)

    def time(
        self,
        owner: Any,
        method: str,
        part: str,
        *,
        counts: Callable[..., bool] = lambda *args, **kwargs: True,
        wait: Callable[[Any], Any] = lambda result: result,
    ) -> None:
        """Times a method of an object, calls for which `counts` holds, until `wait` returns."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*args, **kwargs):
            began = time.perf_counter()
            result = wait(inner(*args, **kwargs))
            if counts(*args, **kwargs):
                self.parts[part] += time.perf_counter() - began
            return result

        setattr(owner, method, timed)

    def step_ends(self) -> None:
        """To be called where the peer has ended a step, its results computed."""
        now = time.perf_counter()
        step = now - self.last
        measured = {"step_seconds": step, **self.parts}
        measured["update_seconds"] = step - sum(self.parts.values())
        self.steps.append(measured)
        self.parts.clear()
        self.last = now
        print(f"peers: step {len(self.steps)}: {step:.2f} s", file=sys.stderr, flush=True)

    def print_report(self, job: Job, packages: list[str], notes: dict[str, Any]) -> None:
        """One line of JSON: medians over the steps after the warm-up, peak memory, versions."""
        assert len(self.steps) == job.all_steps, f"{len(self.steps)} steps, not {job.all_steps}"
        timed = self.steps[WARMUP:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = {name: statistics.median(step[name] for step in timed) for name in timed[0]}
        report |= {
            "first_step_seconds": self.steps[0]["step_seconds"],
            "all_step_seconds": [step["step_seconds"] for step in timed],
            "micro_batches": job.micro_batches,
            "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in packages},
            **notes,
        }
        print(json.dumps(report), flush=True)
