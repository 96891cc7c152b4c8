"""The mathematics: arrays in, arrays out. Needs jax and chex, and nothing else of ours.

credit          advantages, batch_advantages, pass_at_k, returns, values, whitening
ratio           ratios
trust region    surrogates, sequence_surrogates, divergence_masks, covariance, regression
token weights   weights
KL, entropy     kl, log_probs, controllers, references
sampler         corrections, support, draws
selection       selection
experts         routing
to watch        diagnostics
"""

from grpo_jax.ops import (
    advantages,
    batch_advantages,
    controllers,
    corrections,
    covariance,
    diagnostics,
    divergence_masks,
    draws,
    kl,
    log_probs,
    moments,
    pass_at_k,
    precision,
    process,
    ratios,
    references,
    regression,
    returns,
    routing,
    selection,
    sequence_surrogates,
    support,
    surrogates,
    token_baseline,
    values,
    weights,
    whitening,
)

__all__ = [
    "advantages",
    "batch_advantages",
    "controllers",
    "corrections",
    "covariance",
    "diagnostics",
    "divergence_masks",
    "draws",
    "kl",
    "log_probs",
    "moments",
    "pass_at_k",
    "precision",
    "process",
    "ratios",
    "references",
    "regression",
    "returns",
    "routing",
    "selection",
    "sequence_surrogates",
    "support",
    "surrogates",
    "token_baseline",
    "values",
    "weights",
    "whitening",
]
