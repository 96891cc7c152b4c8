"""How evenly tokens fall on experts, against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.ops.routing import load_balance

M, P, G, T, E, K = 2, 3, 2, 5, 6, 2


def arrays(seed=0):
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.ones(E), size=(M, P, G, T))
    chosen = np.argsort(-scores, axis=-1)[..., :K]
    lengths = random.integers(0, T + 1, size=(P, G))
    lengths[0] = [0, T]
    mask = np.arange(T) < lengths[..., None]
    return scores, chosen, mask


def looped(scores, chosen, mask):
    found = np.zeros((P, G))
    for p, g in np.ndindex(P, G):
        tokens = np.flatnonzero(mask[p, g])
        for m in range(M):
            for e in range(E):
                if len(tokens):
                    times = sum(e in chosen[m, p, g, t] for t in tokens) / K / len(tokens)
                    share = sum(scores[m, p, g, t, e] for t in tokens) / len(tokens)
                    found[p, g] += E * times * share / M
    return found


def test_by_hand():
    scores, chosen, mask = arrays()
    found = load_balance(jnp.array(scores, jnp.float32), jnp.array(chosen), jnp.array(mask))
    np.testing.assert_allclose(found, looped(scores, chosen, mask), rtol=1e-5)
    assert float(found[0, 0]) == 0


def test_bounds():
    even = jnp.full([1, 1, 1, E, E], 1 / E)
    spread = jnp.arange(E)[None, None, None, :, None]
    np.testing.assert_allclose(load_balance(even, spread, jnp.ones([1, 1, E], bool)), 1)
    one = jnp.zeros([1, 1, 1, E, E]).at[..., 2].set(1.0)
    same = jnp.full([1, 1, 1, E, 1], 2)
    np.testing.assert_allclose(load_balance(one, same, jnp.ones([1, 1, E], bool)), E)


def test_masked_is_deleted():
    scores, chosen, mask = (jnp.array(x) for x in arrays())
    other = jnp.where(mask[None, ..., None], scores, 7.0)
    elsewhere = jnp.where(mask[None, ..., None], chosen, 3)
    np.testing.assert_array_equal(
        load_balance(other, elsewhere, mask), load_balance(scores, chosen, mask)
    )


def test_the_gradient_leads_away_from_experts_that_were_chosen_often():
    scores, chosen, mask = (jnp.array(x, dtype=None) for x in arrays())
    gradient = jax.grad(lambda s: load_balance(s, chosen, mask).sum())(scores.astype(jnp.float32))
    often = np.asarray(jax.nn.one_hot(chosen, E).sum(axis=-2))
    counts = (often * np.asarray(mask)[None, ..., None]).sum(axis=3)
    at = np.asarray(gradient)[:, :, :, 0]
    for m, p, g in np.ndindex(M, P, G):
        if mask[p, g, 0]:
            length = int(mask[p, g].sum())
            np.testing.assert_allclose(
                at[m, p, g], E * counts[m, p, g] / K / length / length / M, rtol=1e-5
            )
        else:
            assert not at[m, p, g].any()
