"""Tests of the run report: what it says, what it lets through, and what it survives."""

import html
import itertools
import json
import math
import pathlib
import re

import pytest

from grpo_jax import charts, report
from grpo_jax.run_log import read_run

SCRIPT = (pathlib.Path(report.__file__).parent / "charts.js").read_text()

HOSTILE = (
    '</pre><script>alert("x")</script><img src=http://evil/ onerror=alert(1)>\x1b[2J\x00\u202e'
)


def step(number, **values):
    return {
        "step": number,
        "reward": 0.25,
        "reward_std": 0.4,
        "frac_reward_zero_std": 0.5,
        "rewards/sums/mean": 0.25,
        "kl": 0.001,
        "entropy": 1.2,
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "clip_ratio/region_mean": 0.0,
        "completions/mean_length": 4.2,
        "completions/min_length": 2.0,
        "completions/max_length": 6.0,
        "completions/clipped_ratio": 0.5,
        "completions/parsed_ratio": 0.9,
        "grad_norm": 1.3,
        "sampler_mismatch/max": 2e-5,
        "sampler_mismatch/mean": 3e-6,
        "tokens/seen": 1234 * number,
        "step_time": 2.1,
        "tokens_per_second": 90.0,
    } | values


def evaluation(number, sampled, greedy):
    return {
        "step": number,
        "eval/sampled/reward": sampled,
        "eval/sampled/reward_stderr": 0.024,
        "eval/greedy/reward": greedy,
        "eval/greedy/reward_stderr": 0.017,
        "eval/num_questions": 100,
        "eval_time": 12.0,
    }


def group(number, rewards, *, text=" 47", question=17):
    completions = [
        {
            "text": text,
            "num_tokens": 4,
            "truncated": False,
            "rewards": {"sums": reward},
            "reward": reward,
            "advantage": reward - sum(rewards) / len(rewards),
        }
        for reward in rewards
    ]
    return {
        "step": number,
        "question": question,
        "prompt": text,
        "answer": text,
        "completions": completions,
    }


def write_run(run_dir, *, metrics=(), groups=(), config=None, summary=None, tail=""):
    run_dir.mkdir(exist_ok=True)
    evaluations = [record for record in metrics if "eval/num_questions" in record]
    metrics = [record for record in metrics if record not in evaluations]
    logs = {"metrics": metrics, "evaluations": evaluations, "completions": groups}
    for name, records in logs.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (run_dir / f"{name}.jsonl").write_text(lines + tail)
    for name, value in (("config", config), ("summary", summary)):
        if value is not None:
            (run_dir / f"{name}.json").write_text(json.dumps(value))


def page_of(run_dir):
    page = report.write_report(run_dir).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>\n")
    return page


def chart_of(page, title):
    """The figure of a title, with its read-out data."""
    figure = next(f for f in re.findall(r"<figure.*?</figure>", page, re.S) if f"<b>{title}<" in f)
    data = re.search(r'data-chart="(.*?)"', figure)
    return figure, json.loads(html.unescape(data.group(1))) if data else None


def test_the_page_says_what_the_files_say(tmp_path):
    write_run(
        tmp_path,
        metrics=[
            evaluation(0, 0.06, 0.03),
            *(step(s) for s in (1, 2, 3)),
            evaluation(3, 0.52, 0.61),
        ],
        groups=[group(3, [1.0, 0.0, 0.0, 1.0])],
        config={
            "experiment": "quickstart",
            "started": "2026-11-22T14:00:00",
            "versions": {"jax": "0.10.2"},
            "config": {"model": "tiny-model", "group_size": 4},
        },
        summary={"seconds": 252.0, "peak_rss_bytes": 3 * 2**30},
    )
    page = page_of(tmp_path)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))
    for said in (
        "quickstart",
        "tiny-model",
        "22 November 2026, 14:00",
        "0.060 ± 0.024 → 0.520 ± 0.024",
        "0.030 ± 0.017 → 0.610 ± 0.017",
        "100 questions",
        "4 min 12 s",
        "3.00 GiB",
        "3,702",  # tokens, cumulative
        "group_size4",
        "jax0.10.2",
        "Only group",
        "step 3 · question 17 · mean reward 0.5",
    ):
        assert said in text
    assert "<tr><td>3</td><td>1</td><td>4</td><td>0</td><td>0.5</td></tr>" in page


