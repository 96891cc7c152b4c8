"""How the parts of a step grow with G, L, T and P, as figures and as a picture.

    python -m benchmarks.growth --prompts 2 --group 4 --prompt-len 64 --new-tokens 32 --steps 2 \\
        --picture docs/growth.svg

Each of the four is halved and doubled by itself while the others keep the values asked for. Dotted
in the picture: the floor of the whole step, and that of one which computes the prompt again for
each completion. Pictures need matplotlib (`pip install "grpo-jax[plots]"`).
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from benchmarks.floors import Limits, Work
from benchmarks.limits import bandwidth, few_rows_seconds, matrix_rate
from benchmarks.step import PARTS, measured, shape_arguments, work_of
from benchmarks.timing import report

AXES = {
    "group_size": "G, completions a prompt",
    "prompt_len": "L, tokens of a prompt",
    "new_tokens": "T, tokens of a completion",
    "num_prompts": "P, prompts",
}
FACTORS = (0.5, 1, 2, 4)


def repeated_floor(work: Work, limits: Limits) -> float:
    """Seconds of a step at least in which each completion has its prompt computed for itself."""
    again = (work.group_size - 1) * work.prompt_flops / limits.matrix_flops_per_second
    # Once more in the rollout, in the reference, and three times in the update.
    return sum(work.seconds(limits).values()) + 5 * again


class Measured:
    """Figures of a step's shape, each measured once."""

    def __init__(self, dtype: str, steps: int):
        self._dtype, self._steps = dtype, steps
        self._rate, self._bandwidth = matrix_rate(jnp.dtype(dtype)), bandwidth()
        self._few_rows: dict[int, float] = {}
        self._lines: dict[Work, dict[str, Any]] = {}

    def of(self, work: Work) -> dict[str, Any]:
        if work not in self._lines:
            self._lines[work] = self._line(work)
        return self._lines[work]

    def _line(self, work: Work) -> dict[str, Any]:
        seconds, _ = measured(work, self._dtype, self._steps)
        if work.rows not in self._few_rows:
            found = few_rows_seconds(work.config, work.rows, jnp.dtype(self._dtype))
            self._few_rows[work.rows] = found
        limits = Limits(self._rate, self._bandwidth, self._few_rows[work.rows])
        line = {f"{name}_seconds": statistics.median(seconds[name]) for name in (*PARTS, "step")}
        line["floor_seconds"] = sum(work.seconds(limits).values())
        line["repeated_floor_seconds"] = repeated_floor(work, limits)
        return line


def draw(lines: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Four panels, one for each axis: seconds of the parts, stacked, and the floors."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(14, 3.6), sharey=True)
    colours = {"sample": "#4c78a8", "reference": "#f2b447", "update": "#b0529f"}
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        values = sorted(lines[axis])
        at = [lines[axis][value] for value in values]
        parts = [[x[f"{name}_seconds"] for x in at] for name in colours]
        panel.stackplot(values, *parts, labels=list(colours), colors=list(colours.values()))
        panel.plot(values, [x["floor_seconds"] for x in at], "k:", label="floor")
        repeated = [x["repeated_floor_seconds"] for x in at]
        panel.plot(values, repeated, ":", color="#c33", label="floor, prompts repeated")
        panel.set_xlabel(label)
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xlim(values[0], values[-1])
        panel.set_ylim(0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds a step")
    panels[0].legend(frameon=False, fontsize="small", loc="upper left")
    figure.tight_layout()
    figure.savefig(path, facecolor="white", metadata={"Date": None})


def main() -> None:
    parser = shape_arguments(__doc__)
    parser.add_argument("--picture", default="", help="also draw this file (.svg or .png)")
    arguments = parser.parse_args()
    base, figures = work_of(arguments), Measured(arguments.dtype, arguments.steps)
    lines: dict[str, dict[int, dict[str, Any]]] = {}
    for axis in AXES:
        lines[axis] = {}
        for factor in FACTORS:
            value = max(1, int(getattr(base, axis) * factor))
            work = dataclasses.replace(base, **{axis: value})
            lines[axis][value] = figures.of(work)
            print(f"{axis} {value}: {lines[axis][value]['step_seconds']:.2f} s", flush=True)
    if arguments.picture:
        draw(lines, Path(arguments.picture))
    report({"by": lines}, arguments)


if __name__ == "__main__":
    main()
