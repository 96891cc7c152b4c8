"""Dr. GRPO on sorting digits: the second objective on a real model, reward all or nothing.

Run:      python -m experiments.sorting
Measured: not yet run
"""

import dataclasses

import grpo_jax
from grpo_jax import tasks


@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """Sorting digits."""

    steps: int = 50
    max_prompt_tokens: int = 128
    max_new_tokens: int = 8
    learning_rate: float = 1e-5
    warmup_steps: int = 5
    num_digits: int = 3
    """Digits to sort."""


def task(config: Config) -> tasks.Task:
    return tasks.Sorting(num_digits=config.num_digits)


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        objective=grpo_jax.dr_grpo(max_new_tokens=config.max_new_tokens),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
