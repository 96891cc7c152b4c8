"""A network ready to run: a policy, its tokenizer and its initial parameters."""

import dataclasses
import os
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import jax

from grpo_jax.keys import INITIAL, stream_key
from grpo_jax.models import embedded, hf
from grpo_jax.models.decoder import DecoderConfig, decoder_policy, init_params, param_shapes
from grpo_jax.policy import Policy
from grpo_jax.tokenizer import HFTokenizer, Tokenizer
from grpo_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Network:
    """What a run needs of a model.

    Attributes:
        policy: the network's functions.
        tokenizer: text <-> ids.
        load: () -> the initial parameters, in new buffers at each call.
        shapes: the parameter tree as shapes and dtypes.
        export: (params, target directory) writes a model directory; None where there is none to
            write (a toy).
        description: for people: family, number of parameters, where from.
    """

    policy: Policy
    tokenizer: Tokenizer
    load: Callable[[], Params]
    shapes: Params
    description: str
    export: Callable[[Params, Path], None] | None = None


def pretrained(model: str, compute_dtype: str = "auto", attention_kernels: bool = True) -> Network:
    """The embedded default, a local Hugging Face directory, or a hub id.

    Weights are not read before `load` is called.

    Args:
        model: by its name.
        compute_dtype: of activations and products, "float32" or "bfloat16"; "auto" takes bfloat16
            on a GPU or TPU, and float32 on a CPU, which is slower in bfloat16. Parameters are
            float32 in any case.
        attention_kernels: as `decoder_policy` has it.

    Raises:
        ValueError: no such model, or a directory that cannot be used; says why and what works.
    """
    directory = model_directory(model)
    config = hf.read_config(directory)
    tokenizer = HFTokenizer(directory, hf.stop_ids(directory))
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer in {directory} has {len(tokenizer)} ids, the embedding only "
            f"{config.vocab_size} rows (vocab_size in config.json): they are of different models"
        )
    shapes = param_shapes(config)
    dtype = _computed_in(compute_dtype)
    return Network(
        policy=decoder_policy(config, dtype, attention_kernels),
        tokenizer=tokenizer,
        load=lambda: hf.load_params(directory, config),
        shapes=shapes,
        description=f"{model}, {_millions(shapes)} parameters, computed in {dtype}",
        export=lambda params, target: hf.save_params(params, config, directory, target),
    )


def from_scratch(
    config: DecoderConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    compute_dtype: str = "auto",
    attention_kernels: bool = True,
) -> Network:
    """A small decoder with random parameters, for toys and tests; the rest as above."""
    shapes, dtype = param_shapes(config), _computed_in(compute_dtype)
    return Network(
        policy=decoder_policy(config, dtype, attention_kernels),
        tokenizer=tokenizer,
        load=lambda: init_params(config, stream_key(seed, INITIAL)),
        shapes=shapes,
        description=f"random decoder, {_millions(shapes)} parameters, computed in {dtype}",
    )


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

    wanted = ["*.json", "*.jinja", "*.safetensors"]
    try:
        found = Path(snapshot_download(model, allow_patterns=wanted, local_files_only=True))
        # Somebody may have asked for its tokenizer alone.
        if all((found / name).is_file() for name in ("config.json", "tokenizer.json", hf.WEIGHTS)):
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


def _computed_in(compute_dtype: str) -> str:
    if compute_dtype != "auto":
        return compute_dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _millions(shapes: Params) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
