"""Where the time of one decoding step goes: parts of the network left out, one after another.

    python -m benchmarks.decode_parts --prompts 4 --group 8 --prompt-len 64 --new-tokens 64

Milliseconds of a token of each row, in a loop on the device as the sampler has it; each line leaves
out what the line before did, and one part more. What is left at the end are matrix products with
what joins them, to compare with the same products alone (`in_order_ms`, `few_rows_ms`). On a CPU: a
kernel that takes the place of attention elsewhere is not used in decoding.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.floors import Work
from benchmarks.limits import few_rows_seconds, in_order_seconds
from benchmarks.step import random_prompts, shape_arguments, work_of
from benchmarks.timing import report
from grpo_jax.models import context, layers
from grpo_jax.models.decoder import Decoder, decoder_policy, init_params
from grpo_jax.models.layers import Compute
from grpo_jax.models.rotary import Rotary
from grpo_jax.sampling import Sampling, draw_tokens, prompt_keys, row_keys

_TOKENS = 8
_REPEATS = 9

LEFT_OUT = {
    "attention": (context, "group_attention", lambda query, *_, **__: query),
    "rotary positions": (Rotary, "turn", lambda _, x, __: x),
    "norms": (layers, "rms_norm", lambda x, *_, **__: x),
}


def loop_ms(work: Work, step: Callable[..., Any], *arrays: Any) -> float:
    """Milliseconds of a token: the fastest of several loops of `_TOKENS` tokens."""

    def decode(params: Any, prefix: Any, cache: Any, token: jax.Array) -> Any:
        def one(t: jax.Array, carry: Any) -> Any:
            return step(params, prefix, *carry, t)

        return jax.lax.fori_loop(0, _TOKENS, one, (cache, token))

    token = jnp.ones([work.num_prompts, work.group_size, 1], jnp.int32)
    run = functools.partial(jax.jit(decode), *arrays, token)
    jax.block_until_ready(run())
    found = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - started)
    return 1e3 * min(found) / _TOKENS


def main() -> None:
    arguments = shape_arguments(__doc__).parse_args()
    work, dtype = work_of(arguments), jnp.dtype(arguments.dtype)
    compute = Compute(arguments.dtype)
    policy = decoder_policy(work.config, compute)
    params = init_params(work.config, jax.random.key(0))
    prompts = random_prompts(work, seed=0)
    prefix, _ = jax.jit(policy.prefill)(params, prompts.tokens, prompts.mask)
    cache = policy.init_cache(prefix, work.group_size, work.new_tokens)
    shape = (work.num_prompts, work.group_size)
    members = jnp.broadcast_to(jnp.arange(work.group_size), shape)
    keys = row_keys(prompt_keys(jax.random.key(1), 0, work.num_prompts), members)
    sampling = Sampling(max_new_tokens=work.new_tokens)

    def extended(params: Any, prefix: Any, cache: Any, token: jax.Array) -> Any:
        model = Decoder(work.config, compute)  # not the policy's: it is traced anew for each line
        return model.apply({"params": params}, prefix, token, cache, method="extend")

    def whole(params: Any, prefix: Any, cache: Any, token: jax.Array, t: jax.Array) -> Any:
        hidden, cache = extended(params, prefix, cache, token)
        logits = policy.unembed(params, hidden[:, :, 0]).astype(jnp.float32)
        drawn, *_ = draw_tokens(logits, keys, jnp.broadcast_to(t, shape), sampling)
        return cache, drawn[..., None]

    def without_head(params: Any, prefix: Any, cache: Any, token: jax.Array, t: jax.Array) -> Any:
        hidden, cache = extended(params, prefix, cache, token)
        return cache, token + (hidden[..., 0] > t).astype(jnp.int32)

    lines = {"whole": loop_ms(work, whole, params, prefix, cache)}
    lines["head and draw"] = loop_ms(work, without_head, params, prefix, cache)
    with contextlib.ExitStack() as left_out:
        for name, (place, what, other) in LEFT_OUT.items():
            left_out.enter_context(mock.patch.object(place, what, other))
            jax.clear_caches()
            lines[name] = loop_ms(work, without_head, params, prefix, cache)
    before = [lines["whole"], *lines.values()][: len(lines)]
    found = {
        f"without {name}" if name != "whole" else name: {"ms": ms, "part_ms": previous - ms}
        for (name, ms), previous in zip(lines.items(), before, strict=True)
    }
    alone = {
        "in_order_ms": 1e3 * in_order_seconds(work.config, work.rows, dtype),
        "few_rows_ms": 1e3 * few_rows_seconds(work.config, work.rows, dtype),
    }
    report({"lines": found} | alone, arguments)


if __name__ == "__main__":
    main()
