"""What was compiled is kept, where the user has not said otherwise."""

import jax
import pytest

from grpo_jax.compilation_cache import keep_compiled


@pytest.fixture
def configured():
    """Sets JAX's directory, and puts it back."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda directory: jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_compilation_cache_dir", before)


def test_on_by_default_in_the_users_cache(configured, monkeypatch, tmp_path):
    monkeypatch.setenv("GRPO_JAX_CACHE", str(tmp_path))
    configured(None)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")


def test_another_directory_stays(configured, monkeypatch, tmp_path):
    monkeypatch.setenv("GRPO_JAX_CACHE", str(tmp_path / "ours"))
    configured(str(tmp_path / "theirs"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
