import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.ops import log_probs


def inputs(seed=0, count=23, vocab=37):
    rng = np.random.default_rng(seed)
    hidden = jnp.array(rng.normal(size=[count, 11]), jnp.float32)
    head = jnp.array(rng.normal(size=[11, vocab]), jnp.float32)
    return hidden, head, jnp.array(rng.integers(vocab, size=[count]))


def test_token_log_probs_and_entropy_equal_a_loop(transform):
    hidden, head, tokens = inputs()
    logits = np.asarray(hidden @ head, np.float64)
    found = transform(log_probs.token_log_probs)(hidden @ head, tokens)
    entropies = transform(log_probs.entropy)(hidden @ head)
    for row, token, log_prob, entropy in zip(logits, tokens, found, entropies, strict=True):
        probs = np.exp(row) / np.exp(row).sum()
        np.testing.assert_allclose(log_prob, np.log(probs[token]), atol=1e-5)
        np.testing.assert_allclose(entropy, -(probs * np.log(probs)).sum(), atol=1e-5)


def test_outside_the_support_nothing_is_nan():
    logits = jnp.array([[0.0, -jnp.inf, 0.0]])
    np.testing.assert_allclose(log_probs.entropy(logits), [np.log(2)], rtol=1e-6)
    assert log_probs.token_log_probs(logits, jnp.array([1])).tolist() == [-np.inf]


@pytest.mark.parametrize("chunk_tokens", [1, 4, 22, 23, 1000])
def test_chunked_is_the_whole_head(chunk_tokens):
    hidden, head, tokens = inputs()

    def whole(hidden, head):
        return log_probs.token_log_probs(hidden @ head, tokens).sum()

    def chunked(hidden, head):
        found, _ = log_probs.chunked(lambda h: h @ head, hidden, tokens, chunk_tokens=chunk_tokens)
        return found.sum()

    np.testing.assert_allclose(chunked(hidden, head), whole(hidden, head), rtol=1e-6)
    for ours, wanted in zip(
        jax.grad(chunked, (0, 1))(hidden, head), jax.grad(whole, (0, 1))(hidden, head), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
    _, entropies = log_probs.chunked(
        lambda h: h @ head, hidden, tokens, chunk_tokens=chunk_tokens, with_entropy=True
    )
    np.testing.assert_allclose(entropies, log_probs.entropy(hidden @ head), atol=1e-5)
