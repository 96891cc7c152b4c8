"""Checkpoint directories against logits that transformers computed (scripts/make_fixtures.py)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.decoder import decoder_policy
from grpo_jax.models.directory import open_directory
from grpo_jax.models.loading import load_params
from grpo_jax.models.saving import Provenance
from grpo_jax.policy import completion_log_probs
from grpo_jax.types import Rollout

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ["tiny_llama", "tiny_llama_tied"]


ORIGIN = Provenance("tiny", "grpo", 3)


def load(name):
    directory = open_directory(FIXTURES / name)
    return directory.config, load_params(directory)


def logits_at_every_position(policy, params, tokens, lengths):
    """[N, V] float32, row by row, from a one-token prompt and the rest as a group of one."""
    prefix, first = policy.prefill(params, tokens[:, :1], jnp.ones([len(lengths), 1], bool))
    hidden, _ = policy.extend(params, prefix, tokens[:, None, 1:])
    hidden = jnp.concatenate([first[:, None], hidden[:, 0]], axis=1)
    logits = np.asarray(policy.unembed(params, hidden))
    return np.concatenate([row[:length] for row, length in zip(logits, lengths, strict=True)])


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    config, params = load(name)
    stored = np.load(FIXTURES / "tiny_llama_logits.npz")
    tokens, lengths = jnp.array(stored["tokens"]), stored["lengths"]
    policy = decoder_policy(config)
    found = logits_at_every_position(policy, params, tokens, lengths)
    np.testing.assert_allclose(found, stored[name], atol=1e-4)
    # And read as prompts, whose last state predicts what follows.
    mask = jnp.arange(tokens.shape[1])[None] < jnp.array(lengths)[:, None]
    _, hidden = policy.prefill(params, tokens, mask)
    ends = np.cumsum(lengths) - 1
    np.testing.assert_allclose(policy.unembed(params, hidden), stored[name][ends], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_grouped_scoring_and_cached_decoding_are_the_same_function(name):
    """The stored row as a prompt of 8 and a group: scored at once, and a token at a time."""
    config, params = load(name)
    stored = np.load(FIXTURES / "tiny_llama_logits.npz")
    start = int(stored["lengths"][:-1].sum())
    row, logits = stored["tokens"][-1], stored[name][start:]  # 21 tokens
    wanted = jax.nn.log_softmax(jnp.array(logits))[np.arange(7, 20), row[8:]]
    policy = decoder_policy(config)
    completion = jnp.broadcast_to(jnp.array(row[8:], jnp.int32), [1, 3, 13])
    prompt = jnp.pad(jnp.array(row[None, :8], jnp.int32), [(0, 0), (0, 4)])
    prompt_mask = jnp.arange(12)[None] < 8
    filler = jnp.zeros([1, 3, 13])
    rollout = Rollout(
        prompt, prompt_mask, completion, filler == 0, filler, filler, jnp.zeros([1, 3], bool)
    )
    scored = completion_log_probs(policy, params, rollout).log_probs
    np.testing.assert_allclose(scored[0], np.broadcast_to(wanted, [3, 13]), atol=1e-4)
    prefix, _ = policy.prefill(params, prompt, prompt_mask)
    cache = policy.init_cache(prefix, 3, 12)
    for t in range(12):
        states, cache = policy.extend(params, prefix, completion[:, :, t : t + 1], cache)
        log_probs = jax.nn.log_softmax(policy.unembed(params, states[:, :, 0]))
        np.testing.assert_allclose(
            log_probs[0, :, row[9 + t]], np.full(3, wanted[t + 1]), atol=1e-4
        )
    assert (np.asarray(cache.length) == 12).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_live_where_torch_is_installed(name):
    torch = pytest.importorskip("torch", reason="torch is not installed; stored logits serve")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FIXTURES / name, dtype=torch.float32).eval()
    tokens = np.random.default_rng(1).integers(97, size=[4, 17])
    with torch.no_grad():
        wanted = model(torch.tensor(tokens)).logits.numpy().reshape(-1, 97)
    config, params = load(name)
    found = logits_at_every_position(decoder_policy(config), params, jnp.array(tokens), [17] * 4)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_later_tokens_and_other_completions_change_nothing(name):
    """Causality by gradient: the state of token 3 of one completion sees tokens 0..3 of its own."""
    config, params = load(name)
    policy = decoder_policy(config)
    embedding = params["embedding"]
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(1, 2, 6) + 20

    def state(embedding):
        changed = params | {"embedding": embedding}
        prefix, _ = policy.prefill(
            changed, jnp.array([[1, 2, 3, 4]]), jnp.array([[1, 1, 1, 0]]) > 0
        )
        return policy.extend(changed, prefix, tokens)[0][0, 0, 3].sum()

    moved = np.flatnonzero(np.abs(np.asarray(jax.grad(state)(embedding))).sum(axis=1))
    assert moved.tolist() == [1, 2, 3, 20, 21, 22, 23]


def copy_of(name, tmp_path, **changes):
    shutil.copytree(FIXTURES / name, tmp_path / name)
    path = tmp_path / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return tmp_path / name


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"hidden_act": "gelu"},
        {"attention_bias": "yes"},
        {"rope_scaling": {"type": "mrope"}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        {"num_hidden_layers": None},
        {"sliding_window": 8},
        {"quantization_config": {"bits": 4}},
        {"is_causal": False},
        {"head_scale": 2.0},
    ],
)
def test_a_config_that_means_another_function_is_refused(change, tmp_path):
    (field,) = change
    directory = copy_of("tiny_llama", tmp_path, **change)
    with pytest.raises(ValueError, match="factor is" if field == "rope_parameters" else field):
        open_directory(directory)


def test_all_mismatches_are_listed_at_once(tmp_path):
    from safetensors.numpy import load_file, save_file

    directory = copy_of("tiny_llama", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    tensors["extra.weight"] = np.zeros(3, np.float32)
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as error:
        load_params(open_directory(directory))
    assert "missing: model.norm.weight" in str(error.value)
    assert "unexpected: extra.weight" in str(error.value)
    assert "shape of lm_head.weight: [96, 48]" in str(error.value)


def rewritten(directory, change):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_head_that_is_said_to_be_tied_and_differs(tmp_path):
    """Which of the two is meant nobody can know: the config may be wrong, or the file."""
    directory = copy_of("tiny_llama", tmp_path, tie_word_embeddings=True)
    embedding = "model.embed_tokens.weight"
    same = rewritten(directory, lambda x: x | {"lm_head.weight": x[embedding].copy()})
    expected = load_params(open_directory(same))["embedding"]
    changed = rewritten(directory, lambda x: x | {"lm_head.weight": x[embedding] + 1})
    with pytest.raises(ValueError, match=r"lm_head.weight differs.*tie_word_embeddings"):
        load_params(open_directory(changed))
    # Of two names of one tensor, either one will do.
    renamed = rewritten(directory, lambda x: {k: v for k, v in x.items() if k != embedding})
    found = load_params(open_directory(renamed))["embedding"]
    np.testing.assert_array_equal(found, np.asarray(expected) + 1)


def test_stop_ids_are_those_of_both_files(tmp_path):
    directory = copy_of("tiny_llama", tmp_path, eos_token_id=5)
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert open_directory(directory).stop_ids == (2, 5, 7)
