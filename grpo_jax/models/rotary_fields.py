"""Fields of config.json about positions -> `Rotary`, for all families."""

from grpo_jax.models.fields import Fields
from grpo_jax.models.rotary import (
    Dynamic,
    Interpolated,
    Llama3,
    LongRope,
    Rotary,
    Yarn,
    extended_amplitude,
    longrope_amplitude,
)


def rope_fields(f: Fields) -> Fields:
    """Where the scaling of positions is told: newer files, older files."""
    both = f.has("rope_parameters") and f.has("rope_scaling")
    if both and f.values["rope_parameters"] != f.values["rope_scaling"]:
        f.refuse("rope_parameters and rope_scaling are both given, and differ; keep one")
    f.passed_over("rope_parameters", "rope_scaling")
    return f.inner("rope_parameters" if f.has("rope_parameters") else "rope_scaling")


def rotary_of(
    f: Fields,
    *,
    head_dim: int | None = None,
    theta: float = 10_000.0,
    turned: int | None = None,
    interleaved: bool = False,
    scaling: Fields | None = None,
    trained: int | None = None,
) -> Rotary:
    """Positions, with their scaling.

    Args:
        f: the fields.
        head_dim: channels of a head where no field says.
        theta: `rope_theta` where no field says.
        turned: channels that are turned, where that is not a share of a head's.
        interleaved: pairs are neighbours.
        scaling: of this kind of layer, where kinds have their own.
        trained: the length trained at where no field outside the scaling says; None asks the
            scaling, and then the longest.
    """
    s = rope_fields(f) if scaling is None else scaling
    share = s.number("partial_rotary_factor", f.number("partial_rotary_factor", 1.0))
    if share != 1 and f.values.get("model_type") != "phi3":
        f.refuse(f"partial_rotary_factor is {share}; in this family it is understood as 1")
    if turned is None:
        heads, hidden = f.count("num_attention_heads"), f.count("hidden_size")
        turned = int(f.count("head_dim", head_dim or max(hidden // heads, 1)) * share)
    base = s.number("rope_theta", f.number("rope_theta", theta) if scaling is None else theta)
    longest = f.count("max_position_embeddings", 2048)
    # Outside the object it has precedence (Phi-3).
    within = s.count("original_max_position_embeddings", longest)
    trained = f.count("original_max_position_embeddings", trained or within)

    kinds = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")
    s.passed_over("type")
    name = "rope_type" if s.has("rope_type") else "type"
    kind = s.one_of(name, *kinds)
    # In files of Phi-3 both names stand for what came to be called so.
    kind = "longrope" if kind == "su" or (kind == "yarn" and s.has("short_factor")) else kind
    found, amplitude = None, 1.0
    if kind == "linear":
        found = Interpolated(s.number("factor"))
    elif kind == "dynamic":
        found = Dynamic(s.number("factor"), longest)
    elif kind == "llama3":
        factor = s.number("factor")
        low, high = s.number("low_freq_factor"), s.number("high_freq_factor")
        found = Llama3(factor, low, high, trained)
    elif kind == "yarn":
        factor = s.number("factor", longest / trained)
        amplitude = extended_amplitude(factor)
        if s.values.get("mscale") and s.values.get("mscale_all_dim"):  # 0 stands for none
            weight, whole = s.number("mscale"), s.number("mscale_all_dim")
            amplitude = extended_amplitude(factor, weight) / extended_amplitude(factor, whole)
        s.passed_over("mscale", "mscale_all_dim")
        amplitude = s.number("attention_factor", amplitude)
        s.passed_over("attn_factor")  # which transformers does not apply, either; others do
        fast, slow = s.number("beta_fast", 32.0), s.number("beta_slow", 1.0)
        found = Yarn(factor, trained, fast, slow, s.flag("truncate", default=True))
    elif kind == "longrope":
        short, long = (
            tuple(map(float, s.each(name, turned // 2))) for name in ("short_factor", "long_factor")
        )
        factor = s.number("factor", longest / trained)
        amplitude = s.number("attention_factor", longrope_amplitude(factor, trained))
        found = LongRope(short, long, trained)
    s.passed_over("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")
    s.passed_over("finetuned")
    s.check_all_read(understood=("factor",) if kind == "default" else ())
    return Rotary(turned, base, found, amplitude, interleaved)
