"""GRPO on countdown: reach a target with three or four numbers, each used once.

The verifier evaluates the expression exactly (fractions, no eval). The prompt demonstrates twice.

Run:      python -m experiments.countdown --num-numbers 3
Measured: not yet run
"""

import dataclasses

import grpo_jax
from grpo_jax import tasks


@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """Countdown with an exact verifier."""

    steps: int = 100
    group_size: int = 16
    max_prompt_tokens: int = 160
    max_new_tokens: int = 24
    learning_rate: float = 5e-6
    warmup_steps: int = 5
    checkpoint_every: int = 20
    num_numbers: int = 3
    """Numbers in a question: 3 or 4."""
    kl_coef: float = 0.0
    """β of the KL term to the initial model; 0 loads no reference."""


def task(config: Config) -> tasks.Task:
    return tasks.Countdown(num_numbers=config.num_numbers)


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        objective=grpo_jax.grpo(kl_coef=config.kl_coef),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
