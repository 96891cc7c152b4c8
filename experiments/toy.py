"""GRPO from scratch in seconds: the largest of three digits, a decoder of 100 k parameters.

"583=" is to be answered with "8" and the end token; half a reward for each. Nothing is pretrained,
nothing is downloaded: the whole path in one small run.

Run:      python -m experiments.toy
Measured: 2 cores (x86-64, no GPU), Python 3.11, jax 0.10.2, 2026-11-22; --seed 0, 1

    seed   held-out reward, sampled     training reward, means of 10 steps               last ten
    0      .059 -> .959                 .11 .26 .46 .56 .63 .72 .79 .85 .91 .92          .92
    1      .068 -> .949                 .08 .23 .44 .60 .68 .76 .84 .88 .91 .93          .93

The first step compiles, 7 seconds; the other 99 take 1.5 seconds together.
"""

import dataclasses

import grpo_jax
from grpo_jax import tasks


@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """The largest of three digits."""

    model: str = "from-scratch"
    steps: int = 100
    num_prompts: int = 16
    max_prompt_tokens: int = 4
    max_new_tokens: int = 3
    learning_rate: float = 2e-3
    eval_questions: int = 200
    show_every: int = 50
    kl_coef: float = 0.0
    """β of the KL term to the initial model; 0 loads no reference."""


def task(config: Config) -> tasks.Task:
    return tasks.MaxOfThree()


def network(config: Config):
    from grpo_jax.models.decoder import DecoderConfig
    from grpo_jax.models.network import from_scratch
    from grpo_jax.tasks.max_of_three import ALPHABET
    from grpo_jax.tokenizer import CharTokenizer

    tokenizer = CharTokenizer(ALPHABET)
    shape = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
    )
    return from_scratch(
        shape,
        tokenizer,
        seed=config.seed,
        compute_dtype=config.compute_dtype,
        attention_kernels=config.attention_kernels,
    )


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        network=network(config),
        objective=grpo_jax.grpo(kl_coef=config.kl_coef),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
