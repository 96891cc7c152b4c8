"""Floors against plain counting; and that a benchmark prints what it promises, on a toy."""

import dataclasses
import json
import sys

import jax
import pytest

from benchmarks import decode, decode_parts, limits, memory, step, train
from benchmarks.floors import Limits, Work
from benchmarks.shapes import SHAPES
from grpo_jax import policy

TOY = SHAPES["toy"]


def counted(work, repeats_prompts=False):
    """Multiplications and additions of a forward pass, token by token and matrix by matrix."""
    c, flops = work.config, 0
    inner, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    hidden, mlp = c.hidden_size, c.intermediate_size
    matrices = [(hidden, inner), (hidden, kv), (hidden, kv), (inner, hidden)]
    matrices += [(hidden, mlp), (hidden, mlp), (mlp, hidden)]

    def token(seen):
        in_layer = sum(2 * rows * columns for rows, columns in matrices)
        return c.num_layers * (in_layer + seen * c.num_heads * 2 * 2 * c.head_dim)

    for _ in range(work.num_prompts):
        for _ in range(work.group_size if repeats_prompts else 1):
            flops += sum(token(seen + 1) for seen in range(work.prompt_len))
        for _ in range(work.group_size):
            own = range(work.new_tokens - 1)  # the last token predicts nothing
            flops += sum(token(work.prompt_len + seen + 1) for seen in own)
            flops += work.new_tokens * 2 * hidden * c.vocab_size
    return flops


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 3, 5, 4)])
def test_operations_are_those_of_a_plain_count(sizes):
    work = Work(TOY, *sizes)
    assert work.forward_flops == counted(work)
    assert work.repeated_forward_flops == counted(work, repeats_prompts=True)


def test_the_floor_of_decoding_is_the_larger_of_bytes_and_operations():
    work = Work(TOY, 2, 3, 5, 4)
    fast = Limits(1e30, 1e30, few_rows_seconds=0.0)
    by_bytes = dataclasses.replace(fast, bandwidth_bytes_per_second=1e6)
    assert work.decode_step_seconds(by_bytes) == pytest.approx(work.decode_bytes() / 1e6)
    by_rows = dataclasses.replace(fast, few_rows_seconds=2.0)
    assert work.decode_step_seconds(by_rows) == pytest.approx(2.0)


def run(module, monkeypatch, capsys, *options):
    command = ["benchmark", "--shape", "toy", "--prompts", "2", "--group", "2"]
    command += ["--prompt-len", "4", "--new-tokens", "4", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    module.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_step_prints_its_parts_and_floors(monkeypatch, capsys, tmp_path):
    # The machine's limits take seconds to measure, and are not what is looked at here.
    monkeypatch.setattr(step, "limits_of", lambda work, dtype: Limits(1e11, 1e10, 1e-3))
    found = run(step, monkeypatch, capsys, "--out", str(tmp_path / "step.json"))
    assert json.loads((tmp_path / "step.json").read_text()) == found
    parts = [found[f"{name}_seconds"] for name in ("sample", "score", "reference", "update")]
    assert found["step_seconds"] == pytest.approx(sum(parts))
    assert {"floor_seconds", "compile_seconds", "peak_rss_bytes", "date", "device"} <= found.keys()
    assert found["step_share_of_floor"] == found["floor_seconds"] / found["step_seconds"]


def test_training_is_compared_with_repeated_prompts(monkeypatch, capsys):
    monkeypatch.setattr(train, "matrix_rate", lambda dtype: 1e11)
    found = run(train, monkeypatch, capsys)
    assert found["speedup"] == found["repeated_update_seconds"] / found["update_seconds"]


@pytest.mark.parametrize("change", [{"group_size": 32}, {"new_tokens": 64}, {"num_prompts": 8}])
def test_logits_are_held_by_the_chunk(change, monkeypatch):
    """Four times the tokens with the chunk the same; by groups and by length the update sees them
    all at once."""
    monkeypatch.setattr(policy, "head_chunk_tokens", lambda vocab_size: 32)
    wide = dataclasses.replace(TOY, vocab_size=65_536)
    work = Work(wide, num_prompts=2, group_size=8, prompt_len=4, new_tokens=16)
    large = dataclasses.replace(work, **change)
    held, held_large = (
        memory.planned_bytes(each, "float32", micro_batch_tokens=10**6)["temporary"]
        for each in (work, large)
    )
    more_logits = (
        4 * wide.vocab_size * (large.rows * large.new_tokens - work.rows * work.new_tokens)
    )
    assert held_large - held < 0.1 * more_logits
    monkeypatch.setattr(policy, "head_chunk_tokens", lambda vocab_size: 10**6)
    jax.clear_caches()
    whole = memory.planned_bytes(large, "float32", micro_batch_tokens=10**6)["temporary"]
    assert whole - held > 0.5 * more_logits  # that is what a head in one piece would hold
    jax.clear_caches()


@pytest.mark.parametrize("module", [decode, decode_parts, limits, memory])
def test_the_last_line_is_one_json_object(module, monkeypatch, capsys):
    for name in ("matrix_rate", "bandwidth", "few_rows_seconds", "in_order_seconds"):
        monkeypatch.setattr(module, name, lambda *_: 1e-3, raising=False)
    found = run(module, monkeypatch, capsys) if module is not limits else None
    if module is limits:
        monkeypatch.setattr(sys, "argv", ["benchmark"])
        module.main()
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"date", "command", "device", "cores", "jax"} <= found.keys()


def test_completions_that_end_are_compared_with_those_that_keep_their_place(monkeypatch, capsys):
    monkeypatch.setattr(decode, "matrix_rate", lambda dtype: 1e11)
    monkeypatch.setattr(decode, "bandwidth", lambda: 1e10)
    found = run(decode, monkeypatch, capsys, "--mean-length", "2", "--rows-at-once", "2")
    best = found["best"]
    assert best["speedup"] == best["kept_place_seconds"] / best["seconds"]
    assert 4 <= best["tokens"] < 16
