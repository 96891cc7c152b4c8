"""Makes `tests/fixtures/families/`: tiny random checkpoints of every family, and what torch says.

    pip install torch transformers gguf -e . && python scripts/make_family_fixtures.py

Run by hand, in an environment with torch; neither the package nor its tests need it. For each model
a directory as `save_pretrained` writes it and `said.npz`: token ids, their logits, and for some the
gradient of a log-probability in every parameter. Under 5 MB together.
"""

import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.make_fixtures import versions  # noqa: E402

FAMILIES = ROOT / "tests" / "fixtures" / "families"
LENGTHS = (1, 3, 8, 13, 21)
WITH_GRADIENT = ("qwen3", "gemma3", "deepseek_v3")
SHARDED = ("qwen2", "mixtral")
IN_BFLOAT16 = ("olmo2",)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    # Far from the usual 0.02, so that attention is not flat and a wrong step is seen.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 16}
LATENT = {
    "head_dim": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": (
        "llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama_dynamic": (
        "llama",
        {
            "max_position_embeddings": 10,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
        },
    ),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "head_dim": None},
    ),
    "qwen2_yarn": ("qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
    ),
    "gemma2": ("gemma2", {"sliding_window": 5, "query_pre_attn_scalar": 10}),
    "gemma3": (
        "gemma3_text",
        {
            "sliding_window": 5,
            "query_pre_attn_scalar": 10,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
            },
        },
    ),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {"sliding_window": 7}),
    "phi3_long": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.1],
                "long_factor": [2.0, 3.0],
            },
            "tie_word_embeddings": True,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "deepseek_v2": (
        "deepseek_v2",
        LATENT
        | {
            "q_lora_rank": 12,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.0,
            "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7},
        },
    ),
    "deepseek_v2_lite": ("deepseek_v2", LATENT | {"q_lora_rank": None, "n_shared_experts": 1}),
    "deepseek_v3": (
        "deepseek_v3",
        LATENT
        | {
            "q_lora_rank": 12,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
}


def model_of(name: str, **others: Any) -> Any:
    """A random model, with nothing at a value at which a mistake would not show; `others` are
    fields of its config in the place of those here."""
    kind, changes = MODELS[name]
    settings = SIZES | changes | others
    if "tie_word_embeddings" not in settings:
        settings["tie_word_embeddings"] = False
    settings = {
        key: value for key, value in settings.items() if value is not None or key != "head_dim"
    }
    config = transformers.AutoConfig.for_model(kind, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(sorted(MODELS).index(name))
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for path, values in weights.items():
            if "inv_freq" in path or "embed_scale" in path:
                continue
            if "correction" in path:
                values.uniform_(-0.3, 0.3)
            elif "norm" in path:
                around = 0.0 if "gemma" in name else 1.0
                values.uniform_(around - 0.5, around + 0.5)
            elif path.endswith("bias"):
                values.uniform_(-0.5, 0.5)
            elif "gate.weight" in path or "expert" in path:
                values.normal_(0, 0.3)
            if name in IN_BFLOAT16:  # what the file will say
                values.copy_(values.bfloat16().float())
    return model


def said_by(model: Any, rows: list[np.ndarray]) -> np.ndarray:
    """Logits [sum of lengths, V], one sequence at a time: no padding, no mask to agree upon."""
    with torch.no_grad():
        return np.concatenate(
            [model(torch.from_numpy(row)[None].long()).logits[0].float().numpy() for row in rows]
        )


def gradient_of(model: Any, row: np.ndarray) -> dict[str, np.ndarray]:
    """Of the log-probability of a row after its first token, in every parameter."""
    tokens = torch.from_numpy(row)[None].long()
    model.zero_grad()
    log_probs = torch.log_softmax(model(tokens).logits[0, :-1].float(), dim=-1)
    log_probs[torch.arange(len(row) - 1), tokens[0, 1:]].sum().backward()
    return {
        path: values.grad.numpy()
        for path, values in model.named_parameters()
        if values.grad is not None
    }


def main() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, SIZES["vocab_size"], n).astype(np.int32) for n in LENGTHS]
    tokens = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = row
    shutil.rmtree(FAMILIES, ignore_errors=True)
    about = "logits [sum(lengths), V] at the real positions, row by row"
    for name in MODELS:
        model, directory = model_of(name), FAMILIES / name
        arrays = {"tokens": tokens, "lengths": np.array(LENGTHS), "logits": said_by(model, rows)}
        info = {"about": about, **versions()}
        kept = model.bfloat16() if name in IN_BFLOAT16 else model
        kept.save_pretrained(directory, max_shard_size="40KB" if name in SHARDED else "5GB")
        if name in WITH_GRADIENT:
            # In the names of the saved file: a model with the gradient in the place of its weights.
            found = gradient_of(model, rows[-1])
            with torch.no_grad():
                for path, values in model.named_parameters():
                    values.copy_(torch.from_numpy(found.get(path, np.zeros(values.shape, "f4"))))
                for path, values in model.named_buffers():
                    if "correction" in path:  # of the choice of experts, which has no gradient
                        values.zero_()
            model.save_pretrained(directory / "gradient")
            (directory / "gradient" / "config.json").unlink()
        np.savez_compressed(directory / "said.npz", info=np.array(json.dumps(info)), **arrays)
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        print(f"{name}: {size / 1e3:.0f} kB")
    total = sum(file.stat().st_size for file in FAMILIES.rglob("*") if file.is_file())
    print(f"{total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
