"""Bad input gets one clear error, early, and nothing written: model directories."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import toys
from refused_runs import refused
from safetensors.numpy import load_file, save_file

from grpo_jax.models.loading import WEIGHTS
from grpo_jax.models.network import pretrained


@pytest.fixture
def unusable(llama, tmp_path, early):
    """Expects a run of the edited model to be refused with these words."""

    def check(*parts):
        return refused(tmp_path, *parts, network=None, model=str(llama), steps=1)

    return check


def edit_tensors(directory, edit):
    path = directory / WEIGHTS
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_unedited_directory_is_usable(llama):
    network = pretrained(str(llama))
    assert network.tokenizer.stop_ids == (2,)
    shapes = jax.tree.map(lambda leaf: leaf.shape, network.shapes)
    assert jax.tree.map(lambda leaf: leaf.shape, network.load()) == shapes


@pytest.mark.parametrize("other", [None, "pytorch_model.bin", "model-00001-of-00002.safetensors"])
def test_a_directory_without_weights(other, llama, unusable):
    (llama / WEIGHTS).unlink()
    if other:
        (llama / other).write_bytes(b"\x80")
    unusable(str(llama), WEIGHTS, *([other] if other else []))


def test_every_tensor_that_does_not_fit_is_listed_at_once(llama, unusable):
    def edit(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros([2], np.float32)
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros([48], np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1].copy()
        query = "model.layers.2.self_attn.q_proj.weight"  # 48 by 48, so turned it would fit
        tensors["model.layers.0.self_attn.k_proj.weight"] = tensors[query]

    edit_tensors(llama, edit)
    message = unusable(
        "missing: model.norm.weight",
        "missing: model.layers.1.mlp.up_proj.weight",
        "unexpected: model.layers.7.mlp.up_proj.weight",
        "unexpected: model.layers.0.self_attn.q_proj.bias",
        "shape of lm_head.weight: [97, 47], config.json asks [97, 48]",
        "shape of model.layers.0.self_attn.k_proj.weight: [48, 48], config.json asks [16, 48]",
        str(llama),
        "take both from the same checkpoint",
    )
    assert len(message.splitlines()) == 8


@pytest.mark.parametrize("size", [0, 4, 1000, 50_000])
def test_weights_that_were_cut_off(size, llama, unusable):
    os.truncate(llama / WEIGHTS, size)
    unusable(str(llama / WEIGHTS), "not a whole safetensors file")


def test_every_field_that_is_not_understood_is_listed_at_once(llama, unusable):
    toys.edit_json(
        llama / "config.json",
        rope_parameters={"rope_type": "linear", "factor": -2.0},
        attention_bias="yes",
        hidden_act="gelu",
        num_hidden_layers=0,
        logit_scale=0.5,
    )
    message = unusable(
        "config.json", "rope_parameters.factor is -2.0", "attention_bias", "logit_scale"
    )
    assert "hidden_act is 'gelu'; understood: 'silu'" in message
    assert "num_hidden_layers is 0; it must be a positive integer" in message


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "mrope", "factor": 8.0}, {"type": "axial", "factor": 2.0}],
    ids=["rope_type", "type"],
)
def test_rotary_positions_of_another_kind(rope, llama, unusable):
    toys.edit_json(llama / "config.json", rope_parameters={"rope_theta": 1e4} | rope)
    unusable("config.json", "rope", "'default'")


def test_a_family_that_is_not_known(llama, unusable):
    toys.edit_json(llama / "config.json", model_type="gpt2")
    unusable("config.json", "model_type is 'gpt2'", "llama", "deepseek_v3")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_file_that_is_not_json_or_no_object(name, text, llama, unusable):
    (llama / name).write_text(text)
    unusable(str(llama))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 4},
        {"head_dim": 7},
        {"num_key_value_heads": "2"},
        {"eos_token_id": "x"},
    ],
    ids=str,
)
def test_a_config_that_describes_no_model(fields, llama, unusable):
    toys.edit_json(llama / "config.json", **fields)
    unusable(str(next(iter(fields.values()))))


def test_a_directory_without_config(llama, unusable):
    (llama / "config.json").unlink()
    unusable(str(llama), "no config.json", "tokenizer.json", WEIGHTS)


def test_a_directory_without_tokenizer(llama, unusable):
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer_config.json").unlink()
    unusable(str(llama), "no tokenizer", "tokenizer.json")


def test_a_tokenizer_without_an_end_token(llama, unusable):
    toys.write_tokenizer(llama, eos=None)
    for name in ("config.json", "generation_config.json"):
        toys.edit_json(llama / name, eos_token_id=None)
    unusable("no end token", str(llama), "eos_token", "tokenizer_config.json")


def test_a_padding_token_equal_to_the_end_token_is_no_error(llama):
    toys.edit_json(llama / "tokenizer_config.json", pad_token="</s>")
    tokenizer = pretrained(str(llama)).tokenizer
    assert tokenizer.stop_ids == (tokenizer.pad_id,) == (2,)


def test_all_end_tokens_of_the_model_end_a_completion(llama):
    toys.edit_json(llama / "generation_config.json", eos_token_id=[2, 7])
    toys.edit_json(llama / "config.json", eos_token_id=[9])
    tokenizer = pretrained(str(llama)).tokenizer
    assert tokenizer.stop_ids == (2, 7, 9)
    assert tokenizer.decode([3, 4, 7, 3]) == "01"


def test_a_tokenizer_of_another_model(llama, unusable):
    toys.edit_json(llama / "config.json", vocab_size=20)
    unusable("44 ids", "20 rows", "different models")


@pytest.mark.parametrize("model", ["no-such", "./no-such", "/no/such", "a/b/c", "~/no-such"])
def test_a_model_that_is_neither_a_directory_nor_a_hub_id(model, tmp_path, early):
    refused(
        tmp_path,
        repr(model),
        "smollm2-135m-instruct",
        "a local directory",
        "a hub id",
        network=None,
        model=model,
        steps=1,
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "127.0.0.1"),
    ],
    ids=["offline", "unreachable"],
)
def test_a_hub_that_cannot_be_reached_is_given_up_at_once(environment, reason, tmp_path):
    code = (
        "import time; from grpo_jax.models.network import pretrained\n"
        "started = time.monotonic()\n"
        "try: pretrained('owner/name')\n"
        "except ValueError as error: print(error)\n"
        "print(time.monotonic() - started)"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | {"HF_HOME": str(tmp_path)} | environment,
    )
    assert done.returncode == 0, done.stderr
    message, seconds = done.stdout.splitlines()  # one line says so
    assert float(seconds) < 5
    for part in ("'owner/name'", reason, "smollm2-135m-instruct", "a local directory"):
        assert part in message
