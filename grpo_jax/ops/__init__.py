"""The mathematics: arrays in, arrays out. Needs jax and chex, and nothing else of ours."""

from grpo_jax.ops import advantages, draws, kl, log_probs, ratios, selection, surrogates, weights

__all__ = ["advantages", "draws", "kl", "log_probs", "ratios", "selection", "surrogates", "weights"]
