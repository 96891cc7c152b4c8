"""What the tests of the mathematics share."""

import jax
import pytest


@pytest.fixture(
    params=[
        ("float32", 1e-5, lambda f: f),
        ("float32", 1e-5, jax.jit),
        ("float64", 1e-10, jax.jit),
    ],
    ids=["float32-eager", "float32-jit", "float64-jit"],
)
def precision(request):
    """A float type, how close to the oracle a value in it must be, and how it is computed."""
    with jax.enable_x64(request.param[0] == "float64"):
        yield request.param
