"""Runs that train adapters: resumed, exported, evaluated."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import toys
from safetensors.numpy import load_file

import grpo_jax
from grpo_jax import runner, tasks
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.models.loading import WEIGHTS
from grpo_jax.models.network import pretrained
from grpo_jax.models.saving import Provenance
from grpo_jax.models.settings import Settings

LORA = {"lora_rank": 2, "lora_alpha": 8.0, "learning_rate": 1e-2}
ORIGIN = Provenance("tiny", "grpo", 2)
SHORT = {"max_prompt_tokens": 16, "max_new_tokens": 8}


def adapted(model, run_dir, **fields):
    """A run of the tiny Llama on sums of letters, by adapters."""
    config = dataclasses.replace(
        toys.config(run_dir, model=str(model), **(LORA | SHORT | fields)), eval_questions=0
    )
    return runner.run(config, task=tasks.MaxOfThree(), objective=grpo_jax.grpo(kl_coef=0.05))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toys.llama_directory(tmp_path_factory.mktemp("models") / "llama")


def network_of(model, **fields):
    return pretrained(str(model), Settings.of(toys.config("unused", **(LORA | SHORT | fields))))


def saved(run_dir, network):
    checkpoints = Checkpoints(run_dir / "checkpoints")
    found = checkpoints.restore_params(network.shapes)
    checkpoints.close()
    return found


def exported(model, place):
    """A run of two steps, written merged and apart."""
    adapted(model, place / "run", steps=2)
    network = network_of(model)
    _, trained = saved(place / "run", network)
    network.export(network.whole(trained), place / "merged", ORIGIN)
    network.export_adapters(trained, place / "apart", ORIGIN)
    return network, network.whole(trained)


def test_a_resumed_run_is_the_uninterrupted_one(model, tmp_path):
    adapted(model, tmp_path / "one", steps=4)
    adapted(model, tmp_path / "two", steps=2)
    adapted(model, tmp_path / "two", steps=4, resume=True)
    network = network_of(model)
    (step, one), (_, two) = (saved(tmp_path / name, network) for name in ("one", "two"))
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert toys.metrics(tmp_path / "one") == toys.metrics(tmp_path / "two")
    kl = [line["kl"] for line in toys.metrics(tmp_path / "one")]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-6
    size = sum(leaf.size for leaf in jax.tree.leaves(one))
    whole = sum(leaf.size for leaf in jax.tree.leaves(pretrained(str(model)).shapes))
    assert size < whole / 5


def test_exports_merged_and_apart(model, tmp_path):
    network, params = exported(model, tmp_path)
    prompts = grpo_jax.Prompts(np.arange(10)[None] + 3, np.ones([1, 10], bool))
    merged = pretrained(str(tmp_path / "merged"))
    said = []
    for policy, whole in ((network.policy, params), (merged.policy, merged.load())):
        _, hidden = policy.prefill(whole, prompts.tokens, prompts.mask)
        said.append(policy.unembed(whole, hidden))
    np.testing.assert_allclose(*said, atol=1e-4)

    fields = json.loads((tmp_path / "apart" / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["r"], fields["lora_alpha"]) == ("LORA", 2, 8.0)
    tensors = load_file(tmp_path / "apart" / "adapter_model.safetensors")
    base = load_file(model / WEIGHTS)
    whole = load_file(tmp_path / "merged" / WEIGHTS)
    name = "model.layers.1.self_attn.q_proj"
    assert name in fields["target_modules"]
    down, up = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    np.testing.assert_allclose(
        whole[f"{name}.weight"], base[f"{name}.weight"] + 4 * up @ down, atol=1e-6
    )
    assert len(tensors) == 2 * 7 * 3
    np.testing.assert_array_equal(whole["model.norm.weight"], base["model.norm.weight"])


def test_peft_reads_the_adapters(model, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    exported(model, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    beside = peft.PeftModel.from_pretrained(base, tmp_path / "apart")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokens = torch.arange(12)[None] + 3
    with torch.no_grad():
        found, wanted = (m(tokens).logits.numpy() for m in (beside, merged))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_network_without_adapters_has_none_to_export(model):
    assert pretrained(str(model)).export_adapters is None


def test_layers_as_one_loop_are_the_same_run(model, tmp_path):
    adapted(model, tmp_path / "apart", steps=2)
    adapted(model, tmp_path / "loop", steps=2, scan_layers=True)
    one, other = (toys.metrics(tmp_path / name) for name in ("apart", "loop"))
    for line, again in zip(one, other, strict=True):
        assert line == pytest.approx(again, rel=1e-3, abs=1e-5)