def test_charts_hold_every_step_and_evaluation(tmp_path):
    metrics = [step(s, reward=s / 20) for s in range(1, 21)] + [evaluation(0, 0.06, 0.03)]
    write_run(tmp_path, metrics=metrics)
    _, (left, right, series) = chart_of(page_of(tmp_path), "Reward")
    assert (left, right) == (0, 20)
    means, smoothed, sampled, greedy = series
    assert [at for at, _, _ in means] == [at for at, _, _ in smoothed] == list(range(1, 21))
    assert means[4][2] == "0.25"
    assert sampled == [[0, pytest.approx(sampled[0][1]), "0.060 ± 0.024 at 0"]]
    assert greedy[0][2] == "0.030 ± 0.017 at 0"


def test_best_median_and_worst_come_from_the_last_logged_step(tmp_path):
    early = [group(1, [1.0, 1.0], question=99)]
    late = [group(2, [q / 4, q / 4], question=q) for q in (3, 0, 4, 1, 2)]
    write_run(tmp_path, groups=early + late)
    found = re.findall(r"<h3>(\w+) group</h3><p>step (\d+) · question (\d+)", page_of(tmp_path))
    assert found == [("Best", "2", "4"), ("Median", "2", "2"), ("Worst", "2", "0")]


def test_completions_are_coloured_by_advantage(tmp_path):
    write_run(tmp_path, groups=[group(1, [0.0, 1.0, 0.5])])
    rows = re.findall(r"<li class='(\w+)' style='--a:([\d.]+)'>", page_of(tmp_path))
    assert rows == [("up", "1.000"), ("down", "0.000"), ("down", "1.000")]


def test_hostile_text_stays_text(tmp_path):
    write_run(
        tmp_path,
        metrics=[step(1, **{f"rewards/{HOSTILE}/mean": 0.5})],
        groups=[group(1, [1.0, 0.0], text=HOSTILE, question=HOSTILE)],
        config={
            "experiment": HOSTILE,
            "started": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "config": {"model": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}},
        },
    )
    page = page_of(tmp_path)
    body = page.replace(f"<script>{SCRIPT}</script>", "")
    assert "<script" not in body
    assert "<img" not in body
    assert "&lt;script&gt;alert(" in page
    assert "<kbd>␛</kbd>[2J<kbd>␀</kbd><kbd>U+202E</kbd>" in page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", re.sub("<figure.*?</figure>", "", page))


def test_the_page_reaches_for_nothing(tmp_path):
    write_run(tmp_path, metrics=[step(1)], groups=[group(1, [1.0], text="http://x.test")])
    page = page_of(tmp_path)
    tags = " ".join(re.findall(r"<[^>]*>", page))
    assert not re.search(r"\b(src|href|srcset|action)\s*=", tags)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("char", ["\x07", "\x7f", "\x9b", "\u200b", "\u2028", "\ud800", "\ufeff"])
def test_no_character_is_invisible(char):
    assert char not in report.visible(f"a{char}b")
    assert re.fullmatch(r"a<kbd>\S+</kbd>b", report.visible(f"a{char}b"))


def test_long_text_is_cut_and_says_so(tmp_path):
    write_run(tmp_path, groups=[group(1, [1.0, 0.0], text="y" * 12_345)])
    page = page_of(tmp_path)
    assert f"{12_345 - report.MAX_COMPLETION_CHARS:,} characters left out" in page
    assert "y" * (report.MAX_PROMPT_CHARS + 1) not in page


def test_no_reference_is_named(tmp_path):
    without = step(1)
    del without["kl"]
    write_run(tmp_path, metrics=[without])
    figure, data = chart_of(page_of(tmp_path), "KL to the reference")
    assert data is None
    assert "no reference: kl_coef = 0" in figure


