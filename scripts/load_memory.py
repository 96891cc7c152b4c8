"""Peak memory of loading a 7B checkpoint in bfloat16, against its size on disk.

    python scripts/load_memory.py --directory /tmp/seven   # makes it there: 14.5 GB; then measures

The checkpoint has the shape of Mistral 7B and random weights, in shards as `save_pretrained` writes
them. It is loaded in a process of its own, whose largest resident memory counts, all included. The
last line is one JSON object.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

CONFIG = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SHARD_BYTES = 5 * 10**9


def make(directory: pathlib.Path) -> None:
    """Random weights, a shard at a time."""
    from safetensors.numpy import save_file

    from grpo_jax.models.decoder import param_shapes
    from grpo_jax.models.directory import open_directory
    from grpo_jax.models.loading import INDEX, expected_shape
    from grpo_jax.models.tensors import rows

    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    opened = open_directory(directory)
    shapes = param_shapes(opened.config)
    shards: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for row in rows(opened):
        shape = expected_shape(row, shapes)
        size = 2 * math.prod(shape)
        if size > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][row.name] = shape
        room -= size
    random, places = np.random.default_rng(0), {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            key: random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for key, shape in shard.items()
        }
        save_file(tensors, directory / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def peak_rss() -> int:
    """Of this process alone: what `getrusage` says begins with that of the process it came from."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def load(directory: pathlib.Path) -> None:
    import jax

    from grpo_jax.models.directory import open_directory
    from grpo_jax.models.loading import load_params

    before = peak_rss()
    started = time.perf_counter()
    params = load_params(open_directory(directory), dtype="bfloat16")
    jax.block_until_ready(params)
    seconds = time.perf_counter() - started
    on_disk = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    peak = peak_rss()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    found = {"bytes_on_disk": on_disk, "bytes_held": held, "peak_rss_bytes": peak}
    found |= {"rss_before_bytes": before, "ratio": peak / on_disk, "seconds": seconds}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--only-load", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_load:
        load(arguments.directory)
        return
    if not arguments.directory.exists():
        make(arguments.directory)
    command = [sys.executable, __file__, "--directory", str(arguments.directory), "--only-load"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
