"""Coefficients that follow a measurement: (coefficient, what was measured) -> the next one.

Bind the settings with `functools.partial`. The caller keeps the coefficient; it is part of what a
resumed run needs.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from grpo_jax.ops.precision import working_dtype


def adaptive_kl_coef(
    coef: ArrayLike, kl: ArrayLike, *, target: float, horizon: float, num_samples: float
) -> jax.Array:
    """Raises the KL coefficient where the policy is further away than wanted, else lowers it.

        e = clip(kl / target - 1, -0.2, 0.2),   coef' = coef · (1 + e · num_samples / horizon)

    Args:
        coef: scalar float, β.
        kl: scalar float, as measured with it.
        target: the KL wanted, in the unit of `kl`. That of the paper is the sum over a
            completion's tokens, several nats; a mean over tokens is far smaller.
        horizon: completions in which a KL 20% off or more moves the coefficient by about 20%.
        num_samples: completions that the measurement comes from.

    Returns:
        scalar float32 (float64 for a float64 array), of the sign of `coef`.

    Raises:
        AssertionError: while tracing, unless both are scalar floats.
        ValueError: a setting that is not positive, or so many samples for the horizon that the
            coefficient could become 0 or change its sign.

    Reference: arXiv:1909.08593, section 2.2, where num_samples / horizon is K_β = 0.1.

    >>> f"{adaptive_kl_coef(0.5, 12.0, target=6.0, horizon=1000, num_samples=100):.3f}"
    '0.510'
    """
    for name, value in (("target", target), ("horizon", horizon), ("num_samples", num_samples)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    if not num_samples < 5 * horizon:
        raise ValueError(
            f"num_samples is {num_samples} with a horizon of {horizon}; it must be under 5 times "
            "the horizon, or a low KL takes the whole coefficient: raise the horizon"
        )
    coef, kl = _scalars(coef, kl)
    return coef * (1.0 + jnp.clip(kl / target - 1.0, -0.2, 0.2) * (num_samples / horizon))


def adaptive_entropy_coef(
    coef: ArrayLike,
    entropy: ArrayLike,
    *,
    target: float,
    step: float,
    low: float = 0.0,
    high: float = math.inf,
) -> jax.Array:
    """Raises the coefficient of the entropy bonus by a step below the target, else lowers it.

        coef' = clip(coef + step if entropy < target else coef - step, low, high)

    Args:
        coef: scalar float, c.
        entropy: scalar float, as measured, in nats a token.
        target: in nats a token.
        step: what the coefficient moves by.
        low: the smallest coefficient.
        high: the largest coefficient.

    Returns:
        scalar float32 (float64 for a float64 array) in [low, high].

    Raises:
        AssertionError: while tracing, unless both are scalar floats.
        ValueError: `target` or `step` is not positive, or `low` is above `high`.

    Reference: Skywork-OR1, arXiv:2505.22312 (adaptive entropy control). The other half of its rule
    is `active_entropy_coef`.
    Choice: exactly at the target it is lowered, as in the authors' code; huggingface/trl raises
    it. The paper has no bounds; `low=-inf` takes away the lower one. No default for target and
    step: the paper's 0.2 nats are its model's (that library takes 0.2 and 0.005).

    >>> [adaptive_entropy_coef(0.5, h, target=0.2, step=0.25).item() for h in (0.1, 0.3)]
    [0.75, 0.25]
    """
    _check_target(target)
    if not step > 0:
        raise ValueError(f"step is {step}; it must be positive (a fixed coefficient needs no rule)")
    if not low <= high:
        raise ValueError(f"low is {low} and high {high}; low must not be above high")
    coef, entropy = _scalars(coef, entropy)
    return jnp.clip(coef + jnp.where(entropy < target, step, -step), low, high)


def active_entropy_coef(coef: ArrayLike, entropy: ArrayLike, *, target: float) -> jax.Array:
    """The coefficient that the loss is given: 0 while there is more entropy than the target.

        α = coef if entropy ≤ target else 0

    Args:
        coef: scalar float, as `adaptive_entropy_coef` has left it.
        entropy: scalar float, the latest measurement, in nats a token.
        target: in nats a token, that of `adaptive_entropy_coef`.

    Returns:
        scalar float32 (float64 for a float64 array).

    Raises:
        AssertionError: while tracing, unless both are scalar floats.
        ValueError: `target` is not positive.

    Reference: Skywork-OR1, arXiv:2505.22312 (adaptive entropy control).

    >>> [active_entropy_coef(0.5, h, target=0.2).item() for h in (0.1, 0.3)]
    [0.5, 0.0]
    """
    _check_target(target)
    coef, entropy = _scalars(coef, entropy)
    return jnp.where(entropy <= target, coef, 0.0)


def _check_target(target: float) -> None:
    if not target > 0:
        raise ValueError(f"target is {target}; it is an entropy in nats: give a positive one")


def _scalars(*numbers: ArrayLike) -> list[jax.Array]:
    arrays = [jnp.asarray(x) for x in numbers]
    chex.assert_type(arrays, float)
    chex.assert_rank(arrays, 0)
    dtype = working_dtype(*arrays)
    return [x.astype(dtype) for x in arrays]
