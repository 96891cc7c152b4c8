"""The papers, one file each: a paper is a choice of one function from `ops` for each question."""

from grpo_jax.objectives.base import Objective, prepare
from grpo_jax.objectives.dr_grpo import dr_grpo
from grpo_jax.objectives.grpo import grpo

__all__ = ["Objective", "dr_grpo", "grpo", "prepare"]
