"""Mixtures of experts against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.config import Experts
from grpo_jax.models.experts import mixture, route

N, E, D, F = 9, 6, 5, 7


def logits(seed=0):
    return 2 * np.random.default_rng(seed).normal(size=(N, E)).astype(np.float32)


def by_hand(scores, wanted, experts):
    """A loop over tokens and groups."""
    rows = []
    for score, want in zip(scores, wanted, strict=True):
        groups = np.array_split(np.arange(E), experts.groups)
        counted = 2 if experts.by_best_two else 1
        rank = [np.sort(want[group])[-counted:].sum() for group in groups]
        best = sorted(range(experts.groups), key=lambda g: -rank[g])[: experts.groups_taken]
        allowed = [e for g in best for e in groups[g]]
        chosen = sorted(allowed, key=lambda e: -want[e])[: experts.taken]
        weight = score[chosen]
        weight = weight / weight.sum() if experts.normalised else weight
        rows.append(dict(zip(chosen, weight * experts.scale, strict=True)))
    return rows


@pytest.mark.parametrize(
    "experts",
    [
        Experts(E, 2, F),
        Experts(E, 1, F, normalised=False),
        Experts(E, 2, F, normalised=False, scale=3.0, groups=3, groups_taken=2),
        Experts(E, 3, F, sigmoid=True, groups=2, groups_taken=1, by_best_two=True, corrected=True),
        Experts(E, 2, F, sigmoid=True, groups=3, groups_taken=2, by_best_two=True, corrected=True),
    ],
    ids=str,
)
def test_route_by_hand(experts):
    z = logits()
    scores = 1 / (1 + np.exp(-z)) if experts.sigmoid else np.array(jax.nn.softmax(z))
    correction = np.linspace(-0.4, 0.4, E).astype(np.float32) if experts.corrected else None
    wanted = scores if correction is None else scores + correction
    weights, (_, chosen) = route(jnp.array(z), experts, correction)
    for found, which, expected in zip(
        np.asarray(weights), np.asarray(chosen), by_hand(scores, wanted, experts), strict=True
    ):
        assert dict(zip(which.tolist(), found, strict=True)) == pytest.approx(expected, rel=1e-5)


def test_experts_on_record_are_taken_again():
    experts, record = Experts(E, 2, F), jnp.array([[0, 5]] * N)
    weights, (_, chosen) = route(jnp.array(logits()), experts, chosen=record)
    np.testing.assert_array_equal(chosen, record)
    probs = np.asarray(jax.nn.softmax(logits()))[:, [0, 5]]
    np.testing.assert_allclose(weights, probs / probs.sum(axis=1, keepdims=True), rtol=1e-5)


def test_routes_of_experts_that_do_not_exist():
    with pytest.raises(ValueError, match="7 of 6"):
        Experts(E, 7, F)
    with pytest.raises(ValueError, match="equal size"):
        Experts(E, 2, F, groups=4)


def arrays(seed=1):
    random = np.random.default_rng(seed)
    shapes = ((N, D), (E, F, D), (E, F, D), (E, D, F))
    return [jnp.array(random.normal(size=shape), jnp.float32) for shape in shapes]


def looped(x, gate, up, down, weights, chosen):
    rows = []
    for n in range(N):
        out = jnp.zeros(D)
        for weight, e in zip(weights[n], chosen[n], strict=True):
            inner = jax.nn.silu(gate[e] @ x[n]) * (up[e] @ x[n])
            out += weight * (down[e] @ inner)
        rows.append(out)
    return jnp.stack(rows)


def test_mixture_by_hand_in_value_and_gradient():
    weights, (_, chosen) = route(jnp.array(logits()), Experts(E, 3, F))
    chosen = jnp.where(chosen == 4, 2, chosen)  # one without a token, one taken twice

    def value(function):
        return lambda *args: (function(*args, chosen) ** 2).sum()

    args = (*arrays(), weights)
    numbers = tuple(range(len(args)))
    found = jax.value_and_grad(value(mixture), numbers)(*args)
    wanted = jax.value_and_grad(value(looped), numbers)(*args)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for one, other in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
