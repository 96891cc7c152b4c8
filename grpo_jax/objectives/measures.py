"""What is worth watching beside a loss, in a form that adds up over the parts of a step.

A `Measures` maps names to scalars. Those that end in `/max` or `/min` are extremes, the others sums
over counting tokens; `combined` joins those of parts, `metrics` turns the whole's into what is
logged.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from grpo_jax.ops import diagnostics

Measures = dict[str, jax.Array]

# Of a log-probability. The small one is far below any bound in use (GSPO's 3e-4); the large one
# shows a slope that changes by less than float32 would show of the small one.
_NUDGE, _PUSH = 1e-5, 1e-3


def measure(
    mask: jax.Array,
    log_probs: jax.Array,
    log_ratio: jax.Array,
    advantages: jax.Array,
    policy_term: Callable[[jax.Array], jax.Array] | None,
    estimates: Mapping[str, jax.Array],
) -> Measures:
    """Sums and extremes over the tokens that count.

    Args:
        mask: [..., T] bool, True on the tokens that count.
        log_probs: [..., T] float, of the policy.
        log_ratio: [..., T] float, by token, to the anchor.
        advantages: [..., T] or [..., 1] float.
        policy_term: log_probs -> per-token losses; None where there is no trust region.
        estimates: name -> [..., T], to be averaged.
    """
    log_probs, log_ratio = jax.lax.stop_gradient((log_probs, log_ratio))
    ratio = jnp.exp(jnp.clip(log_ratio, -80.0, 80.0))
    values = {"ratio": ratio, "ratio/squared": jnp.square(ratio), **estimates}
    if policy_term is not None:
        acts = trust_region_acts(policy_term, log_probs) & (advantages != 0)
        sides = (acts & (log_ratio < 0), acts & (log_ratio > 0))
        values |= diagnostics.by_side_and_sign(*sides, advantages)
    found = {name: jnp.sum(jnp.where(mask, value, 0)) for name, value in values.items()}
    found["tokens"] = mask.sum()
    found["ratio/max"] = jnp.where(mask, ratio, -jnp.inf).max()
    found["ratio/min"] = jnp.where(mask, ratio, jnp.inf).min()
    return found


def trust_region_acts(
    policy_term: Callable[[jax.Array], jax.Array], log_probs: jax.Array
) -> jax.Array:
    """Tokens whose part of the gradient no longer follows the policy; [..., T] bool.

    That is one definition for clips and masks (the gradient is 0 and stays 0) and for bounds on
    a detached ratio (it stays at the bound). Soft gates never act in this sense. Read off the
    slope of the loss, here and a small step aside, so that it holds for any surrogate.

    Args:
        policy_term: log_probs [..., T] -> per-token losses [..., T or 1].
        log_probs: [..., T] float.

    >>> from grpo_jax.ops import surrogates
    >>> def clipped(log_probs):
    ...     return surrogates.clipped(log_probs, jnp.array([1.0, -1.0, 1.0]))
    >>> trust_region_acts(clipped, jnp.log(jnp.array([1.5, 1.5, 1.1]))).tolist()
    [True, False, False]
    """
    slope = jax.grad(lambda x: jnp.sum(policy_term(x)))
    # Uneven steps: a loss of differences between completions must not stay as it was.
    step = 1.5 + jnp.cos(jnp.arange(log_probs.size, dtype=log_probs.dtype))
    # In units that a log-probability far below 0 still shows.
    step = step.reshape(log_probs.shape) * jnp.maximum(1.0, jnp.abs(log_probs) / 32.0)
    here = slope(log_probs)
    nudged = here == slope(log_probs + _NUDGE * step)
    # A push may lead back over the bound, but not in both directions.
    pushed = (here == slope(log_probs + _PUSH * step)) | (here == slope(log_probs - _PUSH * step))
    return nudged & pushed


def combined(parts: Measures) -> Measures:
    """Those of parts, stacked along the first axis -> those of the whole."""

    def join(name: str, stacked: jax.Array) -> jax.Array:
        if name.endswith("/max"):
            return stacked.max(axis=0)
        return stacked.min(axis=0) if name.endswith("/min") else stacked.sum(axis=0)

    return {name: join(name, stacked) for name, stacked in parts.items()}


def metrics(whole: Measures) -> Measures:
    """Extremes as they are, sums as means over counting tokens, and `ratio/ess`.

    `ratio/ess` is the effective sample size of the ratios as a share of the tokens, (Σ r)² / (n Σ
    r²): 1 where all are equal. Without any counting token means are 0 and extremes 1.
    """
    tokens = whole["tokens"]
    extreme = {name for name in whole if name.endswith(("/max", "/min"))}
    found = {
        name: whole[name] / jnp.maximum(tokens, 1)
        for name in whole.keys() - extreme - {"tokens", "ratio", "ratio/squared"}
    }
    for name in extreme:
        found[name] = jnp.where(jnp.isfinite(whole[name]), whole[name], 1.0)
    squared = jnp.maximum(whole["ratio/squared"] * tokens, jnp.finfo(jnp.float32).tiny)
    found["ratio/ess"] = jnp.where(tokens > 0, jnp.square(whole["ratio"]) / squared, 1.0)
    return found
