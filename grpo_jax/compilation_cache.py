"""What was compiled is kept for the next run, in the user's cache directory."""

import jax

from grpo_jax.cache_directory import cache_root


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, unless it is configured already.

    In `cache_root`. A directory that cannot be written costs a warning of JAX's, not the run.
    JAX_COMPILATION_CACHE_DIR names another one; JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
