"""Small line charts as inline SVG, with one read-out for all of them. Standard library only.

A chart has no size of its own: the curves live in a 1000 by 1000 box that stretches with the page
(strokes and dots do not), and the labels are text beside it. `STYLE` and `SCRIPT` go into the page
once; without the script a chart shows its last values, with it the values under the pointer.
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


STYLE = """
.charts { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.5rem 2rem }
.chart { margin: 0; min-width: 0; display: flex; flex-direction: column; --c: var(--c1) }
.c2 { --c: var(--c2) } .c3 { --c: var(--c3) } .c4 { --c: var(--c4) }
.hero { grid-column: span 2; grid-row: span 2 }
.chart b { font-weight: 600 } .chart i, .chart .legend, .when { color: var(--dim) }
.chart i { font-style: normal } .when { float: right }
.legend { display: flex; flex-wrap: wrap; gap: 0 .9rem; min-height: 1.45em; font-size: .92em }
.legend output { color: var(--ink) } .legend .lost { color: var(--bad) }
.legend s { display: inline-block; width: .9em; height: 0; vertical-align: .28em;
  border-top: 2px solid var(--c); margin-right: .4em }
.legend s.faint { opacity: .5; border-top-width: 1px }
.legend s.dots { width: .5em; height: .5em; border: 0; border-radius: 50%; background: var(--c);
  vertical-align: .08em }
.plot { position: relative; flex: 1; min-height: 8.6rem; margin: .8rem .4rem 1.5rem 2.9rem;
  touch-action: pan-y; cursor: crosshair }
.hero .plot { min-height: 15rem }
.plot.none { display: grid; place-items: center; color: var(--dim); cursor: default;
  border: 1px dashed var(--rule); margin-left: 0; margin-right: 0 }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible }
.plot path { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round;
  stroke-linecap: round; vector-effect: non-scaling-stroke }
.plot path.grid { stroke: var(--rule); stroke-width: 1; stroke-linecap: butt }
.plot path.axis { stroke: var(--dim); stroke-width: 1; stroke-linecap: butt }
.plot path.faint { stroke-width: 1; opacity: .5 } .hero path.line { stroke-width: 2.2 }
.plot path.dots { stroke-width: 8 } .plot path.lone { stroke-width: 4.5 }
.plot path.whisker { stroke-width: 1.4 }
.plot path.band { fill: var(--c); stroke: none; opacity: .15 }
.plot path.bad { stroke: var(--bad); stroke-width: 2 }
.plot u { position: absolute; text-decoration: none; color: var(--dim); font-size: .86em;
  line-height: 1; white-space: nowrap; pointer-events: none }
.plot u.y { right: 100%; margin-right: .5em; transform: translateY(-50%) }
.plot u.x { top: 100%; margin-top: .55em; transform: translateX(-50%) }
.hair { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px solid var(--dim);
  pointer-events: none }
.hair em { position: absolute; width: 9px; height: 9px; margin: -5px; border-radius: 50%;
  background: var(--c); border: 1.5px solid var(--paper); box-sizing: border-box }
@media (max-width: 60rem) { .charts { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .hero { grid-row: auto } }
@media (max-width: 40rem) { .charts { grid-template-columns: minmax(0, 1fr) }
  .hero { grid-column: auto } }
"""

SCRIPT = """
"use strict";
const charts = [...document.querySelectorAll("figure[data-chart]")].map(figure => {
  const [left, right, series] = JSON.parse(figure.dataset.chart);
  const outputs = [...figure.querySelectorAll("output")];
  const plot = figure.querySelector(".plot"), hair = document.createElement("div");
  hair.className = "hair"; hair.hidden = true; plot.append(hair);
  const marks = [...figure.querySelectorAll(".legend s")].map(swatch => {
    const mark = document.createElement("em");
    mark.className = swatch.className.split(" ").pop(); hair.append(mark); return mark;
  });
  return { left, right, series, outputs, plot, hair, marks,
    when: figure.querySelector(".when"), last: outputs.map(o => o.textContent) };
});
const nearest = (points, step) => {
  let a = 0, b = points.length - 1;
  while (b - a > 1) { const m = (a + b) >> 1; if (points[m][0] <= step) a = m; else b = m; }
  return Math.abs(points[a][0] - step) <= Math.abs(points[b][0] - step) ? points[a] : points[b];
};
const show = step => charts.forEach(c => {
  c.hair.hidden = false;
  c.hair.style.left = 100 * (step - c.left) / (c.right - c.left) + "%";
  c.when.textContent = "step " + step.toLocaleString("en");
  c.series.forEach((points, i) => {
    const [at, y, text] = nearest(points, step);
    c.outputs[i].textContent = text;
    c.marks[i].hidden = y === null || at !== step;
    c.marks[i].style.top = y + "%";
  });
});
const leave = () => charts.forEach(c => {
  c.hair.hidden = true; c.when.textContent = "";
  c.outputs.forEach((o, i) => { o.textContent = c.last[i]; });
});
charts.forEach(c => {
  const move = event => {
    const box = c.plot.getBoundingClientRect();
    const step = c.left + (event.clientX - box.left) / box.width * (c.right - c.left);
    show(c.series.map(points => nearest(points, step)[0])
      .reduce((a, b) => Math.abs(b - step) < Math.abs(a - step) ? b : a));
  };
  c.plot.addEventListener("pointermove", move);
  c.plot.addEventListener("pointerdown", move);
  c.plot.addEventListener("pointerleave", leave);
});
"""
