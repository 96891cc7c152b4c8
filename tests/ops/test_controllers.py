import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.ops import controllers

KL = {"target": 6.0, "horizon": 10_000, "num_samples": 500}
ENTROPY = {"target": 0.2, "step": 0.005}


@pytest.mark.parametrize(
    ("kl", "factor"),
    [  # 1 + clip(kl / 6 - 1, -0.2, 0.2) / 20
        (6.0, 1.0),
        (6.6, 1.005),
        (5.4, 0.995),
        (7.2, 1.01),
        (60.0, 1.01),
        (0.0, 0.99),
        (-3.0, 0.99),  # an estimate may be negative
        (float("inf"), 1.01),
    ],
)
def test_kl_coefficient_by_hand(kl, factor, transform):
    rule = functools.partial(controllers.adaptive_kl_coef, **KL)
    found = transform(rule)(jnp.float32(0.04), jnp.float32(kl))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 0.04 * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("coef", "entropy", "wanted", "active"),
    [
        (0.02, 0.1, 0.025, 0.02),
        (0.02, 0.3, 0.015, 0.0),
        (0.02, 0.2, 0.015, 0.02),  # at the target: lowered, and still given to the loss
        (0.002, 0.3, 0.001, 0.0),  # not below low
        (0.099, 0.1, 0.1, 0.099),  # not above high
        (0.0, 0.0, 0.005, 0.0),
    ],
)
def test_entropy_coefficient_by_hand(coef, entropy, wanted, active, transform):
    rule = functools.partial(controllers.adaptive_entropy_coef, **ENTROPY, low=0.001, high=0.1)
    arguments = jnp.float32(coef), jnp.float32(entropy)
    np.testing.assert_allclose(transform(rule)(*arguments), wanted, rtol=1e-5, atol=1e-9)
    applied = functools.partial(controllers.active_entropy_coef, target=0.2)
    np.testing.assert_allclose(transform(applied)(*arguments), active, rtol=1e-6)


def test_many_steps_in_float64():
    """What a run keeps does not drift from the rule."""
    measured = np.abs(np.random.default_rng(0).normal(6.0, 2.0, size=100))
    coef = wanted = 0.2
    entropy_coef = wanted_entropy = 0.01
    with jax.enable_x64(True):
        kl_rule = jax.jit(functools.partial(controllers.adaptive_kl_coef, **KL))
        settings = {"target": 6.0, "step": 0.005, "high": 0.05}
        entropy_rule = jax.jit(functools.partial(controllers.adaptive_entropy_coef, **settings))
        for value in measured.tolist():
            coef = kl_rule(np.float64(coef), value)
            wanted *= 1 + max(-0.2, min(0.2, value / 6.0 - 1)) * 500 / 10_000
            entropy_coef = entropy_rule(np.float64(entropy_coef), value)
            wanted_entropy += 0.005 if value < 6.0 else -0.005
            wanted_entropy = min(max(wanted_entropy, 0.0), 0.05)
        assert coef.dtype == jnp.float64
        np.testing.assert_allclose(coef, wanted, rtol=1e-12)
        np.testing.assert_allclose(entropy_coef, wanted_entropy, rtol=1e-10, atol=1e-12)


def test_a_smooth_rule_has_a_gradient_and_vmaps():
    rule = functools.partial(controllers.adaptive_kl_coef, **KL)
    np.testing.assert_allclose(jax.grad(rule)(0.5, 6.6), 1.005, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(rule, 1)(0.5, 6.6), 0.5 / 6.0 / 20, rtol=1e-5)
    swept = jax.vmap(rule)(jnp.array([0.1, 0.2]), jnp.array([60.0, 0.0]))
    np.testing.assert_allclose(swept, [0.101, 0.198], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target": 0.0}, "target is 0"),
        ({"horizon": -1}, "horizon is -1"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 50_000}, "num_samples is 50000 with a horizon of 10000"),
    ],
)
def test_kl_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        controllers.adaptive_kl_coef(0.1, 1.0, **(KL | settings))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target": -0.2}, "target is -0.2"),
        ({"step": 0.0}, "step is 0"),
        ({"low": 0.5, "high": 0.1}, "low is 0.5 and high 0.1"),
    ],
)
def test_entropy_settings_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        controllers.adaptive_entropy_coef(0.1, 1.0, **(ENTROPY | settings))


def test_arguments_are_scalar_floats():
    for coef, kl in ((1, 1.0), (1.0, jnp.zeros([2]))):
        with pytest.raises(AssertionError):
            controllers.adaptive_kl_coef(coef, kl, **KL)
    with pytest.raises(ValueError, match="target is 0"):
        controllers.active_entropy_coef(0.1, 1.0, target=0)
