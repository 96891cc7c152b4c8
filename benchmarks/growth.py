"""How the parts of a step grow with G, L, T and P, as figures and as a picture.

    python -m benchmarks.growth --prompts 2 --group 4 --prompt-len 64 --new-tokens 32 --steps 2 \\
        --picture docs/growth.svg

Each of the four is halved and doubled by itself while the others keep the values asked for. Dotted
in the picture: the floor of the whole step, and that of one which computes the prompt again for
each completion. Pictures need matplotlib (`pip install "grpo_jax[dev]"`).
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from benchmarks.floors import Limits, Work
from benchmarks.step import PARTS, limits_of, measured, shape_arguments, work_of
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


def line_of(work: Work, dtype: str, steps: int) -> dict[str, Any]:
    seconds, _ = measured(work, dtype, steps)
    limits = limits_of(work, dtype)
    found = {f"{name}_seconds": statistics.median(seconds[name]) for name in (*PARTS, "step")}
    found["floor_seconds"] = sum(work.seconds(limits).values())
    found["repeated_floor_seconds"] = repeated_floor(work, limits)
    return found


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
    base, dtype = work_of(arguments), arguments.dtype
    known: dict[Work, dict[str, Any]] = {}
    lines: dict[str, dict[int, dict[str, Any]]] = {}
    for axis in AXES:
        lines[axis] = {}
        for factor in FACTORS:
            value = max(1, int(getattr(base, axis) * factor))
            work = dataclasses.replace(base, **{axis: value})
            if work not in known:
                known[work] = line_of(work, dtype, arguments.steps)
            lines[axis][value] = known[work]
            print(f"{axis} {value}: {known[work]['step_seconds']:.2f} s", flush=True)
    if arguments.picture:
        draw(lines, Path(arguments.picture))
    report({"by": lines}, arguments)


if __name__ == "__main__":
    main()
