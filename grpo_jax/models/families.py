"""Model families: the fields of their config.json -> our config.

A row for each `model_type`. What an absent field stands for is what the family's own code takes it
for (transformers 5). The names of their tensors are in `tensors`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_jax.models.config import DecoderConfig, Experts, Latent, Layer
from grpo_jax.models.fields import Fields, refuse_all
from grpo_jax.models.rotary import Rotary, extended_amplitude
from grpo_jax.models.rotary_fields import rope_fields, rotary_of

SLIDING, FULL = "sliding_attention", "full_attention"


def config_of(values: dict[str, Any], path: Path) -> DecoderConfig:
    """The fields of config.json -> the decoder's config.

    Args:
        values: the fields.
        path: of the file, for messages.

    Raises:
        ValueError: they describe a function that the decoder does not compute; all reasons at once.
    """
    kind, quantized = values.get("model_type"), values.get("quantization_config")
    if kind not in FAMILIES:
        raise ValueError(
            f"cannot use {path}:\n  model_type is {kind!r}; understood: {', '.join(FAMILIES)}"
        )
    if quantized:
        raise ValueError(
            f"cannot use {path}:\n  quantization_config is {str(quantized)[:80]}; only plain "
            "weights are read: convert the checkpoint to bfloat16 or float32 first"
        )
    fields = Fields(values)
    try:
        config = FAMILIES[kind](fields)
    except ValueError as error:  # of fields that do not fit together
        raise ValueError(
            f"cannot use {path}:" + "".join(f"\n  {p}" for p in [*fields.problems, str(error)])
        ) from None
    fields.one_of("is_causal", True)
    fields.check_all_read()
    refuse_all(path, fields.problems)
    return config


# ---------------------------------------------------------------- families


def _llama(f: Fields) -> DecoderConfig:
    """Llama 2 to 3.2, SmolLM2, DeepSeekMath, the R1 distillations of Llama."""
    bias = f.flag("attention_bias")
    f.one_of("rope_interleaved", False)
    return _decoder(
        f,
        _same_layers(f, rotary_of(f)),
        tied=False,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=f.flag("mlp_bias"),
    )


def _smollm3(f: Fields) -> DecoderConfig:
    """SmolLM3: every fourth layer has no positions."""
    count, bias = f.count("num_hidden_layers"), f.flag("attention_bias")
    interval = f.count("no_rope_layer_interval", 4)
    f.passed_over("max_window_layers")
    if f.has("no_rope_layers"):
        turned = f.each("no_rope_layers", count, 0, 1)
    else:
        turned = [int((i + 1) % interval != 0) for i in range(count)]
    rotary, window = rotary_of(f, theta=2_000_000.0), _window(f)
    sliding = _sliding(f, count, [not x for x in turned])
    layers = [
        Layer(rotary if on else None, window if slides else 0)
        for on, slides in zip(turned, sliding, strict=True)
    ]
    return _decoder(
        f,
        layers,
        tied=True,
        kv_heads=4,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=f.flag("mlp_bias"),
    )


def _mistral(f: Fields) -> DecoderConfig:
    """Mistral: where there is a window, all layers have it."""
    window = _window(f, flagged=False, default=4096)
    return _decoder(f, _same_layers(f, rotary_of(f), window), tied=False, kv_heads=8)


def _qwen2(f: Fields) -> DecoderConfig:
    """Qwen2, Qwen2.5, the R1 distillations of Qwen."""
    f.one_of("use_mrope", False)
    return _decoder(f, _qwen_layers(f), tied=False, kv_heads=32, attention_bias=True)


def _qwen3(f: Fields) -> DecoderConfig:
    """Qwen3: norms of each head's queries and keys."""
    bias = f.flag("attention_bias")
    return _decoder(
        f,
        _qwen_layers(f),
        tied=False,
        head_dim=128,
        kv_heads=32,
        head_norm="head",
        attention_bias=bias,
        output_bias=bias,
    )


def _qwen3_moe(f: Fields) -> DecoderConfig:
    """Qwen3-MoE: experts in every `decoder_sparse_step`-th layer."""
    count, bias = f.count("num_hidden_layers"), f.flag("attention_bias")
    experts = Experts(
        count=f.count("num_experts" if f.has("num_experts") else "num_local_experts", 128),
        taken=f.count("num_experts_per_tok", 8),
        width=f.count("moe_intermediate_size", 768),
        normalised=f.flag("norm_topk_prob"),
    )
    f.passed_over("num_local_experts")
    step = f.count("decoder_sparse_step", 1)
    dense = f.layers("mlp_only_layers")
    f.passed_over("max_window_layers")
    f.one_of("use_qk_norm", True)
    window, rotary = _window(f, default=4096), rotary_of(f)
    layers = [
        Layer(rotary, window, experts if i not in dense and (i + 1) % step == 0 else None)
        for i in range(count)
    ]
    return _decoder(
        f, layers, tied=False, kv_heads=4, head_norm="head", attention_bias=bias, output_bias=bias
    )


