"""A run directory as one page: `write_report` turns its logs into `report.html`.

The page needs no network and says so to the browser (Content-Security-Policy). What a model wrote
is hostile: all text passes through `visible`. Logs may be short, cut off, or hold NaN.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import itertools
import json
import math
import os
import pathlib
import re
import unicodedata
from typing import Any

from grpo_jax import charts
from grpo_jax.charts import Series, measured_text, number_text
from grpo_jax.run_log import Run, number, read_run

MAX_PROMPT_CHARS = 3000
MAX_COMPLETION_CHARS = 1500
MAX_COMPLETIONS = 64  # shown of one group
MAX_VALUE_CHARS = 400  # of one config value
MISSING = "\N{EN DASH}"


def write_report(run_dir: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` into a run directory, whole or not at all, and returns its path.

    Raises:
        FileNotFoundError: if there is no such directory. Missing files in it only leave gaps.
    """
    page = _page(run_dir.resolve().name, read_run(run_dir))
    report = run_dir / "report.html"
    unfinished = run_dir / f".report.html.{os.getpid()}"
    try:
        unfinished.write_text(page, encoding="utf-8", errors="replace")
        unfinished.replace(report)
    finally:
        unfinished.unlink(missing_ok=True)
    return report


def visible(text: object, *, max_chars: int = MAX_VALUE_CHARS) -> str:
    """Any text as harmless HTML: escaped, cut, and with what does not print made to show.

    >>> visible("<b>\\x1b[2J")
    '&lt;b&gt;<kbd>␛</kbd>[2J'
    """
    text = str(text)
    parts = []
    for char in text[:max_chars]:
        code = ord(char)
        if char == "\n":
            parts.append("<kbd class='n'>↵</kbd>\n")
        elif code < 0x20 or code == 0x7F:
            parts.append(f"<kbd>{chr(0x2421 if code == 0x7F else 0x2400 + code)}</kbd>")
        elif unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            # Overrides of direction, zero widths and lone surrogates hide text or break the file.
            parts.append(f"<kbd>U+{code:04X}</kbd>")
        else:
            parts.append(html.escape(char))
    if len(text) > max_chars:
        parts.append(f"<mark>… {len(text) - max_chars:,} characters left out</mark>")
    return "".join(parts)


def duration(seconds: float) -> str:
    """
    >>> [duration(s) for s in (2.14, 252, 7500)]
    ['2.1 s', '4 min 12 s', '2 h 05 min']
    """
    if not abs(seconds) < charts.MAX_DRAWN:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def _tile(label: str, value: str, note: str = "", *, wide: bool = False) -> str:
    style = " class='wide'" if wide else ""
    return f"<div{style}><dt>{label}</dt><dd>{value}</dd><dd class='note'>{note}</dd></div>"


def _held_out(run: Run, kind: str) -> str:
    key = f"eval/{kind}/reward"
    seen = [e for e in run.evaluations if key in e]

    def said(evaluation: dict[str, Any]) -> str:
        text = measured_text(number(evaluation, key), number(evaluation, f"{key}_stderr"))
        mean, _, stderr = text.partition(" ")
        return f"{mean}<small> {stderr}</small>"

    if not seen:
        ends = [number(run.summary, f"held_out_{when}") for when in ("before", "after")]
        if kind == "sampled" and not all(map(math.isnan, ends)):
            text = " <span>→</span> ".join(map(number_text, ends))
            return _tile("Held-out reward", text, "from summary.json", wide=True)
        return _tile(f"Held-out reward, {kind}", MISSING, "not evaluated", wide=True)
    first, last = seen[0], seen[-1]
    questions = number_text(number(last, "eval/num_questions"))
    if first is last:
        note = f"one evaluation, at step {first['step']} · {questions} questions"
        return _tile(f"Held-out reward, {kind}", said(first), note, wide=True)
    note = f"step {first['step']} → {last['step']} · {questions} questions · ± standard error"
    text = f"{said(first)} <span>→</span> {said(last)}"
    return _tile(f"Held-out reward, {kind}", text, note, wide=True)


