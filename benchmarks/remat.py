"""One optimizer step with layers apart or as one loop, and with parts of them computed again.

    python -m benchmarks.remat --prompts 1 --group 8 --prompt-len 512 --new-tokens 64

Seconds to compile and to run, and the bytes that XLA plans for temporary arrays, of one update
whose tokens are all held at once. On a CPU the plan is that of XLA's CPU compiler.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks.step import shape_arguments, work_of
from benchmarks.timing import report
from benchmarks.train import OBJECTIVE, OPTIMIZER, random_batch
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.models.layers import Compute
from grpo_jax.models.stacking import stacked
from grpo_jax.types import TrainState
from grpo_jax.update import update

REMAT = ("none", "all but products", "all")


def main() -> None:
    arguments = shape_arguments(__doc__).parse_args()
    work = work_of(arguments)
    batch = random_batch(work)
    tokens = work.num_prompts * (work.prompt_len + work.group_size * work.new_tokens)
    found = {}
    for layout in ("layers apart", "one loop"):
        for remat in REMAT:
            params = init_params(work.config, jax.random.key(0))
            params = stacked(params, work.config.num_layers) if layout == "one loop" else params
            zero = jnp.zeros([], jnp.int32)
            state = TrainState(params, OPTIMIZER.init(params), zero, jax.random.key(0))
            del params
            policy = decoder_policy(work.config, Compute(arguments.dtype, remat=remat))
            started = time.perf_counter()
            compiled = update.lower(
                policy, OBJECTIVE, OPTIMIZER, state, batch, micro_batch_tokens=tokens
            ).compile()
            compile_seconds = time.perf_counter() - started
            plan = compiled.memory_analysis()
            assert plan is not None
            seconds = []
            for _ in range(arguments.steps + 1):
                started = time.perf_counter()
                state, _ = jax.block_until_ready(compiled(state, batch))
                seconds.append(time.perf_counter() - started)
            found[f"{layout}, recomputed: {remat}"] = {
                "compile_seconds": compile_seconds,
                "update_seconds": statistics.median(seconds[1:]),
                "temporary_bytes": plan.temp_size_in_bytes,
            }
            del state, compiled
    report({"variants": found}, arguments)


if __name__ == "__main__":
    main()