def _gemma2(f: Fields) -> DecoderConfig:
    """Gemma 2: soft caps, and a window in every other layer."""
    count, rotary = f.count("num_hidden_layers"), rotary_of(f, head_dim=256)
    sliding = _sliding(f, count, [i % 2 == 0 for i in range(count)])
    window = _window(f, flagged=False, default=4096)
    f.one_of("sliding_window_size", window)  # the same again in some files
    layers = [Layer(rotary, window if slides else 0) for slides in sliding]
    caps = {"score_cap": _cap(f, "attn_logit_softcapping", 50.0)}
    caps["logit_cap"] = _cap(f, "final_logit_softcapping", 30.0)
    return _gemma(f, layers, **caps)


def _gemma3(f: Fields) -> DecoderConfig:
    """Gemma 3, its text model: layers with a window have positions of their own."""
    count = f.count("num_hidden_layers")
    every = f.count("sliding_window_pattern", f.values.get("_sliding_window_pattern") or 6)
    sliding = _sliding(f, count, [(i + 1) % every != 0 for i in range(count)])
    window = _window(f, flagged=False, default=4096)
    if any(kind in (f.values.get("rope_parameters") or {}) for kind in (SLIDING, FULL)):
        inner = f.inner("rope_parameters")
        wide, near = (
            rotary_of(f, head_dim=256, theta=theta, scaling=inner.inner(kind))
            for kind, theta in (
                (FULL, f.number("rope_theta", 1_000_000.0)),
                (SLIDING, f.number("rope_local_base_freq", 10_000.0)),
            )
        )
        inner.check_all_read()
    else:
        wide = rotary_of(f, head_dim=256, theta=1_000_000.0)
        near = Rotary(f.count("head_dim", 256), f.number("rope_local_base_freq", 10_000.0))
    layers = [Layer(near, window) if slides else Layer(wide) for slides in sliding]
    f.one_of("attn_logit_softcapping", None)  # its own code does not apply it
    cap = _cap(f, "final_logit_softcapping")
    return _gemma(f, layers, head_norm="head", logit_cap=cap)


