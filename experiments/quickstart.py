"""GRPO on sums, SmolLM2-135M-Instruct: the first run, on a laptop, without a model hub.

a + b with a in 10..99 and b in 1..9: 810 questions, 139 of them held out. The prompt ends with
"a + b =", so that the model answers in its own habit; reward 1 for the right first integer.
Objective: GRPO (DeepSeekMath, arXiv:2402.03300) without a reference.

Run:      python -m experiments.quickstart            (or scripts/quickstart from a fresh clone)
Measured: 2 cores (x86-64, no GPU), Python 3.11, jax 0.10.2, 2026-11-23; --seed 0, 1, 2

    seed   held-out reward, sampled (greedy)    training reward, means of 5 steps     training
           before            after 30 steps                                           seconds
    0      .100 (.10)        .883 (.94)         .20  .55  .84  .74  .89  .84          129
    1      .108 (.10)        .765 (.81)         .24  .67  .67  .93  .69  .76          124
    2      .108 (.10)        .885 (.92)         .19  .63  .83  .74  .88  .89          120

100 held-out questions, 4 samples each; standard errors .023 to .037. Seconds include compilation,
about 40 of them, and not the two evaluations. Peak memory 4.9 GiB. Largest difference of sampler
and scorer on any token: 5.2e-5 nats.
"""

import dataclasses

import grpo_jax
from grpo_jax import tasks


@dataclasses.dataclass(frozen=True)
class Config(grpo_jax.Config):
    """Two-digit plus one-digit sums."""

    max_prompt_tokens: int = 32
    max_new_tokens: int = 6
    learning_rate: float = 1e-5
    warmup_steps: int = 5
    kl_coef: float = 0.0
    """β of the KL term to the initial model; 0 loads no reference."""
    plain: bool = False
    """Questions as plain lines of text, for models without the chat markup of SmolLM2 and Qwen."""


def task(config: Config) -> tasks.Task:
    return tasks.Sums(plain=config.plain)


def main(config: Config) -> dict:
    return grpo_jax.run(
        config,
        task=task(config),
        objective=grpo_jax.grpo(kl_coef=config.kl_coef),
    )


if __name__ == "__main__":
    grpo_jax.launch(main, Config)
