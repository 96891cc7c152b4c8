"""Settings of all tests, and the small things that several of them need."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the time goes into compiling programs that run once: a third less without optimization.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
# A later run of the tests compiles only what has changed: a third of the time of the first one.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

# An accidental broadcast is an error, not a result.
jax.config.update("jax_numpy_rank_promotion", "raise")


_MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def few_programs_are_held():
    """Each compiled program takes some maps of memory, of which Linux gives a process 65,530; with
    none left, the compiler crashes."""
    yield
    if _MAPS.is_file() and _MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(params=["eager", "jit"])
def transform(request):
    return jax.jit if request.param == "jit" else lambda f: f


@pytest.fixture(scope="session")
def embedded_directory():
    """The embedded model's directory; on a machine that cannot fetch it the test is skipped."""
    from grpo_jax.models.embedded import embedded_model_directory

    try:
        return embedded_model_directory()
    except ValueError as error:
        if os.environ.get("CI"):
            raise  # there it must not pass for tested
        pytest.skip(f"the embedded model cannot be had: {str(error).splitlines()[0]}")
