"""One optimizer step on given completions, and the same with each prompt repeated for its group.

python -m benchmarks.train --prompts 4 --group 8 --prompt-len 512 --new-tokens 64

The second figure is our own code on groups of one: what sharing the prompt is worth, and nothing
else. The floor is that of the shared computation for both.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.floors import Work
from benchmarks.limits import matrix_rate
from benchmarks.step import random_prompts, shape_arguments, work_of
from benchmarks.timing import report
from grpo_jax import objectives
from grpo_jax.metrics import peak_rss_bytes
from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.models.layers import Compute
from grpo_jax.types import Batch, Rollout, TrainState
from grpo_jax.update import update

OBJECTIVE = objectives.grpo(kl_coef=0.04)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))


def random_batch(work: Work) -> Batch:
    """P groups of G completions of T random tokens, with random credit and a random reference."""
    shape = (work.num_prompts, work.group_size, work.new_tokens)
    random = np.random.default_rng(1)
    prompts = random_prompts(work, seed=0)
    rollout = Rollout(
        prompts.tokens,
        prompts.mask,
        completion=jnp.asarray(random.integers(0, work.config.vocab_size, shape), jnp.int32),
        completion_mask=jnp.ones(shape, bool),
        sampler_log_probs=None,
        support_log_mass=jnp.zeros(shape),
        truncated=jnp.ones(shape[:2], bool),
    )
    advantages = jnp.asarray(random.normal(size=(*shape[:2], 1)), jnp.float32)
    return Batch(rollout, advantages, ref_log_probs=jnp.full(shape, -10.0))


def repeated(batch: Batch) -> Batch:
    """Each completion as a group of one, behind its own copy of the prompt."""
    group_size = batch.advantages.shape[1]

    def alone(x: jax.Array) -> jax.Array:  # [P, G, ...] -> [P · G, 1, ...]
        return x.reshape(-1, 1, *x.shape[2:])

    whole, ref_log_probs = batch.rollout, batch.ref_log_probs
    assert ref_log_probs is not None
    rollout = Rollout(
        jnp.repeat(whole.prompt, group_size, axis=0),
        jnp.repeat(whole.prompt_mask, group_size, axis=0),
        alone(whole.completion),
        alone(whole.completion_mask),
        None,
        alone(whole.support_log_mass),
        alone(whole.truncated),
    )
    return Batch(rollout, alone(batch.advantages), ref_log_probs=alone(ref_log_probs))


def update_seconds(work: Work, dtype: str, batch: Batch, steps: int) -> float:
    """Median seconds of an update; a first one, which compiles, is left out."""
    params = init_params(work.config, jax.random.key(0))
    zero = jnp.zeros([], jnp.int32)
    state = TrainState(params, OPTIMIZER.init(params), zero, jax.random.key(0))
    one = functools.partial(
        update, decoder_policy(work.config, Compute(dtype)), OBJECTIVE, OPTIMIZER
    )
    found = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(one(state, batch))
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def main() -> None:
    parser = shape_arguments(__doc__)
    parser.add_argument("--no-repeated", action="store_true", help="leave out the comparison")
    arguments = parser.parse_args()
    work = work_of(arguments)
    batch = random_batch(work)
    found = {"update_seconds": update_seconds(work, arguments.dtype, batch, arguments.steps)}
    found["peak_rss_bytes"] = peak_rss_bytes()
    if not arguments.no_repeated:
        alone = repeated(batch)
        seconds = update_seconds(work, arguments.dtype, alone, arguments.steps)
        found["repeated_update_seconds"] = seconds
        found["speedup"] = seconds / found["update_seconds"]
        found["speedup_of_the_floors"] = work.repeated_forward_flops / work.forward_flops
    rate = matrix_rate(jnp.dtype(arguments.dtype))
    found["floor_seconds"] = 3 * work.forward_flops / rate
    found["share_of_floor"] = found["floor_seconds"] / found["update_seconds"]
    report(found | {"matrix_flops_per_second": rate}, arguments)


if __name__ == "__main__":
    main()
