"""The optimizer of a run, from its config."""

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
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    if not config.clip_norm:
        return adamw, schedule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw), schedule
