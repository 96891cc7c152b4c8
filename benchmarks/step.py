"""One whole GRPO step, split into sampling, scoring, reference and update.

python -m benchmarks.step --shape smollm2-135m --prompts 4 --group 8 --prompt-len 64 \
    --new-tokens 64 --steps 5

Random weights, prompts of exactly `--prompt-len` random tokens, no end tokens: each row runs its
length. GRPO with a KL term to a frozen reference, AdamW, one update a step. The parts are waited
for one after another, and their sum is the step. The first step compiles and is reported apart.
"""

import argparse
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.floors import Limits, Work
from benchmarks.limits import bandwidth, few_rows_seconds, matrix_rate
from benchmarks.shapes import SHAPES
from benchmarks.timing import Laps, report
from grpo_jax import objectives
from grpo_jax.anchors import anchor_arrays, next_state
from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.metrics import peak_rss_bytes
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.models.layers import Compute
from grpo_jax.objectives.prepare import prepare
from grpo_jax.sampling import Sampling, prompt_keys
from grpo_jax.types import Prompts, Rollout, TrainState
from grpo_jax.update import update

PARTS = ("sample", "score", "reference", "update")


def shape_arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks of a shape have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", default="smollm2-135m", choices=SHAPES)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", default="", help="also write the JSON object to this file")
    return parser


def work_of(arguments: argparse.Namespace) -> Work:
    return Work(
        SHAPES[arguments.shape],
        arguments.prompts,
        arguments.group,
        arguments.prompt_len,
        arguments.new_tokens,
        jnp.dtype(arguments.dtype).itemsize,
    )


def limits_of(work: Work, dtype: str) -> Limits:
    return Limits(
        matrix_rate(jnp.dtype(dtype)),
        bandwidth(),
        few_rows_seconds(work.config, work.rows, jnp.dtype(dtype)),
    )


def random_prompts(work: Work, seed: int) -> Prompts:
    shape = (work.num_prompts, work.prompt_len)
    tokens = np.random.default_rng(seed).integers(0, work.config.vocab_size, shape)
    return Prompts(jnp.asarray(tokens, jnp.int32), jnp.ones(shape, bool))


def score(rollout: Rollout) -> jax.Array:
    """The share of even ids: any function of a completion that differs within a group."""
    shares = (np.asarray(rollout.completion) % 2 == 0).mean(axis=-1)
    return jnp.asarray(shares, jnp.float32)


def measured(work: Work, dtype: str, steps: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each part and of the whole `step`, a number a step; and those of the first step,
    compilation included."""
    policy = decoder_policy(work.config, Compute(dtype))
    objective = objectives.grpo(kl_coef=0.04)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    sampling = Sampling(max_new_tokens=work.new_tokens)
    params, ref_params = (init_params(work.config, jax.random.key(0)) for _ in range(2))
    state = TrainState(params, optimizer.init(params), jnp.zeros([], jnp.int32), jax.random.key(1))

    def step(state: TrainState) -> tuple[TrainState, dict[str, float]]:
        laps = Laps()
        keys = prompt_keys(state.key, state.step * work.num_prompts, work.num_prompts)
        prompts = random_prompts(work, int(state.step))
        rollout = sample_continuously(
            policy, state.params, prompts, keys, group_size=work.group_size, sampling=sampling
        )
        laps.lap("sample", rollout)
        rewards = score(rollout)
        laps.lap("score", rewards)
        anchors = anchor_arrays(
            policy, objective, state.params, ref_params, rollout, 1, temperature=1.0
        )
        laps.lap("reference", anchors)
        batch = prepare(objective, rollout, rewards=rewards, **anchors)
        state, metrics = update(policy, objective, optimizer, state, batch)
        state = next_state(objective, state, [metrics])
        laps.lap("update", state)
        return state, laps.seconds | {"step": sum(laps.seconds.values())}

    state, first = step(state)
    found: dict[str, list[float]] = {name: [] for name in first}
    for _ in range(steps):
        state, seconds = step(state)
        for name, value in seconds.items():
            found[name].append(value)
    return found, first["step"]


def main() -> None:
    arguments = shape_arguments(__doc__).parse_args()
    work = work_of(arguments)
    seconds, first = measured(work, arguments.dtype, arguments.steps)
    peak = peak_rss_bytes()  # before the limits are measured, which takes memory of its own
    limits = limits_of(work, arguments.dtype)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    floors = work.seconds(limits)
    floors["step"] = sum(floors.values())
    found: dict[str, Any] = {f"{name}_seconds": medians[name] for name in ("step", *PARTS)}
    found["floor_seconds"] = floors["step"]
    found["compile_seconds"] = max(first - medians["step"], 0.0)
    found["peak_rss_bytes"] = peak
    for name, floor in floors.items():
        if floor:
            found[f"{name}_floor_seconds"] = floor
            found[f"{name}_share_of_floor"] = floor / medians[name]
    report(found | {"limits": vars(limits), "all_step_seconds": seconds["step"]}, arguments)


if __name__ == "__main__":
    main()