def _headline(run: Run) -> str:
    last = run.steps[-1] if run.steps else {}
    times = [t for t in (number(s, "step_time") for s in run.steps) if abs(t) < charts.MAX_DRAWN]
    seconds, source = number(run.summary, "seconds"), "wall clock"
    if math.isnan(seconds):
        seconds, source = (sum(times), "sum of step times") if times else (math.nan, "not logged")
    gibibytes = number(run.summary, "peak_rss_bytes") / 2**30
    tokens = number(last, "tokens/seen")
    groups = sum(map(len, run.counts.values()))
    logged = sum(int(g["completions"]) for facts in run.counts.values() for g in facts)
    pace = f" · {number_text(sum(times) / len(times))} s a step" if times else ""
    known = f"{gibibytes:,.2f}<small> GiB</small>" if abs(gibibytes) < charts.MAX_DRAWN else MISSING
    tiles = [
        _held_out(run, "sampled"),
        _held_out(run, "greedy"),
        _tile("Training", duration(seconds), f"{source}{pace}"),
        _tile("Peak memory", known, "resident set, host"),
        _tile(
            "Steps", f"{len(run.steps):,}", f"last is {last['step']:,}" if last else "none logged"
        ),
        _tile(
            "Tokens",
            MISSING if math.isnan(tokens) else number_text(tokens),
            "cumulative",
        ),
        _tile("Completions", f"{logged:,}", f"logged, in {groups:,} groups"),
    ]
    return f"<dl class='tiles'>{''.join(tiles)}</dl>"


