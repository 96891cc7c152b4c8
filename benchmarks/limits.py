"""What this machine can do: matrix rate, matrix rate at few rows, memory bandwidth.

python -m benchmarks.limits --dtype float32

Each figure is the best that XLA reaches on work that does nothing else; on a CPU in float32 the
matrix rate is that of NumPy's BLAS if that is higher, so that the floor is the machine's.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import report, seconds_of
from grpo_jax.models.config import DecoderConfig


def matrix_rate(dtype: Any) -> float:
    """Floating-point operations a second of large square products."""
    on_cpu = jax.default_backend() == "cpu"
    rates = []
    for size in (2048, 4096) if on_cpu else (4096, 8192, 16384):
        a = jnp.ones([size, size], dtype)
        product = jax.jit(jnp.matmul)
        rates.append(2 * size**3 / seconds_of(functools.partial(product, a, a), repeats=3))
        if on_cpu and dtype == jnp.float32:
            b = np.ones([size, size], np.float32)
            rates.append(2 * size**3 / seconds_of(functools.partial(np.matmul, b, b), repeats=3))
    return max(rates)


def bandwidth() -> float:
    """Bytes a second of arrays much larger than any cache: read and written, or read alone if that
    is faster, as decoding reads its weights."""
    gigabytes = 0.5 if jax.default_backend() == "cpu" else 4
    x = jnp.ones([int(gigabytes * 2**30) // 4], jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: new memory is slow at first touch

    def pass_over() -> jax.Array:
        nonlocal x
        x = add(x)
        return x

    written = 2 * x.nbytes / seconds_of(pass_over)
    return max(written, x.nbytes / seconds_of(functools.partial(jax.jit(jnp.sum), x)))


def few_rows_seconds(config: DecoderConfig, rows: int, dtype: Any) -> float:
    """Seconds that the matrix products of one decoding step take alone.

    Each of the decoder's products as often as it has layers, on as many different matrices, so
    that no cache holds them; the faster of the two orders in which a product can be written.
    """
    inner, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, mlp = config.hidden_size, config.intermediate_size
    shapes = {
        (hidden, inner): config.num_layers,
        (hidden, kv): 2 * config.num_layers,
        (inner, hidden): config.num_layers,
        (hidden, mlp): 2 * config.num_layers,
        (mlp, hidden): config.num_layers,
        (hidden, config.vocab_size): 1,
    }
    total = 0.0
    for (width, out), count in shapes.items():
        key = jax.random.key(0)
        draw = jax.jit(lambda key, shape: jax.random.normal(key, shape, dtype), static_argnums=1)
        x = draw(key, (rows, width))
        across = [draw(jax.random.fold_in(key, i), (width, out)) for i in range(count)]
        rows_first = jax.jit(lambda x, matrices: [x @ matrix for matrix in matrices])
        one = seconds_of(functools.partial(rows_first, x, across))
        along = [jnp.array(matrix.T) for matrix in across]
        del across
        rows_last = jax.jit(lambda x, matrices: [matrix @ x for matrix in matrices])
        other = seconds_of(functools.partial(rows_last, jnp.array(x.T), along))
        total += min(one, other)
    return total


def in_order_seconds(config: DecoderConfig, rows: int, dtype: Any) -> float:
    """The same products, each after those that it waits for in the network, and nothing else.

    What is between them is left out: a product takes the result of one before as it is.
    """
    inner, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, mlp = config.hidden_size, config.intermediate_size
    shapes = [(inner, hidden), (kv, hidden), (kv, hidden), (hidden, inner)]
    shapes += [(mlp, hidden), (mlp, hidden), (hidden, mlp)]
    after = jax.lax.optimization_barrier

    def draw(seed: int, shape: tuple[int, int]) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), shape, dtype)

    layers = [
        [draw(10 * layer + i, shape) for i, shape in enumerate(shapes)]
        for layer in range(config.num_layers)
    ]
    head = draw(-1, (config.vocab_size, hidden))

    def step(product: Any, x: jax.Array, layers: Any, head: jax.Array) -> jax.Array:
        for query, key, value, output, gate, up, down in layers:
            attended, _, _ = after((product(query, x), product(key, x), product(value, x)))
            x = after(product(output, attended))
            wide, _ = after((product(gate, x), product(up, x)))
            x = after(product(down, wide))
        return product(head, x)

    def seconds(product: Any, x: jax.Array) -> float:
        run = jax.jit(functools.partial(step, product))
        return seconds_of(functools.partial(run, x, layers, head))

    return min(
        seconds(lambda kernel, x: kernel @ x, draw(-2, (hidden, rows))),
        seconds(lambda kernel, x: x @ kernel.T, draw(-2, (rows, hidden))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    dtype = jnp.dtype(arguments.dtype)
    found = {"dtype": arguments.dtype, "matrix_flops_per_second": matrix_rate(dtype)}
    found["bandwidth_bytes_per_second"] = bandwidth()
    report(found, arguments)


if __name__ == "__main__":
    main()
