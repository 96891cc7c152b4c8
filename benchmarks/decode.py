"""Sampling alone: tokens a second over the number of rows, beside the floor of each.

python -m benchmarks.decode --groups 1 2 4 8 16 --prompts 4 --prompt-len 64 --new-tokens 64
"""

import functools

import jax
import jax.numpy as jnp

from benchmarks.floors import Limits, Work
from benchmarks.limits import bandwidth, few_rows_seconds, matrix_rate
from benchmarks.step import random_prompts, shape_arguments, work_of
from benchmarks.timing import report, seconds_of
from grpo_jax.continuous_batching import sample_continuously
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.sampling import Sampling, prompt_keys
from grpo_jax.types import Params


def sample_seconds(work: Work, dtype: str, params: Params, steps: int) -> float:
    """Median seconds of a whole rollout: prompts read, T tokens of each row drawn."""
    rollout = functools.partial(
        sample_continuously,
        decoder_policy(work.config, dtype),
        params,
        random_prompts(work, seed=0),
        prompt_keys(jax.random.key(1), 0, work.num_prompts),
        group_size=work.group_size,
        sampling=Sampling(max_new_tokens=work.new_tokens),
    )
    return seconds_of(rollout, repeats=steps)


def main() -> None:
    parser = shape_arguments(__doc__)
    parser.add_argument("--groups", type=int, nargs="+", help="several values of --group")
    arguments = parser.parse_args()
    dtype = jnp.dtype(arguments.dtype)
    rate, bytes_per_second = matrix_rate(dtype), bandwidth()
    lines = []
    for group in arguments.groups or [arguments.group]:
        arguments.group = group
        work = work_of(arguments)
        params = init_params(work.config, jax.random.key(0))
        seconds = sample_seconds(work, arguments.dtype, params, arguments.steps)
        del params
        few_rows = few_rows_seconds(work.config, work.rows, dtype)
        floor = work.seconds(Limits(rate, bytes_per_second, few_rows))["sample"]
        line = {"rows": work.rows, "group": group, "seconds": seconds, "floor_seconds": floor}
        line["tokens_per_second"] = work.rows * work.new_tokens / seconds
        line |= {"share_of_floor": floor / seconds, "few_rows_seconds": few_rows}
        lines.append(line)
    best = max(lines, key=lambda line: line["tokens_per_second"])
    found = {"matrix_flops_per_second": rate, "bandwidth_bytes_per_second": bytes_per_second}
    report({"best": best, "all": lines, "limits": found}, arguments)


if __name__ == "__main__":
    main()
