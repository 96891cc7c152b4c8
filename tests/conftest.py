"""Settings of all tests, and the small things that several of them need."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

# An accidental broadcast is an error, not a result.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["eager", "jit"])
def transform(request):
    return jax.jit if request.param == "jit" else lambda f: f