def _charts(run: Run) -> str:
    at = [s["step"] for s in run.steps]
    everywhere = [*at, *(e["step"] for e in run.evaluations)] or [0]
    ends = (min(everywhere), max(everywhere))

    def series(key: str, label: str, **looks: Any) -> Series:
        having = [s for s in run.steps if key in s]
        return Series(label, [s["step"] for s in having], [number(s, key) for s in having], **looks)

    def held_out(kind: str, colour: int) -> Series:
        key = f"eval/{kind}/reward"
        seen = [e for e in run.evaluations if key in e]
        means = [number(e, key) for e in seen]
        errors = [number(e, f"{key}_stderr") for e in seen]
        texts = [
            f"{measured_text(m, d)} at {e['step']:,}"
            for e, m, d in zip(seen, means, errors, strict=True)
        ]
        spans = [(m - d, m + d) for m, d in zip(means, errors, strict=True)]
        where = [e["step"] for e in seen]
        return Series(f"held-out {kind}", where, means, texts, spans, mark="dots", colour=colour)

    reward = series("reward", "batch mean")
    curves = [reward]
    if len(reward.values) >= 10:
        window = min(max(3, len(reward.values) // 20 * 2 + 1), 201)
        curves[0] = reward._replace(mark="faint")
        smoothed = charts.smooth(reward.values, window)
        curves.append(Series(f"over {window} steps", reward.steps, smoothed))
    keys = {k for s in run.steps for k in s}
    names = sorted(k for k in keys if k.startswith("rewards/") and k.endswith("/mean"))
    if len(names) > 1:
        pretty = [n.removeprefix("rewards/").removesuffix("/mean")[:30] for n in names[:6]]
        parts = zip(names, pretty, itertools.cycle((4, 2, 3)), strict=False)
        curves += [series(n, p, mark="faint", colour=c) for n, p, c in parts]
    curves += [held_out("sampled", 2), held_out("greedy", 3)]

    mean, *edges = (series(f"completions/{k}_length", k) for k in ("mean", "min", "max"))
    if [len(e.values) for e in edges] == [len(mean.values)] * 2:
        spans = list(zip(*(e.values for e in edges), strict=True))
        values = zip(mean.values, spans, strict=True)
        texts = [f"{number_text(m)} ({number_text(a)} to {number_text(b)})" for m, (a, b) in values]
        mean = mean._replace(label="mean (min to max)", spans=spans, texts=texts)

    def chart(title: str, unit: str, *curves: Series, **settings: Any) -> str:
        return charts.chart(title, unit, curves, steps=ends, **settings)

    shares = {"low": 0.0, "high": 1.0}
    no_kl = "no reference: kl_coef = 0" if run.steps else "not logged"
    figures = [
        chart("Reward", "", *curves, low=0.0, classes="hero"),
        chart("Groups without signal", "share", series("frac_reward_zero_std", "share"), **shares),
        chart("Reward spread", "within groups", series("reward_std", "std"), low=0.0),
        chart("KL to the reference", "nats per token", series("kl", "kl"), low=0.0, empty=no_kl),
        chart("Entropy", "nats per token", series("entropy", "entropy"), low=0.0),
        chart("Completion length", "tokens", mean, low=0.0),
        chart(
            "Truncated and parsed",
            "share of completions",
            series("completions/clipped_ratio", "truncated", colour=2),
            series("completions/parsed_ratio", "parsed"),
            **shares,
        ),
        chart(
            "Clip fraction",
            "of tokens",
            series("clip_ratio/low_mean", "low", colour=2),
            series("clip_ratio/high_mean", "high", colour=3),
            series("clip_ratio/region_mean", "either"),
            low=0.0,
        ),
        chart("Gradient norm", "", series("grad_norm", "norm"), low=0.0),
        chart(
            "Sampler mismatch",
            "nats from the scorer, log scale",
            series("sampler_mismatch/max", "max", colour=2),
            series("sampler_mismatch/mean", "mean"),
            log=True,
        ),
        chart("Step time", "seconds", series("step_time", "step"), low=0.0),
        chart("Throughput", "tokens per second", series("tokens_per_second", "rate"), low=0.0),
    ]
    return f"<div class='charts'>{''.join(figures)}</div>"


def _completion(index: int, completion: dict[str, Any], scale: float) -> str:
    advantage = number(completion, "advantage")
    tint = advantage / scale if abs(advantage) < charts.MAX_DRAWN else 0.0
    tokens = number_text(number(completion, "num_tokens"))
    tokens += " tokens, cut off" if completion.get("truncated") is True else " tokens"
    rewards = completion.get("rewards")
    parts = rewards if isinstance(rewards, dict) and len(rewards) > 1 else {}
    named = "".join(
        f"<span>{visible(name, max_chars=30)} {number_text(number(parts, name))}</span>"
        for name in itertools.islice(parts, 8)
    )
    return (
        f"<li class='{'up' if tint > 0 else 'down'}' style='--a:{abs(tint):.3f}'>"
        f"<div class='facts'><span class='index'>{index}</span>"
        f"<b>{number_text(number(completion, 'reward'))}</b>"
        f"<b class='advantage'>{'+' if tint > 0 else ''}{number_text(advantage)}</b>"
        f"<span>{tokens}</span>{named}</div>"
        f"<pre>{visible(completion.get('text', ''), max_chars=MAX_COMPLETION_CHARS)}</pre></li>"
    )


def _groups(run: Run) -> str:
    ranked = sorted((g for g in run.groups if g["completions"]), key=lambda g: -_rank(g["mean"]))
    if not ranked:
        return "<p class='none'>No completions were logged.</p>"
    chosen = {"Best": 0, "Median": len(ranked) // 2, "Worst": len(ranked) - 1}
    if len(ranked) < 3:
        chosen = {"Best": 0, "Worst": 1} if len(ranked) == 2 else {"Only": 0}
    advantages = [number(c, "advantage") for i in chosen.values() for c in ranked[i]["completions"]]
    scale = max([abs(a) for a in advantages if abs(a) < charts.MAX_DRAWN], default=0.0) or 1.0
    sections = ""
    for name, i in chosen.items():
        group = ranked[i]
        found = list(enumerate(group["completions"], 1))
        found.sort(key=lambda one: -_rank(number(one[1], "reward")))
        items = "".join(_completion(index, c, scale) for index, c in found[:MAX_COMPLETIONS])
        if len(found) > MAX_COMPLETIONS:
            left_out = len(found) - MAX_COMPLETIONS
            items += f"<li class='none'>{left_out:,} more completions left out</li>"
        prompt = visible(_prompt_text(group.get("prompt", "")), max_chars=MAX_PROMPT_CHARS)
        sections += (
            f"<section class='group'><div><h3>{name} group</h3>"
            f"<p>step {group['step']:,} · question {visible(group.get('question', MISSING))}"
            f" · mean reward {number_text(group['mean'])}</p>"
            f"<h4>Prompt</h4><pre>{prompt}</pre>"
            f"<h4>Answer</h4><pre>{visible(group.get('answer', MISSING))}</pre></div>"
            f"<ol>{items}</ol></section>"
        )
    first, last = run.groups[0]["step"], run.groups[-1]["step"]
    where = f"step {last:,}" if first == last else f"steps {first:,} to {last:,}"
    return (
        f"<p>From the {len(ranked):,} groups logged at {where}, by mean reward; their completions"
        " by reward. Columns: place in the group, reward, <b>advantage</b>, length."
        " <span class='key'><i class='down'></i> below the group's mean"
        f" <i class='up'></i> above it</span></p>{sections}"
    )


def _prompt_text(prompt: object) -> object:
    """Chat turns as text, a turn after the other."""
    if isinstance(prompt, list) and all(isinstance(turn, dict) for turn in prompt):
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
    return prompt


def _rank(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _config(run: Run) -> str:
    def rows(values: object) -> str:
        found = values if isinstance(values, dict) else {}
        said = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in found.items()
        }
        return "".join(
            f"<div><dt>{visible(name)}</dt><dd>{visible(value)}</dd></div>"
            for name, value in said.items()
        )

    values, versions = rows(run.config.get("config")), rows(run.config.get("versions"))
    if not values + versions:
        return "<p class='none'>No config was saved.</p>"
    return f"<dl class='config'>{values}</dl><h3>Versions</h3><dl class='config'>{versions}</dl>"


def _counts(run: Run) -> str:
    if not run.counts:
        return "<p class='none'>No groups were logged.</p>"
    rows = []
    for step, facts in run.counts.items():
        means = [f["mean"] for f in facts if not math.isnan(f["mean"])]
        mean = number_text(sum(means) / len(means)) if means else MISSING
        completions, flat = (sum(int(f[k]) for f in facts) for k in ("completions", "flat"))
        cells = (f"{step:,}", f"{len(facts):,}", f"{completions:,}", f"{flat:,}", mean)
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("step", "groups", "completions", "without signal", "mean reward")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _page(name: str, run: Run) -> str:
    settings = run.config.get("config")
    model = settings.get("model") if isinstance(settings, dict) else None
    started = str(run.config.get("started", ""))
    try:
        date = datetime.datetime.fromisoformat(started)
        when = f"{date.day} {date:%B %Y, %H:%M}"
    except ValueError:
        when = started or "date not recorded"
    about = [model or "model not recorded", when, f"run {name}"]
    title = visible(run.config.get("experiment") or name, max_chars=120)
    skipped = ", ".join(
        f"{n:,} {'line' if n == 1 else 'lines'} of {visible(file)}"
        for file, n in run.unreadable.items()
    )
    warning = f"<p class='warning'>Unreadable, so left out: {skipped}.</p>" if skipped else ""
    here = pathlib.Path(__file__).parent
    style, script = ((here / file).read_text() for file in ("report.css", "charts.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none';
 form-action 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{re.sub("<[^>]*>", "", title)} · grpo_jax</title>
<style>{style}</style></head><body>
<header><p class="over">grpo_jax run</p><h1>{title}</h1>
<p class="about">{"".join(f"<span>{visible(a, max_chars=200)}</span>" for a in about)}</p></header>
{warning}{_headline(run)}
<main><h2>Training</h2>{_charts(run)}
<h2>Completions</h2>{_groups(run)}
<h2>Config</h2>{_config(run)}
<h2>Logged groups</h2>{_counts(run)}</main>
<script>{script}</script></body></html>
"""
