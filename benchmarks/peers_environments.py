"""The libraries that are compared with, and the virtual environments that are made for them."""

import contextlib
import glob
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

from benchmarks.peers_processes import Failed, run, say
from grpo_jax.cache_directory import cache_root


class Peer(NamedTuple):
    """Another library: where its environment goes, what is installed, what runs in it.

    Attributes:
        environment: folder name in the cache.
        requirements: for the installer; what they bring is reported with each result.
        driver: module that measures it.
        xla_flags: set where its XLA knows them.
    """

    environment: str
    requirements: tuple[str, ...]
    driver: str
    xla_flags: str = ""


PEERS = {
    # torch comes from where the installer is configured to look. A build with CUDA's libraries, as
    # on PyPI for Linux, holds about 0.3 GiB more than one without; "+cpu" in the version tells.
    "trl": Peer(
        "trl-1.16.0",
        ("trl==1.16.0", "transformers==5.23.0", "torch==2.13.0"),
        "benchmarks.peers_trl",
    ),
    # With XLA's default order of operations on a CPU, more of the activations are held at once:
    # the plan of a train step of this shape, 32 rows of 64 + 64 tokens, is a quarter smaller so.
    # `--tunix-xla-flags=` leaves the default.
    "tunix": Peer(
        "tunix-0.1.7",
        ("google-tunix==0.1.7",),
        "benchmarks.peers_tunix",
        xla_flags="--xla_cpu_enable_concurrency_optimized_scheduler=false",
    ),
}
# What each system is given: no accelerator, no model hub.
ENVIRON = {
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def find_python() -> str:
    """An interpreter for the peers: this one, or else a 3.12; they have wheels for 3.11 to 3.13."""
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    candidates = [sys.executable, "python3.12", *glob.glob(f"{pyenv}/versions/3.12*/bin/python")]
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", "3.12"], capture_output=True, text=True)
        candidates.append(found.stdout.strip())
    check = "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
    for candidate in filter(None, candidates):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", check], capture_output=True).returncode == 0:
                return candidate
    raise Failed("no Python 3.11, 3.12 or 3.13 for the peers; install one, as python3.12 on PATH")


def prepare_environment(peer: Peer, timeout: float) -> str:
    """The interpreter of the peer's virtual environment, made if there is none.

    A marker, written last, says what it was made of; a folder without it is made anew.
    """
    folder = cache_root() / "peers" / peer.environment
    marker, wanted = folder / "installed.txt", "\n".join(peer.requirements) + "\n"
    python = str(folder / "bin" / "python")
    if marker.exists() and marker.read_text() == wanted:
        return python
    if folder.exists():
        shutil.rmtree(folder)
    base = find_python()
    say(f"making the environment {peer.environment}, once: some minutes, some gigabytes")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("uv"):
        make = ["uv", "venv", "--quiet", "--python", base, str(folder)]
        install = ["uv", "pip", "install", "--python", python]
    else:
        make = [base, "-m", "venv", str(folder)]
        install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    run(make, {}, timeout=timeout)
    run([*install, *peer.requirements], {}, timeout=timeout)
    marker.write_text(wanted)
    return python


def known_flags(python: str, flags: str) -> str:
    """The flags, if the environment's XLA starts with them: it ends a process otherwise."""
    try:
        run([python, "-c", "import jax; jax.devices()"], ENVIRON | {"XLA_FLAGS": flags}, timeout=99)
    except Failed:
        say(f"this jax does not know {flags}")
        return ""
    return flags
