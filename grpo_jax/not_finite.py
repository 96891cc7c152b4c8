"""What is kept of a step whose loss or gradient was not finite."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from grpo_jax.objectives.measures import Measures
from grpo_jax.types import Batch


def save_not_finite(
    run_dir: Path, step: int, batch: Batch, updates: Sequence[Measures], newest: int | None
) -> str:
    """Saves the step's batch as arrays (no pickle) and returns what to tell the user.

    Args:
        run_dir: where `not_finite_step_N.npz` is written.
        step: its number.
        batch: what it was trained on; each array goes by its path, as `rollout_completion`.
        updates: the metrics of its updates, of which one is not finite.
        newest: the step of the newest checkpoint.
    """
    arrays = {
        jax.tree_util.keystr(path).strip(".").replace(".", "_"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    file = run_dir / f"not_finite_step_{step}.npz"
    np.savez(file, allow_pickle=False, **arrays)
    which, bad = next((n, u) for n, u in enumerate(updates, 1) if not bool(u["finite"]))
    of = f", update {which} of {len(updates)}" if len(updates) > 1 else ""
    kept = f"the newest checkpoint is of step {newest}" if newest else "there is no checkpoint yet"
    return (
        f"step {step}{of}: the loss is {float(bad['loss'])}, the gradient's norm "
        f"{float(bad['grad_norm'])}; it was not applied. The batch is in {file}; {kept}. Try a "
        "smaller --learning-rate or --clip-norm, in another --run-dir"
    )
