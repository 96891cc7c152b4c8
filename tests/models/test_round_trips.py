"""Load -> save -> load: equal bits, and directories that transformers takes as its own."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import families
from safetensors.numpy import load_file

from grpo_jax.models import saving
from grpo_jax.models.directory import open_directory
from grpo_jax.models.loading import INDEX, load_params
from grpo_jax.models.saving import Provenance, save_model

ORIGIN = Provenance("somebody/tiny", "sums", 7, {"kl": "kl.k3"})


def tensors_in(directory):
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("name", families.NAMES)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_parameters_and_tensors_come_back_bit_for_bit(name, sharded, tmp_path, monkeypatch):
    if sharded:
        monkeypatch.setattr(saving, "_SHARD_BYTES", 20_000)
    directory, params = families.opened(name)
    save_model(params, directory, tmp_path / "saved", ORIGIN)
    assert (tmp_path / "saved" / INDEX).is_file() == sharded
    again = load_params(open_directory(tmp_path / "saved"))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    before, after = tensors_in(directory.path), tensors_in(tmp_path / "saved")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key], tensor.astype(np.float32))
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    wanted = directory.fields | {"dtype": "float32"}
    if "num_nextn_predict_layers" in wanted:
        wanted["num_nextn_predict_layers"] = 0
    assert fields == wanted


def test_bfloat16_parameters_stay_what_they_are(tmp_path):
    directory = open_directory(families.FAMILIES / "olmo2")
    params = load_params(directory, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    save_model(params, directory, tmp_path / "saved", ORIGIN)
    before, after = tensors_in(directory.path), tensors_in(tmp_path / "saved")
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        np.testing.assert_array_equal(after[key].view(np.uint16), tensor.view(np.uint16))


def test_a_model_card_says_where_it_comes_from(tmp_path):
    directory, params = families.opened("qwen3")
    save_model(params, directory, tmp_path / "saved", ORIGIN)
    card = (tmp_path / "saved" / "README.md").read_text()
    for part in ("somebody/tiny", "sums", "steps: 7", "kl: `kl.k3`", "grpo_jax 0."):
        assert part in card
    assert card.startswith("---\nbase_model: somebody/tiny\n")


def test_nothing_is_written_over_and_nothing_half_written_stays(tmp_path, monkeypatch):
    directory, params = families.opened("qwen3")
    save_model(params, directory, tmp_path / "saved", ORIGIN)
    with pytest.raises(ValueError, match="exists already"):
        save_model(params, directory, tmp_path / "saved", ORIGIN)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "values_of", full)
    with pytest.raises(OSError, match="no space"):
        save_model(params, directory, tmp_path / "other", ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def copy_of(name, tmp_path):
    shutil.copytree(families.FAMILIES / name, tmp_path / name)
    return tmp_path / name


def test_a_missing_shard_is_named(tmp_path):
    directory = copy_of("qwen2", tmp_path)
    shard = sorted(directory.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        load_params(open_directory(directory))


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_that_leaves_its_directory(outside, tmp_path):
    directory = copy_of("qwen2", tmp_path)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = outside
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside its directory"):
        load_params(open_directory(directory))


def test_integers_are_no_weights(tmp_path):
    from safetensors.numpy import save_file

    directory = copy_of("qwen3", tmp_path)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.norm.weight": np.ones(32, np.int8)}, file)
    with pytest.raises(ValueError, match="stored as I8"):
        load_params(open_directory(directory))


def test_weights_of_predictions_further_ahead_are_read_past(tmp_path):
    from safetensors.numpy import save_file

    directory = copy_of("deepseek_v3", tmp_path)
    file = directory / "model.safetensors"
    more = {"model.layers.3.eh_proj.weight": np.ones([4, 8], np.float32)}
    save_file(load_file(file) | more, file)
    params = load_params(open_directory(directory))
    jax.tree.map(np.testing.assert_array_equal, params, families.opened("deepseek_v3")[1])
    save_model(params, open_directory(directory), tmp_path / "saved", ORIGIN)
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not fields.get("num_nextn_predict_layers")


@pytest.mark.parametrize("name", families.NAMES)
def test_transformers_takes_what_was_saved(name, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from transformers import AutoModelForCausalLM

    directory, params = families.opened(name)
    changed = jax.tree.map(lambda x: x + 0.01, params)
    save_model(changed, directory, tmp_path / "saved", ORIGIN)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved",
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    assert not any(info.values()), info
    row, _ = families.said(name)[-1]
    with torch.no_grad():
        wanted = model(torch.from_numpy(row)[None].long()).logits[0].numpy()
    policy = families.policy(name, len(row))
    (found,) = families.logits_in_a_group(policy, changed, [row], 1)
    np.testing.assert_allclose(found, wanted[1:], atol=1e-4)


def test_a_score_head_is_read_and_written(tmp_path):
    directory, params = families.opened("qwen3")
    scored = dataclasses.replace(
        directory,
        config=dataclasses.replace(directory.config, num_labels=1),
        fields=directory.fields
        | {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1},
    )
    head = jax.random.normal(jax.random.key(0), (1, 32))
    save_model(params | {"score": head}, scored, tmp_path / "saved", ORIGIN)
    again = open_directory(tmp_path / "saved")
    assert again.config.num_labels == 1
    np.testing.assert_array_equal(load_params(again)["score"], head)
