"""Tasks: questions and their verifiers, seeded and stateless. No JAX in this room."""

from grpo_jax.tasks.base import FiniteTask, GeneratedTask, Task
from grpo_jax.tasks.countdown import Countdown
from grpo_jax.tasks.gsm8k import GSM8K
from grpo_jax.tasks.max_of_three import MaxOfThree
from grpo_jax.tasks.reasoning_gym import ReasoningGym
from grpo_jax.tasks.sorting import Sorting
from grpo_jax.tasks.sums import DemonstratedSums, Sums

__all__ = [
    "GSM8K",
    "Countdown",
    "DemonstratedSums",
    "FiniteTask",
    "GeneratedTask",
    "MaxOfThree",
    "ReasoningGym",
    "Sorting",
    "Sums",
    "Task",
]
