"""Where this project keeps what can be made again. No JAX."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`$GRPO_JAX_CACHE`, or `grpo_jax` in `$XDG_CACHE_HOME` or in ~/.cache."""
    if own := os.environ.get("GRPO_JAX_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "grpo_jax"
