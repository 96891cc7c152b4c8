import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numeric as oracles

from grpo_jax.ops import draws


def random_logits(seed, vocab, rows=4):
    return jax.random.normal(jax.random.key(seed), [rows, vocab]) * 3


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("vocab", [3, 300])
def test_top_p_keeps_the_smallest_nucleus(top_p, vocab, transform):
    logits = random_logits(0, vocab)
    kept = transform(lambda x: draws.keep_support(x, top_p=top_p))(logits)
    for row, probs in zip(kept, jax.nn.softmax(logits), strict=True):
        assert set(np.flatnonzero(np.isfinite(row))) == oracles.nucleus(probs.tolist(), top_p)


def test_top_k_min_p_and_their_order():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    assert np.isfinite(draws.keep_support(logits, top_k=2))[0].tolist() == [1, 1, 0, 0]
    assert np.isfinite(draws.keep_support(logits, min_p=0.4))[0].tolist() == [1, 1, 1, 0]
    # Of the two kept by top-k the first holds 4/7 of the probability: enough for top-p 0.5.
    assert np.isfinite(draws.keep_support(logits, top_k=2, top_p=0.5))[0].tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(draws.keep_support(logits), logits)


def test_ties_are_kept_together():
    logits = jnp.zeros([1, 5])
    assert np.isfinite(draws.keep_support(logits, top_k=2)).all()
    assert np.isfinite(draws.keep_support(logits, top_p=0.3)).all()


@pytest.mark.parametrize("vocab", [1, 2, 255, 256, 257, 1000])
def test_inverse_cdf_equals_a_cumulative_sum(vocab, transform):
    logits = random_logits(1, vocab, rows=50)
    uniform = jax.random.uniform(jax.random.key(2), [50])
    found, log_probs = transform(draws.inverse_cdf)(logits, uniform)
    wide = np.asarray(logits, np.float64)
    probs = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(log_probs, np.log(probs[np.arange(50), found]), atol=2e-6)
    cumulative = np.cumsum(probs, axis=1)
    for token, row, u in zip(found, cumulative, uniform, strict=True):
        below = row[token - 1] if token else 0.0
        assert below - 1e-5 <= u <= row[token] + 1e-5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-23, 1 - 2**-24])
def test_no_token_outside_the_support_is_drawn(uniform):
    logits = jnp.full([3, 700], -jnp.inf)
    logits = logits.at[0, 300].set(0.0).at[1, 0].set(-50.0).at[2, 699].set(80.0)
    logits = logits.at[1, 256].set(-50.0)
    found, log_probs = draws.inverse_cdf(logits, jnp.full([3], uniform))
    assert np.isfinite(logits[jnp.arange(3), found]).all()
    # In the second row two tokens share the probability.
    np.testing.assert_allclose(log_probs, [0.0, -np.log(2), 0.0], atol=1e-6)


def test_rows_are_drawn_each_by_itself(transform):
    logits = random_logits(5, 300, rows=12)
    uniform = jax.random.uniform(jax.random.key(6), [12])
    alone = [draws.inverse_cdf(row, u) for row, u in zip(logits, uniform, strict=True)]
    together = transform(draws.inverse_cdf)(logits.reshape(3, 2, 2, 300), uniform.reshape(3, 2, 2))
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert found.shape == (3, 2, 2)
        np.testing.assert_allclose(found.reshape(-1), np.array(expected), atol=1e-6)


def test_frequencies_are_the_probabilities():
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    count = 20_000
    uniform = jax.random.uniform(jax.random.key(3), [count])
    found, _ = draws.inverse_cdf(jnp.broadcast_to(jnp.log(probs), [count, 4]), uniform)
    seen = np.bincount(found, minlength=4) / count
    # Four standard errors of a frequency.
    assert (np.abs(seen - probs) < 4 * np.sqrt(probs * (1 - probs) / count)).all()


def test_logits_that_are_not_numbers_give_a_token_of_the_vocabulary():
    found, _ = draws.inverse_cdf(jnp.full([2, 300], jnp.nan), jnp.array([0.1, 0.9]))
    assert (found < 300).all()
