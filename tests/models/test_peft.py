"""Adapters in PEFT's layout, of products that a checkpoint holds as one."""

import json

import jax
import numpy as np
import pytest
from models import families
from safetensors.numpy import load_file

from grpo_jax.models.loading import values_of
from grpo_jax.models.lora import Lora, init_adapters, merged
from grpo_jax.models.peft import save_adapters
from grpo_jax.models.saving import Provenance
from grpo_jax.models.tensors import rows

ORIGIN = Provenance("tiny", "grpo", 2)


def written(name, lora, target):
    directory, params = families.opened(name)
    fresh = init_adapters(params, lora, jax.random.key(0))
    adapters = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), fresh
    )
    save_adapters(adapters, lora, directory, target, ORIGIN)
    fields = json.loads((target / "adapter_config.json").read_text())
    return directory, params, adapters, fields, load_file(target / "adapter_model.safetensors")


@pytest.mark.parametrize("targets", [("*",), ("*/attention/value", "*/mlp/gate")], ids=str)
@pytest.mark.parametrize("name", ["phi3", "qwen3", "deepseek_v2", "mixtral"])
def test_the_base_and_what_peft_would_add_is_the_merged_model(name, targets, tmp_path):
    if name != "phi3" and len(targets) > 1:
        pytest.skip("the patterns are those of the fused family")
    lora = Lora(rank=2, alpha=3.0, targets=targets)
    directory, params, adapters, fields, tensors = written(name, lora, tmp_path / "apart")
    whole = merged(params, adapters, lora)
    seen = set()
    for row in rows(directory):
        module = row.name.removesuffix(".weight")
        before, after = values_of(row, params), values_of(row, whole)
        if module not in fields["target_modules"]:
            np.testing.assert_array_equal(before, after)
            continue
        down, up = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        rank = fields["rank_pattern"].get(module, fields["r"])
        alpha = fields["alpha_pattern"].get(module, fields["lora_alpha"])
        assert down.shape[0] == rank
        np.testing.assert_allclose(before + alpha / rank * up @ down, after, atol=1e-5)
        assert np.abs(before - after).max() > 1e-3
        seen.add(module)
    assert seen == set(fields["target_modules"])
    assert len(tensors) == 2 * len(seen)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space"):
        written("qwen3", Lora(rank=2), tmp_path / "apart")
    assert not list(tmp_path.iterdir())
