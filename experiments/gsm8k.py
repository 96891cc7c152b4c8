"""GRPO on GSM8K from a local file, after DeepSeekMath (arXiv:2402.03300, section 4.2).

The paper's group size, learning rate and KL coefficient. Not the paper's: 16 prompts a step and 512
new tokens (there a batch of 1024 and 1024 tokens), the right number as reward (there a model's).

The file is JSON lines with `question` and `answer` (the number after "####"). A model that gets a
question right now and then is needed: at 135 M parameters there is no signal to learn from.

Run:      python -m experiments.gsm8k --train-file train.jsonl --model DIRECTORY
Measured: not yet run
"""

import dataclasses

import grpo_jax
from grpo_jax import tasks


@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """GSM8K from local JSON lines."""

    train_file: str = "train.jsonl"
    """JSON lines with `question` and `answer`."""
    held_out_file: str = ""
    """The same, for the held-out questions; empty holds out one in five of the training file."""
    steps: int = 200
    num_prompts: int = 16
    group_size: int = 64
    max_prompt_tokens: int = 512
    max_new_tokens: int = 512
    learning_rate: float = 1e-6
    checkpoint_every: int = 20
    kl_coef: float = 0.04
    """β of the KL term to the initial model; 0 loads no reference."""


def task(config: Config) -> tasks.Task:
    return tasks.GSM8K(config.train_file, config.held_out_file or None)


def rewards(config: Config) -> dict[str, grpo_jax.rewards.RewardFn]:
    return {"math_answer": grpo_jax.rewards.math_answer}


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        rewards=rewards(config),
        objective=grpo_jax.grpo(kl_coef=config.kl_coef),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
