"""Small line charts as inline SVG, with one read-out for all of them. Standard library only.

A chart has no size of its own: the curves live in a 1000 by 1000 box that stretches with the page
(strokes and dots do not), and the labels are text beside it. `report.css` and `charts.js` go into
the page once; without the script a chart shows its last values, with it those under the pointer.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

# Beyond this a value is reported, not drawn: the distance between two such floats may overflow.
MAX_DRAWN = 1e30
MINUS = "\N{MINUS SIGN}"


class Series(NamedTuple):
    """One quantity over the steps.

    `spans` are (low, high) about each value: a band behind a line, whiskers on dots. `texts` are
    what the read-out says of each value. `mark` is "line", "faint" or "dots"; `colour` is 1 to 4.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    texts: Sequence[str] = ()
    spans: Sequence[tuple[float, float]] = ()
    mark: str = "line"
    colour: int = 1


def number_text(value: float) -> str:
    """A number for people: three digits, or all digits before the point.

    >>> [number_text(v) for v in (0.25, 12345.6, 0.00002, -1.5, math.nan)]
    ['0.25', '12,346', '2.0e−5', '−1.5', 'NaN']
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e9:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    else:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS)


def measured_text(mean: float, stderr: float) -> str:
    """A mean with its standard error, both to the second digit of the error.

    >>> measured_text(0.7266, 0.04451)
    '0.727 ± 0.045'
    """
    if not (abs(mean) < MAX_DRAWN and 1e-6 < stderr < MAX_DRAWN):
        return f"{number_text(mean)} ± {number_text(stderr)}"
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{mean:,.{digits}f} ± {stderr:,.{digits}f}".replace("-", MINUS)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean over a window centred on each value, of its finite values; shorter at both ends.

    >>> smooth([0.0, 3.0, math.nan, 3.0], window=3)
    [1.5, 1.5, 3.0, 3.0]
    """
    half, smoothed = window // 2, []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if abs(v) < MAX_DRAWN]
        smoothed.append(sum(near) / len(near) if near else math.nan)
    return smoothed


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Round values within [low, high], about `count` of them.

    >>> ticks(0.0, 0.93)
    [0.0, 0.25, 0.5, 0.75]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    steps: tuple[float, float],
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    empty: str = "not logged",
    classes: str = "",
) -> str:
    """One `<figure>`.

    Args:
        steps: the first and last step of the x axis, the same for every chart of a page, so that
            the hair line crosses all of them at one step.
        low: the y axis reaches at least down to it; in units of the values. `high`: up to it.
        log: a logarithmic y axis; values at or below zero are counted, not drawn.
        empty: what to say when no value can be drawn.
    """
    drawn = [s for s in series if len(s.steps)]
    values = [v for s in drawn for v in (*s.values, *(end for span in s.spans for end in span))]
    values = [v for v in values if _is_drawn(v, log=log)]
    hidden = sum(not _is_drawn(v, log=log) for s in drawn for v in s.values)
    head = f"<b>{html.escape(title)}</b> <i>{html.escape(unit)}</i><span class='when'></span>"
    if not values:
        said = f"{hidden} values, none of them drawable" if hidden else empty
        return (
            f"<figure class='chart {classes}'><figcaption><div>{head}</div></figcaption>"
            f"<div class='plot none'><p>{html.escape(said)}</p></div></figure>"
        )

    bottom, top, labels = _y_axis(values, low=low, high=high, log=log)
    left, right = steps if steps[0] < steps[1] else (steps[0] - 0.5, steps[0] + 0.5)

    def x(step: float) -> float:
        return round(1000 * (step - left) / (right - left), 1)

    def y(value: float) -> float:
        value = math.log10(value) if log else value
        return round(min(max(1000 * (top - value) / (top - bottom), 0), 1000), 1)

    x_ticks = [t for t in ticks(left, right, count=5) if t == round(t)]
    grid = "".join(f"M0 {y(value)}H1000" for value, _ in labels)
    axis = "M0 1000H1000" + "".join(f"M{x(t)} 1000v14" for t in x_ticks)
    curves = "".join(_curve(s, x, y, log=log) for s in drawn)
    lost = "".join(
        f"M{x(at)} 1000v-60"
        for s in drawn
        for at, v in zip(s.steps, s.values, strict=True)
        if not _is_drawn(v, log=log)
    )
    texts = [s.texts or [number_text(v) for v in s.values] for s in drawn]
    legend = "".join(
        f"<span><s class='{s.mark} c{s.colour}'></s>{html.escape(s.label)} "
        f"<output>{html.escape(said[-1])}</output></span>"
        for s, said in zip(drawn, texts, strict=True)
    )
    if hidden:
        rule = "not above zero or not finite" if log else "not finite"
        legend += f"<span class='lost'>{hidden} {rule}</span>"
    data = [
        [
            [at, y(v) / 10 if _is_drawn(v, log=log) else None, text]
            for at, v, text in zip(s.steps, s.values, said, strict=True)
        ]
        for s, said in zip(drawn, texts, strict=True)
    ]
    payload = html.escape(json.dumps([left, right, data], separators=(",", ":"), allow_nan=False))
    y_labels = "".join(f"<u class='y' style='top:{y(v) / 10:g}%'>{t}</u>" for v, t in labels)
    x_labels = "".join(f"<u class='x' style='left:{x(t) / 10:g}%'>{t:,.0f}</u>" for t in x_ticks)
    return f"""<figure class="chart {classes}" data-chart="{payload}">
<figcaption><div>{head}</div><div class="legend">{legend}</div></figcaption>
<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img"
 aria-label="{html.escape(title)} by step"><path class="grid" d="{grid}"/>
<path class="axis" d="{axis}"/>{curves}<path class="bad" d="{lost}"/></svg>
{y_labels}{x_labels}</div></figure>
"""


