"""Every preset against its paper's equation, written out as plain loops in `oracles.papers`."""

import inspect
import math

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import papers
from paper_cases import CASES, PRESETS

from grpo_jax import objectives

EACH = pytest.mark.parametrize("name", CASES)
SEEDS = range(2)


def assert_close(found, wanted, tolerance):
    """Relative to the largest entry: small ones are differences of large ones."""
    scale = max(np.abs(wanted).max(), 1.0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_float64_eager(name, seed):
    case, example = CASES[name], CASES[name].example(seed)
    plain = case.oracle(example)
    with jax.enable_x64(True):
        batch = batches.prepared(case.objective, example)
        arrays = jnp.asarray(example.log_probs), jnp.asarray(example.entropy)
        loss, gradient = batches.loss_and_gradient(case.objective, *arrays, batch)
    assert loss.dtype == gradient.dtype == np.float64
    assert_close(loss, plain(example.log_probs).real, 1e-10)
    assert_close(gradient, papers.slopes(plain, example), 1e-10)


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_float32_compiled_with_columns_of_padding(name, seed):
    """The loops do not see the padding: that it changes nothing is tested along with the rest."""
    case, example = CASES[name], CASES[name].example(seed)
    plain = case.oracle(example)
    wide = batches.widened(example, 2)
    loss, gradient = case.run(wide.log_probs, wide.entropy, case.prepare(wide))
    assert loss.dtype == gradient.dtype == np.float32
    assert_close(loss, plain(example.log_probs).real, 1e-5)
    assert_close(gradient[..., :-2], papers.slopes(plain, example), 1e-5)
    assert not np.any(gradient[..., -2:])
