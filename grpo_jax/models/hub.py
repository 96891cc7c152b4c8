"""Where a model is: the embedded one, a directory, or a hub that may not be there."""

import os
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

from grpo_jax.models import embedded
from grpo_jax.models.loading import INDEX, WEIGHTS


def model_directory(model: str) -> Path:
    """The local directory of a model by name; only a hub id asks the network.

    Raises:
        ValueError: there is none; says which ways work.
    """
    if model == embedded.NAME:
        return embedded.embedded_model_directory()
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    ways = (
        f"--model takes {embedded.NAME!r} (the default, no hub needed), a local directory with "
        "config.json, tokenizer.json and model.safetensors, or a hub id like 'owner/name' where a "
        "hub can be reached"
    )
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ValueError(f"model {model!r} is neither a directory nor a hub id; {ways}")
    return _from_hub(model, ways)


def _from_hub(model: str, ways: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
    try:
        found = Path(snapshot_download(model, allow_patterns=wanted, local_files_only=True))
        # Somebody may have asked for its tokenizer alone.
        weighted = (found / WEIGHTS).is_file() or (found / INDEX).is_file()
        if weighted and (found / "config.json").is_file() and (found / "tokenizer.json").is_file():
            return found
    except Exception:  # of many types: not in the local cache
        pass
    # The hub's own client would retry for 20 seconds.
    hub = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxy = urllib.request.getproxies().get(hub.scheme)
    address = urlparse(proxy) if proxy else hub
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((address.hostname or "", port), timeout=2).close()
        return Path(snapshot_download(model, allow_patterns=wanted))
    except Exception as error:
        raise ValueError(
            f"model {model!r} is not in the local cache and {hub.hostname} cannot give it "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); {ways}"
        ) from None
