"""Every family beside transformers, in shapes that no fixture has; where torch is installed."""

import numpy as np
import pytest
from models import families

from grpo_jax.models.decoder import decoder_policy
from grpo_jax.models.directory import open_directory
from grpo_jax.models.layers import Compute
from grpo_jax.models.loading import load_params

SHAPES = [
    {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 4},
    {"vocab_size": 131, "num_key_value_heads": 1, "intermediate_size": 40, "rms_norm_eps": 1e-3},
]


@pytest.mark.parametrize("changes", SHAPES, ids=["wide", "one key head"])
@pytest.mark.parametrize("name", families.NAMES)
def test_logits_of_other_shapes(name, changes, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from scripts.make_family_fixtures import model_of, said_by

    if "deepseek" in name:  # whose keys are those of all heads
        heads = changes.get("num_attention_heads", 4)
        changes = changes | {"num_key_value_heads": heads}
    if name == "gemma3" and "num_hidden_layers" in changes:  # the fixture names three
        kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
        changes = changes | {"layer_types": kinds}
    tied = not open_directory(families.FAMILIES / name).config.tie_embeddings
    model = model_of(name, **changes, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    directory = open_directory(tmp_path / "model")
    assert directory.config.tie_embeddings == tied
    params = load_params(directory)
    generator = np.random.default_rng(1)
    rows = [generator.integers(3, 90, n).astype(np.int32) for n in (11, 19)]
    if name in families.SCALED_BY_LENGTH:
        rows = rows[-1:]
    policy = decoder_policy(directory.config, Compute(longest=max(map(len, rows))))
    wanted = [said_by(model, [row]) for row in rows]
    grouped = families.logits_in_a_group(policy, params, rows, 5)
    stepped = families.logits_in_steps(policy, params, rows, 5)
    for ours, steps, theirs in zip(grouped, stepped, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs[5:], atol=1e-4)
        np.testing.assert_allclose(steps, theirs[5 : 5 + len(steps)], atol=1e-4)
