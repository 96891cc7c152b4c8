"""GRPO from scratch in seconds: the largest of three digits, a decoder of 100 k parameters.

"583=" is to be answered with "8" and the end token; half a reward for each. Nothing is pretrained,
nothing is downloaded: the whole path in one small run.

Run:      python -m experiments.toy
Measured: 2 cores (x86-64, no GPU), Python 3.11, jax 0.10.2, 2026-11-23; --seed 0, 1

    seed   held-out reward, sampled     training reward, means of 10 steps               last ten
    0      .064 -> .946                 .14 .33 .49 .55 .61 .72 .79 .86 .90 .90          .90
    1      .061 -> .914                 .09 .28 .49 .63 .70 .76 .82 .82 .88 .91          .91

The first step compiles, 8 seconds; so does the first in which all completions have ended early, 4
seconds; the other 98 take 2.4 seconds together.
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
    from grpo_jax.models.config import DecoderConfig
    from grpo_jax.models.network import from_scratch
    from grpo_jax.models.settings import Settings
    from grpo_jax.tasks.max_of_three import ALPHABET
    from grpo_jax.tokenizer import CharTokenizer

    tokenizer = CharTokenizer(ALPHABET)
    shape = DecoderConfig.llama(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
    )
    return from_scratch(shape, tokenizer, Settings.of(config))


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        network=network(config),
        objective=grpo_jax.grpo(kl_coef=config.kl_coef),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
