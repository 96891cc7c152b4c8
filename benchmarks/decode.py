"""Sampling alone: tokens a second over the number of rows, beside the floor of each.

    python -m benchmarks.decode --groups 1 2 4 8 16 --prompts 4 --prompt-len 64 --new-tokens 64
    python -m benchmarks.decode --mean-length 64 --new-tokens 256 --prompts 16 --rows-at-once 32

With `--mean-length` completions end: after each token with the same probability. Then also the time
in which ended completions keep their place until the last has ended (`kept_place_seconds`); and no
floor, which is that of completions that run their length.

`in_order_seconds` are the matrix products of one token of each row, each waiting for the one before
as in the network, and nothing else; the floor lets them overlap.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.floors import Limits, Work
from benchmarks.limits import bandwidth, few_rows_seconds, in_order_seconds, matrix_rate
from benchmarks.step import random_prompts, shape_arguments, work_of
from benchmarks.timing import report, seconds_of
from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.models.layers import Compute
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.types import Params, Rollout


def ending(vocab_size: int, mean_length: int) -> tuple[int, ...]:
    """So many end tokens that completions of nearly random tokens have this mean length."""
    count = max(1, round(vocab_size / mean_length))
    return tuple(np.random.default_rng(0).choice(vocab_size, count, replace=False).tolist())


def rollout_of(
    work: Work, dtype: str, params: Params, sample: Callable[..., Rollout], stop_ids: tuple = ()
) -> Callable[[], Rollout]:
    """A whole rollout, to be called: prompts read, up to T tokens of each row drawn."""
    return functools.partial(
        sample,
        decoder_policy(work.config, Compute(dtype)),
        params,
        random_prompts(work, seed=0),
        prompt_keys(jax.random.key(1), 0, work.num_prompts),
        group_size=work.group_size,
        sampling=Sampling(max_new_tokens=work.new_tokens, stop_ids=stop_ids),
    )


def main() -> None:
    parser = shape_arguments(__doc__)
    parser.add_argument("--groups", type=int, nargs="+", help="several values of --group")
    parser.add_argument("--mean-length", type=int, default=0, help="of completions; 0: all run on")
    parser.add_argument("--rows-at-once", type=int, default=0, help="others wait; 0: what fits")
    arguments = parser.parse_args()
    dtype, steps = jnp.dtype(arguments.dtype), arguments.steps
    rate, bytes_per_second = matrix_rate(dtype), bandwidth()
    config = work_of(arguments).config
    params = init_params(config, jax.random.key(0))
    stop_ids = ending(config.vocab_size, arguments.mean_length) if arguments.mean_length else ()
    sample = functools.partial(sample_continuously, rows_at_once=arguments.rows_at_once)
    lines = []
    for group in arguments.groups or [arguments.group]:
        arguments.group = group
        work = work_of(arguments)
        rollout = rollout_of(work, arguments.dtype, params, sample, stop_ids)
        num_tokens = int(rollout().completion_mask.sum())
        line = {"rows": work.rows, "group": group, "tokens": num_tokens}
        line["seconds"] = seconds_of(rollout, repeats=steps)
        line["tokens_per_second"] = num_tokens / line["seconds"]
        if stop_ids:
            kept = rollout_of(work, arguments.dtype, params, sample_groups, stop_ids)
            line["kept_place_seconds"] = seconds_of(kept, repeats=steps)
            line["speedup"] = line["kept_place_seconds"] / line["seconds"]
        else:
            few_rows = few_rows_seconds(config, work.rows, dtype)
            line["floor_seconds"] = work.seconds(Limits(rate, bytes_per_second, few_rows))["sample"]
            line["share_of_floor"] = line["floor_seconds"] / line["seconds"]
            line["few_rows_seconds"] = few_rows
            line["in_order_seconds"] = in_order_seconds(config, work.rows, dtype)
        lines.append(line)
    best = max(lines, key=lambda line: line["tokens_per_second"])
    found = {"matrix_flops_per_second": rate, "bandwidth_bytes_per_second": bytes_per_second}
    report({"best": best, "all": lines, "limits": found}, arguments)


if __name__ == "__main__":
    main()
