"""Compiles the splash attention of `models/flash_splash.py` for TPUs, without having one.

    pip install "jax[tpu]"    # libtpu holds the compiler; 0.6 GB
    python scripts/tpu_attention_compiles.py --topology v5e:2x2

For each shape, forward alone and with gradients: seconds to compile, temporary memory, and that of
`group_attention` for comparison. One chip's program; compiling proves that the kernels fit a TPU's
memories and not that they are right or fast.
"""

import argparse
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from grpo_jax.models.attention import group_attention
from grpo_jax.models.flash import kernel_for

# P, G, S, K, R, H, L and the type; the first is Qwen3-1.7B.
SHAPES = {
    "1.7b": (1, 16, 1024, 8, 2, 128, 512, jnp.bfloat16),
    "1.7b, two ragged groups": (2, 8, 1000, 8, 2, 128, 300, jnp.bfloat16),
    "1.7b prefill": (2, 1, 512, 8, 2, 128, 0, jnp.bfloat16),
    "135m": (2, 8, 256, 3, 3, 64, 128, jnp.bfloat16),
    "135m, float32": (2, 8, 512, 3, 3, 64, 512, jnp.float32),
    "short": (1, 4, 64, 8, 2, 128, 100, jnp.bfloat16),
    "widest table": (1, 31, 2048, 8, 2, 128, 2048, jnp.bfloat16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--topology", default="v5e:2x2", help="as v5e:2x2 or v6e:2x2")
    parser.add_argument("--only", choices=list(SHAPES), help="one shape; all without it")
    options = parser.parse_args()
    chip = topologies.get_topology_desc(options.topology, "tpu").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(chip)
    for name, (p, g, s, k, r, h, width, dtype) in SHAPES.items():
        if options.only not in (None, name):
            continue
        kernel = kernel_for(
            "tpu", dtype=dtype, head_dim=h, num_queries=s, group_size=g, prompt_len=width
        )
        if kernel is None:
            print(f"{name}: not a shape for the kernel")
            continue
        shapes = [(p, g, s, k, r, h), (p, g, k, s, h), (p, g, k, s, h)]
        shapes += [(p, k, width, h)] * 2 if width else []
        arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
        mask = jax.ShapeDtypeStruct((p, width), jnp.bool_, sharding=sharding)
        rest = [mask] if width else []

        def plain(query, keys, values, *prompt):
            keys, values = keys.transpose(0, 2, 1, 4, 3), values.swapaxes(1, 2)
            if prompt:
                prompt = (prompt[0].swapaxes(2, 3), prompt[1], prompt[2][:, None, None])
            causal = jnp.tri(query.shape[2], dtype=bool)[None, None]
            scale = query.shape[-1] ** -0.5
            return group_attention(query, keys, values, causal, *prompt, scale=scale)

        for label, attention in [("splash", kernel), ("plain", plain)]:

            def loss(*args, attention=attention):
                return attention(*args).astype(jnp.float32).sum()

            gradients = jax.grad(loss, argnums=tuple(range(len(arrays))))
            for what, function in [("forward", attention), ("with gradients", gradients)]:
                start = time.perf_counter()
                try:
                    compiled = jax.jit(function).lower(*arrays, *rest).compile()
                except jax.errors.JaxRuntimeError as error:
                    print(f"{name}, {label}, {what}: {str(error).strip().splitlines()[0][:300]}")
                    continue
                memory, text = compiled.memory_analysis(), compiled.as_text()
                assert memory is not None
                assert text is not None
                mebibytes = memory.temp_size_in_bytes / 2**20
                calls = text.count('custom_call_target="tpu_custom_call"')
                print(
                    f"{name}, {label}, {what}: {time.perf_counter() - start:.0f} s to compile, "
                    f"{mebibytes:.0f} MiB temporary, {calls} kernels",
                    flush=True,
                )


if __name__ == "__main__":
    main()