def test_what_is_not_finite_is_counted_and_breaks_the_line(tmp_path):
    norms = [1.0, 2.0, math.nan, 3.0, math.inf, 1e300, 2.0]
    write_run(tmp_path, metrics=[step(s, grad_norm=v) for s, v in enumerate(norms, 1)])
    figure, (_, _, [points]) = chart_of(page_of(tmp_path), "Gradient norm")
    assert "3 not finite" in figure
    assert [text for _, _, text in points][2] == "NaN"
    assert re.search(r"class='line c1' d='([^']*)'", figure).group(1).count("M") == 1
    assert re.search(r"class='lone c1' d='([^']*)'", figure).group(1).count("M") == 2


ODD_RUNS = {
    "nothing": {},
    "one step": {"metrics": [step(1)]},
    "only an evaluation": {"metrics": [evaluation(0, 0.06, 0.03)]},
    "empty objects": {"metrics": [{}, {"step": 1}], "groups": [{}, {"step": 1}], "config": {}},
    "all NaN": {
        "metrics": [dict.fromkeys(step(1), math.nan) | {"step": s} for s in (1, 2)]
        + [dict.fromkeys(evaluation(0, 0, 0), math.nan) | {"step": 0}],
        "groups": [group(1, [math.nan, math.nan]), group(1, [math.inf, 0.0])],
        "summary": {"seconds": math.nan, "peak_rss_bytes": math.inf},
    },
    "wrong types": {
        "metrics": [dict.fromkeys(step(1), "x") | {"step": 1}, {"step": "x"}, {"step": None}, [1]],
        "groups": [{"step": 1, "completions": [None, {}, {"reward": [], "rewards": 3}]}, 7],
        "config": {"experiment": 3, "started": [], "versions": 1, "config": [1]},
        "summary": ["x"],
    },
    "beyond floats": {
        "metrics": [step(1, reward=10**400), step(10**30), step(2, reward=-1e308, grad_norm=1e308)],
        "groups": [group(1, [0.0, 1.0], text="\ud800")],
    },
    "zeros on a log scale": {"metrics": [step(1, **{"sampler_mismatch/max": 0.0})]},
    "a negative constant": {"metrics": [step(s, entropy=-2.0) for s in (1, 2)]},
    "tiny changes": {"metrics": [step(s, entropy=1.0 + s * 1e-15) for s in (1, 2)]},
    "empty groups": {"groups": [{"step": 1, "completions": []}]},
}


@pytest.mark.parametrize("files", ODD_RUNS.values(), ids=ODD_RUNS.keys())
@pytest.mark.parametrize("tail", ["", '{"step": 4, "rew', "\n\n", "[" * 100_000])
def test_odd_runs_still_give_a_page(tmp_path, files, tail):
    write_run(tmp_path, tail=tail, **files)
    page = page_of(tmp_path)
    for title in ("Training", "Completions", "Config", "Logged groups"):
        assert f"<h2>{title}</h2>" in page
    assert ("Unreadable" in page) or not tail.strip()
    assert "nan" not in " ".join(re.findall(r" d=['\"]([^'\"]*)", page))


def test_an_empty_directory_gives_a_page_and_none_an_error(tmp_path):
    assert "not evaluated" in page_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run directory"):
        report.write_report(tmp_path / "absent")


def test_a_second_report_replaces_the_first_and_leaves_nothing_else(tmp_path):
    write_run(tmp_path, metrics=[step(1)])
    before = sorted(tmp_path.iterdir())
    first = page_of(tmp_path)
    assert page_of(tmp_path) == first
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "report.html"])


def test_a_step_logged_twice_counts_once(tmp_path):
    write_run(tmp_path, metrics=[step(1), step(2, reward=0.1), step(2, reward=0.9)])
    run = read_run(tmp_path)
    assert [(s["step"], s["reward"]) for s in run.steps] == [(1, 0.25), (2, 0.9)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 0.2), (1e-9, 3e-9), (5, 1e7), (0, 1e29)])
def test_ticks_are_few_evenly_spaced_and_inside(low, high):
    found = charts.ticks(low, high)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert 2 <= len(found) <= 6
    assert low - 1e-9 * high <= found[0] < found[-1] <= high * (1 + 1e-9)
    assert gaps == pytest.approx([gaps[0]] * len(gaps))
