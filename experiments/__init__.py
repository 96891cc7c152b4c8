"""Experiments: one file per run. Copy one to make the next.

A file has `Config` (a frozen dataclass on top of `grpo_jax.Config`), `task(config)`, and
`main(config)`, which calls `grpo_jax.run` and returns its summary. `grpo-jax eval`, `sample`,
`export` and `score` find the same things again by name: where a run has a network or reward
functions of its own, the file has `network(config)` or `rewards(config)` (name -> function) as
well, and `main` passes what they return.
"""
