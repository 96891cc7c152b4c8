"""What one optimizer step holds besides its arguments, by XLA's own plan: nothing is run.

python -m benchmarks.memory --shape smollm2-135m

Each of group size, completion length and prompts is doubled by itself, with the budget of tokens
held at once fixed. On a CPU the plan is that of XLA's CPU compiler.
"""

import jax
import jax.numpy as jnp

from benchmarks.floors import Work
from benchmarks.step import shape_arguments, work_of
from benchmarks.timing import report
from benchmarks.train import OBJECTIVE, OPTIMIZER, random_batch
from grpo_jax.models.decoder import decoder_policy, param_shapes
from grpo_jax.models.layers import Compute
from grpo_jax.types import TrainState
from grpo_jax.update import update


def planned_bytes(work: Work, dtype: str, micro_batch_tokens: int = 0) -> dict[str, int]:
    """Bytes of arguments and of temporary arrays of an update."""
    params = param_shapes(work.config)
    state = TrainState(
        params,
        jax.eval_shape(OPTIMIZER.init, params),
        jax.eval_shape(lambda: jnp.zeros([], jnp.int32)),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    batch = jax.eval_shape(lambda: random_batch(work))
    policy = decoder_policy(work.config, Compute(dtype))
    lowered = update.lower(
        policy, OBJECTIVE, OPTIMIZER, state, batch, micro_batch_tokens=micro_batch_tokens
    )
    plan = lowered.compile().memory_analysis()
    assert plan is not None
    return {"arguments": plan.argument_size_in_bytes, "temporary": plan.temp_size_in_bytes}


def main() -> None:
    arguments = shape_arguments(__doc__).parse_args()
    work = work_of(arguments)
    changes = {
        "as asked": {},
        "twice the prompts": {"prompts": 2 * work.num_prompts},
        "twice the group": {"group": 2 * work.group_size},
        "twice the new tokens": {"new_tokens": 2 * work.new_tokens},
        "twice the prompt": {"prompt_len": 2 * work.prompt_len},
    }
    found = {}
    for name, change in changes.items():
        changed = work_of(type(arguments)(**vars(arguments) | change))
        logits = 4 * changed.rows * changed.new_tokens * work.config.vocab_size
        found[name] = planned_bytes(changed, arguments.dtype) | {"all_logits": logits}
    report({"plans": found}, arguments)


if __name__ == "__main__":
    main()
