"""Data sets that are not part of the repository, where they are at hand."""

import os
import pathlib

import pytest

_BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared/data"
GSM8K = pathlib.Path(os.environ.get("GRPO_JAX_TEST_DATA", _BESIDE)) / "gsm8k"

needs_gsm8k = pytest.mark.skipif(
    not GSM8K.is_dir(),
    reason="GSM8K is not at hand; GRPO_JAX_TEST_DATA names the folder that holds gsm8k/train.jsonl",
)
