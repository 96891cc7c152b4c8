import jax
import jax.numpy as jnp
import numpy as np
import pytest
from token_batches import compiled, random_tokens, value_and_slopes

from grpo_jax.ops import ratios, surrogates

RATIOS = [ratios.token, ratios.sequence, ratios.sequence_token, ratios.sequence_product]
every_ratio = pytest.mark.parametrize("ratio", RATIOS, ids=lambda f: f.__name__)


def loops(log_probs, old, mask):
    """The four, as loops over completions: [..., T] or [..., 1]."""
    shape = mask.shape
    token, gspo = np.zeros(shape), np.zeros(shape)
    mean, total = np.zeros((*shape[:-1], 1)), np.zeros((*shape[:-1], 1))
    for row in np.ndindex(shape[:-1]):
        deltas = []
        for t in range(shape[-1]):
            if mask[row][t]:
                token[row][t] = float(log_probs[row][t]) - float(old[row][t])
                deltas.append(token[row][t])
        total[row] = sum(deltas)
        mean[row] = sum(deltas) / max(len(deltas), 1)
        gspo[row] = np.where(mask[row], mean[row], 0.0)
    return dict(zip(RATIOS, (token, mean, gspo, total), strict=True))


@every_ratio
def test_ratios_equal_a_loop(ratio, precision):
    dtype, close, transform = precision
    log_probs, old, _, mask = random_tokens(0, dtype)
    found, slopes = transform(lambda x: value_and_slopes(lambda y: ratio(y, old, mask), x))(
        jnp.array(log_probs)
    )
    assert found.dtype == slopes.dtype == dtype
    np.testing.assert_allclose(found, loops(log_probs, old, mask)[ratio], rtol=close, atol=close)
    length = mask.sum(axis=-1, keepdims=True)
    slope = 1 / np.maximum(length, 1) if ratio is ratios.sequence else 1.0
    np.testing.assert_allclose(slopes, np.where(mask, slope, 0.0), rtol=close)


@every_ratio
def test_ratios_ignore_what_the_mask_hides(ratio):
    log_probs, old, _, mask = random_tokens(1, "float32")

    @jax.jit
    def both(log_probs, old):
        return value_and_slopes(lambda x: jnp.exp(ratio(x, old, mask)), log_probs)

    found, slopes = both(np.where(mask, log_probs, np.nan), np.where(mask, old, np.inf))
    clean, wanted = both(log_probs, old)
    np.testing.assert_array_equal(found, clean)
    np.testing.assert_array_equal(slopes, wanted)
    assert not np.any(np.asarray(slopes)[~mask])


@every_ratio
def test_padding_and_leading_axes_change_nothing(ratio):
    log_probs, old, _, mask = random_tokens(2, "float32")
    found = ratio(log_probs, old, mask)
    wider = [np.pad(x, [(0, 0), (0, 0), (0, 3)]) for x in (log_probs, old, mask)]
    padded = np.asarray(jax.jit(ratio)(*wider))
    np.testing.assert_allclose(padded[..., : found.shape[-1]], found, rtol=1e-6)
    assert not np.any(padded[..., found.shape[-1] :])
    rows = jax.jit(jax.vmap(ratio))(log_probs, old, mask)
    np.testing.assert_allclose(rows, found, rtol=1e-6)


def test_impossible_tokens():
    inf = np.inf
    log_probs = np.float32([[-inf, -1.0], [-inf, -1.0], [-1.0, -1.0], [-inf, -1.0]])
    old = np.float32([[-inf, -2.0], [-1.0, -2.0], [-inf, -2.0], [-1.0, -inf]])
    mask = np.ones([4, 2], bool)
    wanted = {
        ratios.token: [[0.0, 1.0], [-inf, 1.0], [inf, 1.0], [-inf, inf]],
        ratios.sequence: [[0.5], [-inf], [inf], [-inf]],
        ratios.sequence_token: [[0.5] * 2, [-inf] * 2, [inf] * 2, [-inf] * 2],
        ratios.sequence_product: [[1.0], [-inf], [inf], [-inf]],
    }

    @jax.jit
    def run(log_probs):
        return [
            (
                f(log_probs, old, mask),
                value_and_slopes(lambda x, f=f: ratios.ratio(f(x, old, mask)), log_probs),
            )
            for f in wanted
        ]

    for (found, (_, slopes)), values in zip(run(log_probs), wanted.values(), strict=True):
        assert found.tolist() == values
        assert np.isfinite(slopes).all()
        assert not slopes[0, 0] or found[0, 0] == 0.5  # of two impossibles only through others
        assert not slopes[1, 0]  # a ratio of 0, of the token or of the whole sequence


def test_gspo_token_has_the_gradient_of_gspo():
    """Equal advantages of a completion's tokens: sums over tokens by 1/L are the sequence's."""
    log_probs, old, advantages, mask = random_tokens(3, "float32")

    def by_sequence(x, old, advantages, mask):
        return surrogates.clipped(ratios.sequence(x, old, mask), advantages)

    def by_token(x, old, advantages, mask):
        losses = surrogates.clipped(ratios.sequence_token(x, old, mask), advantages)
        losses /= jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
        return jnp.sum(jnp.where(mask, losses, 0.0), axis=-1, keepdims=True)

    found, slopes = compiled(by_token)(log_probs, old, advantages, mask)
    wanted, wanted_slopes = compiled(by_sequence)(log_probs, old, advantages, mask)
    counts = mask.any(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, np.where(counts, wanted, 0.0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes, wanted_slopes, rtol=1e-5, atol=1e-7)


def test_ratio_is_capped_and_has_no_gradient_beyond(transform):
    at = np.float32([0.0, np.log(2.0), -np.inf, 79.0, 81.0, 1e4, np.inf])
    found, slopes = transform(lambda x: value_and_slopes(ratios.ratio, x))(at)
    np.testing.assert_allclose(found, np.exp([*at[:4], 80, 80, 80]), rtol=1e-5)
    np.testing.assert_allclose(slopes, [*np.exp(at[:4]), 0, 0, 0], rtol=1e-5)


@every_ratio
def test_types_and_shapes_are_checked(ratio):
    x, mask = jnp.zeros([2, 3]), jnp.ones([2, 3], bool)
    with pytest.raises(AssertionError):
        ratio(x, x, x)
    with pytest.raises(AssertionError):
        ratio(x, x[:1], mask)
    assert ratio(x.astype(jnp.bfloat16), x, mask).dtype == jnp.float32
