"""Rewards: text or token counts in, numbers out. No JAX in this room."""

from grpo_jax.rewards.base import Completion, Message, Question, RewardFn, each
from grpo_jax.rewards.combine import RewardError, score_groups, weighted_sum
from grpo_jax.rewards.format import format_tags
from grpo_jax.rewards.length import soft_overlong
from grpo_jax.rewards.math_answer import extract_number, math_answer, number_match

__all__ = [
    "Completion",
    "Message",
    "Question",
    "RewardError",
    "RewardFn",
    "each",
    "extract_number",
    "format_tags",
    "math_answer",
    "number_match",
    "score_groups",
    "soft_overlong",
    "weighted_sum",
]