def _is_drawn(value: float, *, log: bool) -> bool:
    return abs(value) < MAX_DRAWN and (not log or value > 0)


def _y_axis(
    values: list[float], *, low: float | None, high: float | None, log: bool
) -> tuple[float, float, list[tuple[float, str]]]:
    """The ends of the axis (exponents of ten if `log`) and the (value, text) of its labels."""
    if log:
        bottom, top = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        top = max(top, bottom + 1)
        exponents = range(bottom, top + 1, math.ceil((top - bottom) / 6))
        return bottom, top, [(10.0**e, f"1e{e}".replace("-", MINUS)) for e in exponents]
    bottom = min(values) if low is None else min(*values, low)
    top = max(values) if high is None else max(*values, high)
    if top - bottom <= 1e-9 * max(abs(top), abs(bottom)):
        pad = abs(top) / 10 or 1.0
        bottom, top = (bottom if bottom == low else bottom - pad), top + pad
    pad = (top - bottom) * 0.06
    bottom, top = bottom if bottom == low else bottom - pad, top if top == high else top + pad
    at = ticks(bottom, top)
    spacing = at[1] - at[0] if len(at) > 1 else 1.0
    digits = max(0, math.ceil(-math.log10(spacing) - 1e-9))
    if digits and round(spacing, digits) != float(f"{spacing:.12g}"):
        digits += 1  # steps of 0.25 and their like
    plain = digits <= 4 and max(abs(t) for t in at) < 1e7
    said = [f"{t:,.{digits}f}".replace("-", MINUS) if plain else number_text(t) for t in at]
    return bottom, top, list(zip(at, said, strict=True))


def _runs(series: Series, *, log: bool) -> Iterator[list[int]]:
    """Indices of neighbouring values that can be drawn: a line breaks where one cannot."""
    run: list[int] = []
    for i, value in enumerate(series.values):
        if _is_drawn(value, log=log):
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _curve(
    series: Series, x: Callable[[float], float], y: Callable[[float], float], *, log: bool
) -> str:
    line = dots = band = ""
    for run in _runs(series, log=log):
        points = [f"{x(series.steps[i])} {y(series.values[i])}" for i in run]
        if series.mark == "dots" or len(run) == 1:
            dots += "".join(f"M{point}h0" for point in points)  # no length, but round caps
        else:
            line += "M" + "L".join(points)
        spans = [
            (x(series.steps[i]), y(series.spans[i][0]), y(series.spans[i][1]))
            for i in (run if series.spans else [])
            if all(_is_drawn(end, log=log) for end in series.spans[i])
        ]
        if series.mark == "dots":
            band += "".join(f"M{at} {a}V{b}" for at, a, b in spans)
        elif spans:
            there = "L".join(f"{at} {a}" for at, a, _ in spans)
            back = "L".join(f"{at} {b}" for at, _, b in reversed(spans))
            band += f"M{there}L{back}Z"
    kind = "whisker" if series.mark == "dots" else "band"
    dot = "dots" if series.mark == "dots" else "lone"
    paths = {kind: band, series.mark: line, dot: dots}
    return "".join(f"<path class='{k} c{series.colour}' d='{d}'/>" for k, d in paths.items() if d)
