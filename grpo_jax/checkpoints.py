"""Orbax save and restore of a TrainState, with the place in the data beside it.

A thin module over Orbax's `CheckpointManager`: parameters, the rest of the state, and a few JSON
values are separate items, so that parameters alone can be read. Saving is asynchronous and atomic;
an unfinished save is never listed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from grpo_jax.types import Params, TrainState

_OF_ARRAYS = ("params", "rest", "ahead")


class Checkpoints:
    """The checkpoints of a run, by step.

    Args:
        directory: made when the first checkpoint is saved.
        keep: the newest so many are kept; older ones go once a newer one is whole.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        # By name, or Orbax warns of items that it reads for the first time.
        handlers: Any = {name: ocp.StandardCheckpointHandler() for name in _OF_ARRAYS}
        handlers["place"] = ocp.JsonCheckpointHandler()
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_handlers=handlers
        )

    def save(self, state: TrainState, place: dict[str, Any], ahead: Any = None) -> None:
        """Starts to save; the state may be donated right after.

        Args:
            state: goes by its step.
            place: JSON values.
            ahead: arrays by name, of what was sampled for the next step, if that has been.
        """
        items = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave(_rest(state)),
            "place": ocp.args.JsonSave(place),
        }
        if ahead is not None:
            items["ahead"] = ocp.args.StandardSave(ahead)
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest whole checkpoint.

        Args:
            like: a state of `jax.ShapeDtypeStruct`.

        Raises:
            ValueError: there is none.
        """
        rest = _rest(like)
        restored: Any = self._manager.restore(
            self._newest(),
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_on_device(like.params)),
                rest=ocp.args.StandardRestore(_on_device(rest)),
                place=ocp.args.JsonRestore(),
            ),
        )
        return dataclasses.replace(like, params=restored.params, **restored.rest), restored.place

    def restore_ahead(self) -> Any:
        """What the newest whole checkpoint holds of the next step's samples; None if nothing."""
        step = self._newest()
        saved: Any = self._manager.item_metadata(step)
        if saved["ahead"] is None:
            return None
        args = ocp.args.Composite(ahead=ocp.args.StandardRestore(_on_device(saved["ahead"].tree)))
        restored: Any = self._manager.restore(step, args=args)
        return restored.ahead

    def restore_params(self, shapes: Params) -> tuple[int, Params]:
        """The parameters of the newest whole checkpoint, and its step.

        Raises:
            ValueError: there is none.
        """
        step = self._newest()
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_on_device(shapes)))
        restored: Any = self._manager.restore(step, args=args)
        return step, restored.params

    def close(self) -> None:
        """Waits until what was started is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _newest(self) -> int:
        step = self.latest()
        if step is None:
            raise ValueError(
                f"{self._manager.directory} holds no finished checkpoint; start the run again in "
                "another directory"
            )
        return step


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the parameters; what an objective keeps, only where it keeps something."""
    rest = {"opt_state": state.opt_state, "step": state.step, "key": state.key}
    kept = {"ref_params": state.ref_params, "coefs": state.coefs}
    return rest | {name: value for name, value in kept.items() if value}


def _on_device(shapes: Any) -> Any:
    """Shapes with a place: Orbax refuses to guess one."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
