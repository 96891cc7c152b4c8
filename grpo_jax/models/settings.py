"""What of a network is chosen apart from its weights."""

import dataclasses
from typing import Literal

from grpo_jax.config import Config
from grpo_jax.models.lora import Lora


@dataclasses.dataclass(frozen=True)
class Settings:
    """What of a network is chosen apart from its weights.

    Attributes:
        compute_dtype: of activations and products, "float32" or "bfloat16"; "auto" takes bfloat16
            on a GPU or TPU, and float32 on a CPU, which is slower in bfloat16.
        param_dtype: of the parameters, "float32" or "bfloat16"; adapters are float32.
        cache_dtype: of keys and values that are kept; "auto" takes that of activations.
        attention_kernels: as `Compute` has it.
        longest: tokens of the longest prompt and completion; 0 where nobody knows.
        keep_routing: as `Compute` has it.
        scan_layers: parameters of all layers as one array, run as one loop (`stacking`).
        remat: as `Compute` has it.
        lora: adapters to train in the place of the parameters; None trains these.
        seed: of random parameters and adapters.
        date: the day that a chat template is told, "2026-11-30"; "" for today. A resumed run is
            told the day on which it began.
    """

    compute_dtype: str = "auto"
    param_dtype: str = "float32"
    cache_dtype: str = "auto"
    attention_kernels: bool = True
    longest: int = 0
    keep_routing: bool = False
    scan_layers: bool = False
    remat: Literal["none", "all but products", "all"] = "none"
    lora: Lora | None = None
    seed: int = 0
    date: str = ""

    @staticmethod
    def of(config: Config, *, date: str = "") -> "Settings":
        """Those of a run."""
        lora = None
        if config.lora_rank:
            lora = Lora(
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                targets=config.lora_targets,
                dropout=config.lora_dropout,
            )
        return Settings(
            compute_dtype=config.compute_dtype,
            param_dtype=config.param_dtype,
            cache_dtype=config.cache_dtype,
            attention_kernels=config.attention_kernels,
            longest=config.max_prompt_tokens + config.max_new_tokens,
            keep_routing=config.keep_routing,
            scan_layers=config.scan_layers,
            remat=config.remat,
            lora=lora,
            seed=config.seed,
            date=date,
        )


DEFAULTS = Settings()
"""Where nothing is asked for."""
