"""R5. How far a token's probability can go before the loss stops pushing it.

Claim: DAPO, arXiv:2503.14476, section 3.1: with ε = 0.2 a token of probability .9 rises freely, and
one of .01 stops at .012. Measured for each trust region with the setting of its paper: the last
probability at which the slope in log π still has the sign of the advantage (`reach`), found by
bisection on that slope. It is a bound on where the loss pushes, not on where one large step lands.
SAPO has no such point: its slope is -ρ A sech²(τ (ρ - 1)/2), never 0, and what is found is where it
is half of the unclipped one. Nor has CISPO, whose slope -min(ρ, cap) A stops growing at the cap.

And the four signs: the slope must vanish exactly where A has already pushed ρ out of the interval.
With `max` in place of `min` for A < 0 (as one JAX library has it) two of the four are inverted.

Falsified by: a point off by more than 1e-8 from its closed form; or another number of inverted
cases than two.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import EXACT

from grpo_jax import objectives
from grpo_jax.objectives import choices
from grpo_jax.ops import ratios, surrogates

OLD = np.array([0.01, 0.1, 0.5, 0.9])
SURROGATES = {
    "clip": objectives.grpo().surrogate,
    "clip-higher": objectives.dapo().surrogate,
    "DPPO-TV": objectives.dppo_tv().surrogate,
    "SAPO": objectives.sapo().surrogate,
    "CISPO": objectives.cispo().surrogate,
    "no region": surrogates.importance_weighted,
}
LOW, HIGH, TV, CAP = 0.2, 0.28, 0.2, 5.0  # published settings, which the tests hold them to


def inverted(log_ratio, advantages):
    """The surrogate with `max` for A < 0, at ε = 0.2; not ours."""
    ratio = ratios.ratio(log_ratio)
    whole, bounded = ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages
    return -jnp.where(advantages >= 0, jnp.minimum(whole, bounded), jnp.maximum(whole, bounded))


@functools.cache
def slope_of(name):
    """(π, π_old, A), each [N] -> slope of the loss in log π, [N]."""
    surrogate = inverted if name == "inverted" else SURROGATES[name]

    @jax.jit
    def slope(probs, old, advantages):
        old, advantages = jnp.log(old)[:, None], advantages[:, None]
        mask = jnp.ones(old.shape, bool)

        def total(log_probs):
            given = {"log_probs": log_probs, "old_log_probs": old, "advantages": advantages}
            log_ratio = ratios.token(log_probs, old, mask)
            return choices.call(surrogate, given | {"log_ratio": log_ratio, "mask": mask}).sum()

        return jax.grad(total)(jnp.log(probs)[:, None])[:, 0]

    return slope


def reach(name, sign, *, share=0.0, old=OLD):
    """The last π from π_old towards A's side with a slope above `share` of the unclipped one.

    It is 1, or 0, where the slope never falls below.
    """
    slope, advantages = slope_of(name), np.full(len(old), float(sign))

    def pushed(probs):
        found = np.asarray(slope(probs, old, advantages))
        return -sign * found > share * probs / old

    limit = np.full(len(old), 1.0 if sign > 0 else 1e-12)
    inside, outside = old.copy(), limit.copy()
    assert pushed(inside).all()
    free = pushed(limit)
    for _ in range(52):
        middle = (inside + outside) / 2
        kept = pushed(middle)
        inside, outside = np.where(kept, middle, inside), np.where(kept, outside, middle)
    return np.where(free, np.round(limit), inside)


@functools.cache
def table():
    """{trust region: (highest for A > 0, lowest for A < 0) of each of OLD}."""
    found = {
        name: (reach(name, 1), reach(name, -1))
        for name in ("clip", "clip-higher", "DPPO-TV", "inverted", "CISPO", "no region")
    }
    found["SAPO, half"] = reach("SAPO", 1, share=0.5), reach("SAPO", -1, share=0.5)
    found["CISPO, at the cap"] = reach("CISPO", 1, share=1 - 1e-12), found["CISPO"][1]
    return found


CLOSED = {
    "clip": ((1 + LOW) * OLD, (1 - LOW) * OLD),
    "clip-higher": ((1 + HIGH) * OLD, (1 - LOW) * OLD),
    "DPPO-TV": (OLD + TV, OLD - TV),
    "inverted": ((1 + LOW) * OLD, 0 * OLD),
    "CISPO": (1 + 0 * OLD, 0 * OLD),
    "no region": (1 + 0 * OLD, 0 * OLD),
    # The gate is 1/2 where cosh(τ (ρ - 1)/2) = √2; for A < 0 it is above .76 down to ρ = 0.
    "SAPO, half": ((1 + 2 * math.acosh(math.sqrt(2))) * OLD, 0 * OLD),
    "CISPO, at the cap": (CAP * OLD, 0 * OLD),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_reach_of_each_trust_region(name):
    for found, wanted in zip(table()[name], CLOSED[name], strict=True):
        np.testing.assert_allclose(found, np.clip(wanted, 0, 1), rtol=0, atol=EXACT)


def test_the_papers_example():
    """A likely token is free, a rare one is not, and clip-higher gives the rare one 7 % more."""
    highest = {name: up for name, (up, _) in table().items()}
    assert highest["clip"][[0, 3]].round(6).tolist() == [0.012, 1.0]
    assert highest["clip-higher"][[0, 3]].round(6).tolist() == [0.0128, 1.0]
    assert highest["DPPO-TV"][[0, 3]].round(6).tolist() == [0.21, 1.0]


RATIOS = np.array([0.0, 0.01, 0.4, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0, 4.9, 5.1, 20.0, 30.0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("name", "factor"),
    {
        "SAPO": lambda r, sign: r / np.cosh((1.0 if sign > 0 else 1.05) * (r - 1) / 2) ** 2,
        "CISPO": lambda r, sign: np.minimum(r, CAP),
    }.items(),
)
def test_soft_slopes_are_never_flat(name, factor, sign):
    """Of tokens with π_old = .03: -A times the factor, above 0 for every ρ > 0."""
    ratio = np.maximum(RATIOS, 1e-6)
    old = np.full(len(ratio), 0.03)
    found = slope_of(name)(ratio * old, old, np.full(len(ratio), sign))
    np.testing.assert_allclose(found, -sign * factor(ratio, sign), rtol=EXACT, atol=EXACT)
    assert (-sign * np.asarray(found) > 0).all()


# A, ρ -> is there a slope? It is there unless the advantage has pushed ρ out already.
CASES = {(1.0, 1.5): False, (1.0, 0.5): True, (-1.0, 0.5): False, (-1.0, 1.5): True}


def slopes_of_cases(name):
    advantages, ratio = np.array(list(CASES)).T
    old = np.full(len(CASES), 0.1)
    return np.asarray(slope_of(name)(ratio * old, old, advantages))


def test_the_four_signs_of_ppos_clip():
    wanted = [-ratio * a if kept else 0 for (a, ratio), kept in CASES.items()]
    np.testing.assert_allclose(slopes_of_cases("clip"), wanted, rtol=0, atol=EXACT)
    np.testing.assert_allclose(slopes_of_cases("clip-higher"), wanted, rtol=0, atol=EXACT)


def test_max_for_bad_answers_inverts_two_of_the_four():
    ours, theirs = slopes_of_cases("clip") != 0, slopes_of_cases("inverted") != 0
    assert (ours != theirs).tolist() == [False, False, True, True]
    # So a bad token is pushed down without end, and one that has become likelier is let be.
    assert table()["inverted"][1].tolist() == [0, 0, 0, 0]