def _gemma(f: Fields, layers: list[Layer], **changes: Any) -> DecoderConfig:
    bias = f.flag("attention_bias")
    f.one_of("use_bidirectional_attention", False)
    for name in ("hidden_activation", "hidden_act"):
        f.one_of(name, "gelu_pytorch_tanh")
    return _decoder(
        f,
        layers,
        tied=True,
        head_dim=256,
        kv_heads=4,
        attention_bias=bias,
        output_bias=bias,
        unit_offset=True,
        norm_after=True,
        gelu=True,
        attention_scale=f.number("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=f.count("hidden_size") ** 0.5,
        **changes,
    )


def _olmo2(f: Fields) -> DecoderConfig:
    """OLMo 2: norms after attention and MLP, not before, and of all queries and keys together."""
    bias = f.flag("attention_bias")
    return _decoder(
        f,
        _same_layers(f, rotary_of(f)),
        tied=False,
        eps=1e-5,
        norm_before=False,
        norm_after=True,
        head_norm="all",
        attention_bias=bias,
        output_bias=bias,
    )


def _phi3(f: Fields) -> DecoderConfig:
    """Phi-3, Phi-3.5, Phi-4-mini."""
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        f.one_of(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        f.one_of(name, 1)
    window, rotary = _window(f, flagged=False), rotary_of(f, trained=4096)
    return _decoder(f, _same_layers(f, rotary, window), tied=False, eps=1e-5)


def _mixtral(f: Fields) -> DecoderConfig:
    """Mixtral: experts in every layer."""
    experts = Experts(
        count=f.count("num_local_experts", 8),
        taken=f.count("num_experts_per_tok", 2),
        width=f.count("intermediate_size"),
    )
    window = _window(f, flagged=False)
    layers = _same_layers(f, rotary_of(f, theta=1_000_000.0), window, experts)
    return _decoder(f, layers, tied=False, kv_heads=8, eps=1e-5)


def _deepseek_v2(f: Fields) -> DecoderConfig:
    """DeepSeek-V2: the best experts of the best groups."""
    method = f.one_of("topk_method", "greedy", "group_limited_greedy")
    f.one_of("norm_topk_prob", False)  # implementations disagree on what it would scale
    f.one_of("scoring_func", "softmax")
    limited = method == "group_limited_greedy"
    groups = {
        "groups": f.count("n_group", 1) if limited else 1,
        "groups_taken": f.count("topk_group", 1) if limited else 1,
    }
    f.passed_over("n_group", "topk_group")
    return _deepseek(f, dense=0, shared=2, normalised=False, **groups)


def _deepseek_v3(f: Fields) -> DecoderConfig:
    """DeepSeek-V3, DeepSeek-R1: sigmoid scores with a correction where experts are chosen."""
    f.one_of("topk_method", "noaux_tc")
    f.one_of("scoring_func", "sigmoid")
    return _deepseek(
        f,
        dense=3,
        shared=1,
        sigmoid=True,
        corrected=True,
        by_best_two=True,
        normalised=f.flag("norm_topk_prob", default=True),
        groups=f.count("n_group", 8),
        groups_taken=f.count("topk_group", 4),
    )


def _deepseek(f: Fields, *, dense: int, shared: int, **routing: Any) -> DecoderConfig:
    v3 = bool(routing.get("corrected"))
    width = f.count("moe_intermediate_size", 2048 if v3 else 1407)
    first = f.count("first_k_dense_replace", dense, least=0)
    f.passed_over("head_dim", "qk_head_dim", "num_key_value_heads")
    f.one_of("moe_layer_freq", 1)
    f.one_of("mlp_bias", False)
    experts = Experts(
        count=f.count("n_routed_experts", 256 if v3 else 64),
        taken=f.count("num_experts_per_tok", 8 if v3 else None),
        width=width,
        scale=f.number("routed_scaling_factor", 2.5 if v3 else 1.0),
        shared_width=f.count("n_shared_experts", shared) * width,
        **routing,
    )
    turned, plain = f.count("qk_rope_head_dim", 64), f.count("qk_nope_head_dim", 128)
    # The code of V2 does not ask.
    interleaved = f.flag("rope_interleave", default=True) if v3 else True
    rotary = rotary_of(f, turned=turned, interleaved=interleaved)
    latent = Latent(
        query_rank=0 if f.is_null("q_lora_rank") else f.count("q_lora_rank", 1536),
        key_rank=f.count("kv_lora_rank", 512),
        plain_width=plain,
        value_width=f.count("v_head_dim", 128),
    )
    f.passed_over("q_lora_rank")
    count = f.count("num_hidden_layers")
    layers = [Layer(rotary, experts=experts if i >= first else None) for i in range(count)]
    bias = f.flag("attention_bias")
    # Besides the cosine and sine, YaRN's amplitude goes to whole scores, of plain channels too.
    scaling = rope_fields(f)
    amplitude = 1.0
    if scaling.values.get("mscale_all_dim"):  # 0 stands for none
        weight = scaling.number("mscale_all_dim")
        amplitude = extended_amplitude(scaling.number("factor", 1.0), weight)
    return _decoder(
        f,
        layers,
        tied=False,
        head_dim=plain + turned,
        kv_heads=1,
        attention_bias=bias,
        output_bias=bias,
        attention_scale=(plain + turned) ** -0.5 * amplitude**2,
        latent=latent,
    )


FAMILIES: dict[str, Callable[[Fields], DecoderConfig]] = {
    "llama": _llama,
    "smollm3": _smollm3,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "mixtral": _mixtral,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
}


# ---------------------------------------------------------------- what they share


def _decoder(
    f: Fields,
    layers: list[Layer],
    *,
    tied: bool,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    eps: float = 1e-6,
    **changes: Any,
) -> DecoderConfig:
    heads, hidden = f.count("num_attention_heads"), f.count("hidden_size")
    if "latent" not in changes:
        head_dim = f.count("head_dim", head_dim or max(hidden // heads, 1))
        absent = None if f.is_null("num_key_value_heads") else kv_heads
        kv_heads = f.count("num_key_value_heads", absent or heads)
    if not changes.get("gelu"):
        f.one_of("hidden_act", "silu")
    assert head_dim
    assert kv_heads
    return DecoderConfig(
        vocab_size=f.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=f.count("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(layers),
        norm_eps=f.number("rms_norm_eps", eps),
        tie_embeddings=f.flag("tie_word_embeddings", default=tied),
        **changes,
    )


def _same_layers(
    f: Fields, rotary: Rotary, window: int = 0, experts: Experts | None = None
) -> list[Layer]:
    return [Layer(rotary, window, experts)] * f.count("num_hidden_layers")


def _qwen_layers(f: Fields) -> list[Layer]:
    count, first = f.count("num_hidden_layers"), f.count("max_window_layers", 28, least=0)
    rotary, window = rotary_of(f), _window(f, default=4096)
    sliding = _sliding(f, count, [i >= first for i in range(count)])
    return [Layer(rotary, window if slides else 0) for slides in sliding]


def _window(f: Fields, *, flagged: bool = True, default: int = 0) -> int:
    """Tokens of a window; 0 where there is none. `flagged`: only with use_sliding_window."""
    on = f.flag("use_sliding_window") if flagged else True
    f.passed_over("sliding_window")
    if not on or ("sliding_window" in f.values and not f.has("sliding_window")):
        return 0
    return f.count("sliding_window", default or None) if default or f.has("sliding_window") else 0


def _sliding(f: Fields, count: int, by_rule: list[bool]) -> list[bool]:
    """Which layers have the window: as the config lists them, or by the family's rule."""
    if not f.has("layer_types"):
        return by_rule
    return [kind == SLIDING for kind in f.each("layer_types", count, FULL, SLIDING)]


def _cap(f: Fields, name: str, default: float = 0.0) -> float:
    """0 for none: null in the file says so, while an absent field is the default."""
    f.passed_over(name)
    return f.number(name) if f.has(name) else 0.0 if name in f.values else default
