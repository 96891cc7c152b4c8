"""The optimizer of a run, from its config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from grpo_jax.config import Config


def make_optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with a warm-up and a schedule, after clipping by the global norm."""
    updates = config.steps * config.num_minibatches * config.num_epochs
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(updates - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[config.lr_schedule]
    schedule = after
    if warmup:
        # The first update already moves: it has 1/warmup of the rate, the last of them all of it.
        rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
        schedule = optax.join_schedules([rise, after], [warmup])
    adamw = optax.adamw(
        schedule,
        weight_decay=config.weight_decay,
        mask=_decays,
        mu_dtype=jnp.dtype(config.moment_dtype),
    )
    if config.clip_norm:
        adamw = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
    return _in_float32(adamw), schedule


def _decays(params: Any) -> Any:
    """All but the correction of a router (`models.experts`): it has no gradient that would hold
    against the decay."""
    return jax.tree.map_with_path(
        lambda path, _: not jax.tree_util.keystr(path).endswith("['mlp']['correction']"), params
    )


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same on float32 copies of parameters and gradients: a mean of squares in bfloat16 would
    not move, since a thousandth of it is below its rounding."""

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(wide(updates), state, None if params is None else wide(params))

    return optax.GradientTransformation(lambda params: inner.init(wide(params)), update)
