"""GRPO on any task of reasoning_gym, which is behind an extra: pip install "grpo-jax[tasks]".

Scored strictly: 1 for a right answer, 0 for anything else (its partial credit can be gamed).

Run:      python -m experiments.reasoning_gym --dataset chain_sum
Measured: not yet run
"""

import dataclasses

import grpo_jax
from grpo_jax import tasks


@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """A reasoning_gym dataset."""

    dataset: str = "chain_sum"
    """Its name in reasoning_gym."""
    steps: int = 100
    max_prompt_tokens: int = 256
    max_new_tokens: int = 128
    learning_rate: float = 5e-6
    warmup_steps: int = 5
    checkpoint_every: int = 20
    kl_coef: float = 0.0
    """β of the KL term to the initial model; 0 loads no reference."""


def task(config: Config) -> tasks.Task:
    return tasks.ReasoningGym(config.dataset)


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        objective=grpo_jax.grpo(kl_coef=config.kl_coef),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
