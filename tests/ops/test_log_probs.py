import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import log_probs as oracles
from oracles.numeric import slope

from grpo_jax.ops import log_probs
from grpo_jax.ops import support as supports

INF = jnp.inf


def inputs(seed=0, count=23, vocab=37):
    rng = np.random.default_rng(seed)
    hidden = jnp.array(rng.normal(size=[count, 11]), jnp.float32)
    head = jnp.array(rng.normal(size=[11, vocab]), jnp.float32)
    return hidden, head, jnp.array(rng.integers(vocab, size=[count]))


STATS = {"entropy": oracles.entropy, "sum_sq_probs": oracles.sum_sq_probs}
every_stat = pytest.mark.parametrize("name", STATS)


def test_token_log_probs_equal_a_loop(transform):
    hidden, head, tokens = inputs()
    logits = np.asarray(hidden @ head, np.float64)
    found = transform(log_probs.token_log_probs)(hidden @ head, tokens)
    wanted = [np.log(oracles.probabilities(row)[v]) for row, v in zip(logits, tokens, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@every_stat
def test_stats_equal_a_loop(name, transform):
    hidden, head, _ = inputs()
    logits = hidden @ head
    found = transform(getattr(log_probs, name))(logits)
    assert found.dtype == jnp.float32
    wanted = [STATS[name](row) for row in np.asarray(logits, np.float64)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    mapped = jax.jit(jax.vmap(getattr(log_probs, name)))(logits)
    np.testing.assert_allclose(mapped, wanted, atol=1e-5)


@every_stat
def test_stats_and_their_slopes_in_float64(name, transform):
    logits = np.random.default_rng(1).normal(size=[3, 5]) * 2
    with jax.enable_x64(True):
        found = transform(getattr(log_probs, name))(jnp.array(logits))
        slopes = jax.jit(jax.grad(lambda z: getattr(log_probs, name)(z).sum()))(jnp.array(logits))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [STATS[name](row) for row in logits], atol=1e-12)
    probs = np.array([oracles.probabilities(row) for row in logits])
    if name == "entropy":
        closed = -probs * (np.log(probs) + np.array([[oracles.entropy(row)] for row in logits]))
    else:
        closed = 2 * probs * (probs - (probs**2).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(slopes, closed, atol=1e-12)
    by_loop = [[slope(STATS[name], row, v) for v in range(5)] for row in logits]
    np.testing.assert_allclose(slopes, by_loop, atol=1e-8)


@every_stat
def test_stats_do_not_see_a_shift_or_the_order(name):
    stat = jax.jit(getattr(log_probs, name))
    logits = np.random.default_rng(3).integers(-9, 9, size=[23, 37]).astype(np.float32) / 2
    found = stat(logits)
    np.testing.assert_allclose(stat(logits[:, ::-1]), found, atol=1e-5)
    np.testing.assert_allclose(stat(logits + 1000), found, atol=1e-6)  # exact in float32


def test_outside_the_support_nothing_is_nan():
    logits = jnp.array([[0.0, -INF, 0.0]])
    np.testing.assert_allclose(log_probs.entropy(logits), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(log_probs.sum_sq_probs(logits), [0.5], rtol=1e-6)
    assert log_probs.token_log_probs(logits, jnp.array([1])).tolist() == [-INF]


@every_stat
@pytest.mark.parametrize(
    ("row", "kept"),
    [([1.0, -INF, 0.0, -INF], [0, 2]), ([0.0, -INF], [0]), ([1e4, 0.0, -1e4, 9999.0], [0, 3])],
)
def test_slopes_outside_the_support_are_zero(name, row, kept):
    slope_of = jax.jit(jax.grad(getattr(log_probs, name)))
    slopes = slope_of(jnp.array(row))
    inside = slope_of(jnp.array([row[v] for v in kept]))
    np.testing.assert_allclose(slopes[jnp.array(kept)], inside, atol=1e-7)
    outside = [float(slopes[v]) for v in range(len(row)) if v not in kept]
    assert outside == [0.0] * len(outside)


def test_a_certain_token_has_no_entropy():
    logits = jnp.array([[1e4, 0.0, -1e4], [0.0, -INF, -INF]])
    assert log_probs.entropy(logits).tolist() == [0.0, 0.0]
    assert log_probs.sum_sq_probs(logits).tolist() == [1.0, 1.0]


def random_support(count=23, vocab=37):
    kept = jnp.array(np.random.default_rng(9).random([count, vocab]) < 0.3)
    return kept.at[0].set(False).at[1].set(True)


def said(stats):
    """What there is of it."""
    return [x for x in stats if x is not None]


def value_and_slopes(stats):
    """The stats, and the slopes of a sum in which each part has factors of its own."""

    def total(hidden, head):
        found = stats(hidden, head)
        factors = np.random.default_rng(2).normal(size=(4, 23)).astype(np.float32)
        return sum((f * x).sum() for f, x in zip(factors, said(found), strict=True)), found

    return jax.jit(jax.grad(total, (0, 1), has_aux=True))


@pytest.fixture(scope="module")
def whole_head():
    hidden, head, tokens = inputs()

    def stats(hidden, head):
        logits = hidden @ head
        return log_probs.TokenStats(
            log_probs.token_log_probs(logits, tokens),
            log_probs.entropy(logits),
            log_probs.sum_sq_probs(jax.lax.stop_gradient(logits)),
            supports.log_mass(logits, random_support(), tokens),
        )

    return value_and_slopes(stats)(hidden, head)


@pytest.mark.parametrize("chunk_tokens", [1, 22, 23])
def test_chunked_is_the_whole_head(chunk_tokens, whole_head):
    hidden, head, tokens = inputs()

    def stats(hidden, head):
        return log_probs.chunked(
            lambda h: h @ head,
            hidden,
            tokens,
            support=supports.pack(random_support()),
            chunk_tokens=chunk_tokens,
            with_entropy=True,
            entropy_gradient=True,
            with_sum_sq_probs=True,
        )

    slopes, found = value_and_slopes(stats)(hidden, head)
    for ours, wanted in zip(said(found), said(whole_head[1]), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
    for ours, wanted in zip(slopes, whole_head[0], strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-5)


@pytest.mark.parametrize("chunk_tokens", [4, 1000])
@pytest.mark.parametrize(
    ("field", "asked"),
    [
        (None, {}),
        ("entropy", {"with_entropy": True}),
        ("sum_sq_probs", {"with_sum_sq_probs": True}),
        ("support_log_mass", {"support": np.zeros([2, 3, 5], np.uint8)}),
    ],
)
def test_chunked_computes_what_is_asked(chunk_tokens, field, asked):
    def stats():
        head, tokens = jnp.zeros([11, 37]), jnp.zeros([2, 3], int)
        return log_probs.chunked(
            lambda h: h @ head, jnp.zeros([2, 3, 11]), tokens, chunk_tokens=chunk_tokens, **asked
        )

    shapes = {k: v.shape for k, v in jax.eval_shape(stats)._asdict().items() if v is not None}
    assert shapes == {name: (2, 3) for name in ("log_probs", field) if name}


@pytest.mark.parametrize(("num_chunks", "again"), [(1, False), (4, False), (5, True)])
def test_few_chunks_keep_their_logits_and_more_compute_them_again(num_chunks, again):
    def total(hidden):
        return log_probs.chunked(
            lambda x: x, hidden, jnp.zeros([20], int), chunk_tokens=20 // num_chunks
        ).log_probs.sum()

    program = jax.make_jaxpr(total)(jnp.zeros([20, 7]))
    assert ("checkpoint" in str(program) or "remat" in str(program)) == again


def test_what_chunked_lets_gradients_through():
    hidden, head, tokens = inputs(count=5)
    packed = supports.pack(random_support(5))

    @jax.jit
    @jax.jacrev
    def slopes(h):
        stats = log_probs.chunked(
            lambda x: x @ head,
            h,
            tokens,
            chunk_tokens=3,
            support=packed,
            with_entropy=True,
            with_sum_sq_probs=True,
        )
        return jnp.stack([x.sum() for x in said(stats)])

    flows = [bool(np.any(x)) for x in slopes(hidden)]
    assert flows == [True, False, False, True]  # and the entropy's, where asked, is tested above


def test_chunked_refuses_what_it_cannot_use():
    hidden, head, tokens = inputs(count=5)

    def chunked(**asked):
        return log_probs.chunked(lambda h: h @ head, hidden, tokens, **asked)

    with pytest.raises(ValueError, match="entropy_gradient is True without an entropy"):
        chunked(entropy_gradient=True)
    with pytest.raises(AssertionError):
        chunked(support=random_support(5))  # not packed
    with pytest.raises(AssertionError):
        chunked(support=supports.pack(random_support(4)))
    with pytest.raises(ValueError, match="size is 37; a support of 4 bytes"):
        chunked(support=supports.pack(random_support(5, 32)))


@pytest.mark.parametrize("size", [1, 3, 16, 48, 256, 768])
def test_both_in_one_pass_in_any_width_of_blocks(size, transform):
    """Sums go by blocks whose width follows from the vocabulary's factors."""
    logits = 3 * jax.random.normal(jax.random.key(size), [5, size])
    logits = logits.at[1, 1:].set(-jnp.inf).at[2].add(300.0)
    tokens = jnp.array([0, 0, size // 2, size - 1, 0])
    of_log_prob, of_entropy = jax.random.normal(jax.random.key(1), [2, 5])

    def plain(logits):
        log_probs = jax.nn.log_softmax(logits)
        finite = jnp.where(jnp.isfinite(log_probs), log_probs, 0.0)
        entropy = -(jnp.exp(log_probs) * finite).sum(axis=-1)
        return log_probs[jnp.arange(5), tokens], entropy

    def ours(logits):
        return log_probs.log_probs_and_entropy(logits, tokens)

    def weighted(f):
        def total(logits):
            log_prob, entropy = f(logits)
            return (of_log_prob * log_prob + of_entropy * entropy).sum()

        return jax.grad(total)

    for found, expected in zip(transform(ours)(logits), plain(logits), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    found, expected = (transform(weighted(f))(logits) for f in (ours, plain))
    np.testing.assert_allclose(found, jnp.where(jnp.isfinite(logits), expected, 0.0), atol=2e-5)

    def slope_along(f):
        direction = jax.random.normal(jax.random.key(2), logits.shape)
        return jax.grad(lambda x: (weighted(f)(x) * direction).sum())

    finite = jnp.where(jnp.isfinite(logits), logits, -3.0).at[2].add(-300.0)
    found, expected = (transform(slope_along(f))(finite) for f in (ours, plain))
    np.testing.assert_allclose(found, expected, atol=2e-5)
