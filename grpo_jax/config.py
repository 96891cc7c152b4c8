"""The values of a run: frozen, plain, checked when made, saved with the run. No JAX."""

import dataclasses
from typing import Literal, get_args, get_origin


@dataclasses.dataclass(frozen=True)
class Config:
    """Values that every experiment has; an experiment's own config adds to them.

    Raises:
        ValueError: a value breaks its rule; names the value, the rule and the way out.
    """

    model: str = "smollm2-135m-instruct"
    """The embedded default, a Hugging Face model directory, or a hub id."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and matrix products; auto is bfloat16 on a GPU or TPU, float32 on a CPU."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters. In bfloat16, steps of a small learning rate are lost in rounding: for
    frozen ones (--lora-rank)."""
    cache_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the keys and values that are kept; auto takes that of activations."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of AdamW's mean of gradients; its mean of their squares is float32 in any case."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank in the place of the parameters; 0 trains these."""
    lora_alpha: float = 32.0
    """What adapters add is multiplied by alpha / rank."""
    lora_targets: tuple[str, ...] = ("*",)
    """Patterns of the kernels' paths that get adapters, as layers_*/attention/query."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs that training sets to 0."""
    keep_routing: bool = False
    """Of a network of experts: training takes the experts again that sampling took."""
    balance_coef: float = 0.0
    """Of a network of experts: coefficient of the loss for an even load of them."""
    scan_layers: bool = False
    """All layers as one loop: a deep network compiles in the time of one layer."""
    remat: Literal["none", "all but products", "all"] = "none"
    """What of a layer the backward pass computes again, to hold less memory; for more tokens at
    once raise micro_batch_tokens, whose choice by itself does not count on it."""
    attention_kernels: bool = True
    """Attention of prompts and of training by cuDNN (GPU) or splash (TPU), where they fit."""
    run_dir: str = ""
    """Where the run writes. Default: a new directory under runs/."""
    resume: bool = False
    """Continue the run in run_dir from its newest checkpoint."""
    seed: int = 0
    """Of everything random: questions, keys, initial parameters of a toy."""
    steps: int = 30
    """Steps in all; one is a phase of sampling and its updates."""

    num_prompts: int = 4
    """P, prompts a step."""
    group_size: int = 8
    """G, completions of each prompt."""
    max_prompt_tokens: int = 256
    """L; the width that prompts are padded to."""
    drop_long_prompts: bool = False
    """Drop and count prompts longer than that, where the default is an error."""
    max_new_tokens: int = 256
    """T; a completion that has not ended by then is truncated."""
    temperature: float = 1.0
    """Logits are divided by it, when sampling and when scoring."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 from all."""
    top_p: float = 1.0
    """Sample from the smallest set of likeliest tokens with this share of the probability."""
    min_p: float = 0.0
    """Sample from tokens at least this many times as likely as the likeliest."""
    keep_support: bool = False
    """Train on the distribution over the tokens that top-k, top-p, min-p left, not the whole."""

    learning_rate: float = 1e-6
    """AdamW's, after the warm-up."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: kept, or brought towards 0, which the step after the last would have."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises; the first has 1/warmup_steps of it."""
    weight_decay: float = 0.0
    """AdamW's, on all parameters but the correction of a router."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 does not clip."""
    num_minibatches: int = 1
    """Optimizer steps per pass over a step's prompts."""
    num_epochs: int = 1
    """Passes over a step's prompts."""
    sample_ahead: bool = False
    """Samples the next step's completions before the update, and scores them on the host during it:
    one step off-policy, so the objective must have a sampler correction. One rollout more is drawn
    than trained on."""
    rows_at_once: int = 0
    """Completions decoded side by side, in whole groups, while the others wait; 0 chooses by the
    memory. Changes results by rounding only."""
    micro_batch_tokens: int = 0
    """Tokens whose activations are held at once, in whole groups; 0 chooses by the memory. Changes
    results by rounding only, and dropout, which is drawn for each part."""

    eval_questions: int = 100
    """Held-out questions asked before and after; 0 asks none."""
    eval_samples: int = 4
    """Samples of each at the run's temperature; besides one greedy answer."""
    eval_every: int = 0
    """Also every so many steps; 0 only before and after."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 only at the end (and when the run is stopped)."""
    show_every: int = 10
    """Steps between sample groups on the console; 0 shows none."""
    reward_timeout_seconds: float = 60.0
    """Longest time that one reward function may take for one group."""

    def __post_init__(self):
        at_least = {"seed": 0, "steps": 1, "num_prompts": 1, "group_size": 1}
        at_least |= {"max_prompt_tokens": 1}
        at_least |= {"max_new_tokens": 1, "num_minibatches": 1, "num_epochs": 1, "top_k": 0}
        at_least |= dict.fromkeys(("warmup_steps", "weight_decay", "clip_norm"), 0)
        at_least |= dict.fromkeys(("lora_rank", "lora_dropout", "balance_coef"), 0)
        at_least |= {"rows_at_once": 0, "micro_batch_tokens": 0}
        at_least |= dict.fromkeys(("eval_questions", "eval_every", "checkpoint_every"), 0)
        at_least |= {"show_every": 0, "eval_samples": 1, "min_p": 0}
        for name, bound in at_least.items():
            if not getattr(self, name) >= bound:
                self._refuse(name, f"it must be at least {bound}")
        if 0 < self.rows_at_once < self.group_size:
            self._refuse(
                "rows_at_once",
                f"it must be at least the group size, {self.group_size}, or 0 for what fits",
            )
        for field in dataclasses.fields(Config):
            if get_origin(field.type) is Literal:
                *others, last = get_args(field.type)
                if getattr(self, field.name) not in (*others, last):
                    self._refuse(field.name, f"it must be {', '.join(others)} or {last}")
        if self.seed >= 2**32:
            self._refuse("seed", "it must be below 2**32, or two seeds would share their keys")
        if not self.model:
            self._refuse("model", "name one, or leave it out for the default")
        if not 0 < self.temperature < float("inf"):
            self._refuse("temperature", "training samples above 0 (greedy groups are all equal)")
        if not 0 < self.top_p <= 1:
            self._refuse("top_p", "it must be above 0 and at most 1 (1 keeps all)")
        if not self.min_p < 1:
            self._refuse("min_p", "it must be below 1 (0 keeps all)")
        if not self.lora_rank:
            for field in dataclasses.fields(Config):
                asked = getattr(self, field.name) != field.default
                if field.name.startswith("lora_") and asked:
                    self._refuse(field.name, "there are no adapters, lora_rank is 0")
        if not self.lora_targets:
            self._refuse("lora_targets", "name at least one pattern of kernels")
        if not self.lora_dropout < 1:
            self._refuse("lora_dropout", "it must be below 1 (0 sets nothing to 0)")
        for name in ("learning_rate", "reward_timeout_seconds", "lora_alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                self._refuse(name, "it must be above 0")
        if self.num_prompts % self.num_minibatches:
            self._refuse(
                "num_minibatches",
                f"a mini-batch holds whole groups: it must divide num_prompts = {self.num_prompts}",
            )
        if self.resume and not self.run_dir:
            self._refuse("resume", "say which run: --run-dir DIRECTORY --resume")

    def _refuse(self, name: str, rule: str) -> None:
        raise ValueError(f"{name} is {getattr(self, name)}; {rule}")


FREE_ON_RESUME = (
    frozenset({"run_dir", "resume", "steps"})
    | frozenset({"eval_questions", "eval_samples", "eval_every", "checkpoint_every", "show_every"})
    | frozenset({"reward_timeout_seconds"})
)
"""Fields that may differ when a run is resumed: the arithmetic of a step does not depend on them
(`steps` only with a constant learning rate)."""


def differences(saved: dict[str, object], config: Config) -> dict[str, tuple[object, object]]:
    """Fields in which a saved run and a config differ and must not: name -> (saved, given)."""
    given = dataclasses.asdict(config)
    free = FREE_ON_RESUME
    if config.lr_schedule != "constant":
        free = free - {"steps"}
    names = (saved.keys() | given.keys()) - free
    # Through JSON a tuple comes back as a list.
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}
    return {
        name: (saved.get(name), plain.get(name))
        for name in sorted(names)
        if saved.get(name) != plain.get(name)
    }
