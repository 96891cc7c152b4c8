import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import log_probs as oracles

from grpo_jax.ops import draws, log_probs, support

INF = jnp.inf


@pytest.mark.parametrize("size", [1, 7, 8, 9, 37])
def test_packed_and_unpacked_is_the_same(size, transform):
    kept = jnp.array(np.random.default_rng(size).random([2, 3, size]) < 0.5)
    packed = transform(support.pack)(kept)
    assert packed.shape == (2, 3, -(-size // 8))
    assert packed.dtype == jnp.uint8
    found = transform(functools.partial(support.unpack, size=size))(packed)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, kept)


def test_bits_beyond_the_vocabulary_are_zero():
    assert support.pack(jnp.ones([9], bool)).tolist() == [255, 128]


@pytest.mark.parametrize("size", [0, 8, 17])
def test_another_vocabulary_is_refused(size):
    packed = support.pack(jnp.ones([9], bool))
    with pytest.raises(ValueError, match=f"size is {size}; a support of 2 bytes holds 9 to 16"):
        support.unpack(packed, size=size)


def case(seed, count=17, vocab=9):
    """Logits some of which are -inf, supports with an empty and a whole one, tokens in and out."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=[count, vocab]) * 2
    kept = rng.random([count, vocab]) < 0.4
    kept[0], kept[1] = False, True
    tokens = rng.integers(vocab, size=count)
    logits[5:, 3] = -np.inf
    tokens[tokens == 3] = 4
    return logits, kept, tokens


def restricted(logits, kept, tokens):
    """All other tokens deleted, the rest renormalised: probabilities [count, V]."""
    return np.array(
        [
            oracles.probabilities(row, sorted({*np.flatnonzero(keep), int(token)}))
            for row, keep, token in zip(logits, kept, tokens, strict=True)
        ]
    )


def renormalised(logits, kept, tokens):
    return log_probs.token_log_probs(logits, tokens) - support.log_mass(logits, kept, tokens)


def test_log_mass_is_the_sum_of_the_kept_probabilities(transform):
    logits, kept, tokens = case(0)
    wanted = []
    for row, keep, token in zip(logits, kept, tokens, strict=True):
        probs = oracles.probabilities(row)
        wanted.append(np.log(sum(probs[v] for v in range(9) if keep[v] or v == token)))
    arrays = jnp.array(logits, jnp.float32), jnp.array(kept), jnp.array(tokens)
    np.testing.assert_allclose(transform(support.log_mass)(*arrays), wanted, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(support.log_mass))(*arrays), wanted, atol=1e-5)


@pytest.mark.parametrize("x64", [False, True])
def test_renormalised_is_a_softmax_without_the_others(x64):
    logits, kept, tokens = case(1)
    probs = restricted(logits, kept, tokens)
    # d log p(token) / d z_v = 1[v = token] - p_v, over the support
    slopes = (np.arange(9) == tokens[:, None]) - probs
    tolerance = 1e-12 if x64 else 1e-5
    with jax.enable_x64(x64):
        fixed = jnp.array(kept), jnp.array(tokens)

        @jax.jit
        def both(z):
            found, pull = jax.vjp(lambda z: renormalised(z, *fixed), z)
            return found, *pull(jnp.ones_like(found))

        found, gradient = both(jnp.array(logits, jnp.float64 if x64 else jnp.float32))
    assert found.dtype == (np.float64 if x64 else np.float32)
    assert (np.asarray(found) <= tolerance).all()
    np.testing.assert_allclose(found, np.log(probs[np.arange(17), tokens]), atol=tolerance)
    np.testing.assert_allclose(gradient, slopes, atol=tolerance)


def test_the_whole_vocabulary_has_a_log_mass_of_exactly_zero():
    logits, _, tokens = case(2)
    logits, whole = jnp.array(logits, jnp.float32), jnp.ones(logits.shape, bool)

    @jax.jit
    def both(z):
        found, pull = jax.vjp(lambda z: support.log_mass(z, whole, jnp.array(tokens)), z)
        return found, *pull(jnp.ones_like(found))

    found, slopes = both(logits)
    assert found.tolist() == [0.0] * 17
    np.testing.assert_allclose(slopes, np.zeros([17, 9]), atol=1e-7)


def test_a_token_outside_its_support_is_let_in():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    alone = support.log_mass(logits, jnp.zeros([1, 3], bool), jnp.array([2]))
    np.testing.assert_allclose(alone, [np.log(0.2)], rtol=1e-6)
    one_more = support.log_mass(logits, jnp.array([[True, False, False]]), jnp.array([2]))
    np.testing.assert_allclose(one_more, [np.log(0.7)], rtol=1e-6)


def test_the_edges_of_a_log_mass_are_not_nan():
    logits = jnp.array([[-INF, 0.0, -INF], [1e4, -1e4, 0.0], [-INF, 0.0, 0.0]])
    kept = jnp.array([[True, False, True], [False, True, False], [False, True, False]])
    tokens = jnp.array([2, 1, 0])

    def f(z):
        found = support.log_mass(z, kept, tokens)
        return found.sum(), found

    slopes, found = jax.jit(jax.grad(f, has_aux=True))(logits)
    np.testing.assert_allclose(found, [0.0, -2e4, np.log(0.5)], rtol=1e-6)
    np.testing.assert_allclose(slopes, [[0, 0, 0], [-1, 1, 0], [0, 0.5, -0.5]], atol=1e-6)
    assert renormalised(logits, kept, tokens).tolist()[0] == -INF


@jax.jit
def sample_and_score(logits):
    """The sampler's own log-probability, and that of training over the support it kept."""
    cut = draws.keep_support(logits, top_p=0.7)
    tokens, _ = draws.inverse_cdf(cut, jnp.linspace(0.0, 0.99, 8))
    packed = support.pack(jnp.isfinite(cut))
    kept = support.unpack(packed, size=21)
    return log_probs.token_log_probs(cut, tokens), renormalised(logits, kept, tokens), kept


def test_what_the_sampler_drew_is_what_training_sees():
    logits = np.random.default_rng(3).normal(size=[8, 21]).astype(np.float32) * 3
    drawn, found, kept = sample_and_score(logits)
    assert not np.all(kept)
    np.testing.assert_allclose(found, drawn, atol=1e-6)


def test_shapes_and_types_are_checked():
    logits, kept, tokens = jnp.zeros([2, 3]), jnp.ones([2, 3], bool), jnp.zeros([2], int)
    for call in (
        lambda: support.pack(logits),
        lambda: support.unpack(kept, size=3),
        lambda: support.log_mass(logits, support.pack(kept), tokens),
        lambda: support.log_mass(logits, kept[:1], tokens),
        lambda: support.log_mass(logits, kept, tokens[:1]),
        lambda: support.log_mass(logits, kept, tokens.astype(float)),
    ):
        with pytest.raises(AssertionError):
            call()
