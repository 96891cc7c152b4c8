"""Scores of completions and values of tokens, against one row at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from grpo_jax.models.decoder import decoder_policy, init_params
from grpo_jax.models.directory import open_directory
from grpo_jax.models.heads import completion_scores, init_value_head, token_values
from grpo_jax.models.loading import load_params
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups

CONFIG = dataclasses.replace(networks.CONFIG, num_labels=3)
SCORER = decoder_policy(CONFIG)
ROLLOUT = sample_groups(
    networks.POLICY,
    networks.params(),
    networks.prompts((5, 1, 3)),
    prompt_keys(jax.random.key(2), 0, 3),
    group_size=4,
    sampling=Sampling(max_new_tokens=7, stop_ids=tuple(range(6))),
)


def rows():
    for p, g in np.ndindex(3, 4):
        prompt = np.asarray(ROLLOUT.prompt[p])[np.asarray(ROLLOUT.prompt_mask[p])]
        said = np.asarray(ROLLOUT.completion[p, g])[np.asarray(ROLLOUT.completion_mask[p, g])]
        yield p, g, prompt, said


def test_the_score_is_said_after_the_last_token():
    params = init_params(CONFIG, jax.random.key(4))
    assert params["score"].shape == (3, 32)
    assert "head" not in params
    found = completion_scores(SCORER, params, ROLLOUT)
    assert found.shape == (3, 4, 3)
    assert found.dtype == jnp.float32
    for p, g, prompt, said in rows():
        row = jnp.array(np.concatenate([prompt, said]))[None]
        _, last = SCORER.prefill(params, row, row >= 0)
        np.testing.assert_allclose(found[p, g], params["score"] @ last[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_scores_are_those_of_transformers(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        kind,
        vocab_size=53,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_labels=3,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    directory = open_directory(tmp_path / "model")
    found = completion_scores(decoder_policy(directory.config), load_params(directory), ROLLOUT)
    for p, g, prompt, said in rows():
        row = torch.tensor(np.concatenate([prompt, said]))[None]
        with torch.no_grad():
            wanted = model(row).logits[0].numpy()
        np.testing.assert_allclose(found[p, g], wanted, atol=1e-5)


def test_the_value_is_said_before_the_token_is_chosen():
    params = networks.params()
    assert not np.asarray(token_values(networks.POLICY, params, init_value_head(32), ROLLOUT)).any()
    head = {"kernel": jax.random.normal(jax.random.key(5), (1, 32)), "bias": jnp.array([0.7])}
    found = np.asarray(token_values(networks.POLICY, params, head, ROLLOUT))
    for p, g, prompt, said in rows():
        for t in range(len(said)):
            row = jnp.array(np.concatenate([prompt, said[:t]]))[None]
            _, last = networks.POLICY.prefill(params, row, row >= 0)
            np.testing.assert_allclose(found[p, g, t], head["kernel"][0] @ last[0] + 0.7, atol=1e-4)
        assert not found[p, g, len(said) :].any()
