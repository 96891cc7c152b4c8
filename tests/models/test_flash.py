"""The attention kernels against `group_attention`, in values and in all five gradients.

No GPU or TPU is needed. cuDNN's part is stood in for by plain XLA, and in one test by JAX's own
cuDNN code with only its two library calls replaced; splash attention is interpreted.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import flash, flash_cudnn, flash_splash
from grpo_jax.models.attention import group_attention

# P, G, S, K, R, H, and the prompts' lengths of L = 5; the second prompt is empty. S and L are odd,
# which cuDNN would refuse.
SHAPE, LENGTHS, WIDTH = (3, 2, 7, 2, 3, 8), (3, 0, 5), 5


def arguments(shape=SHAPE, lengths=LENGTHS, width=WIDTH, dtype=np.float32, loud=1.0):
    """Random query, keys, values, prompt_keys, prompt_values, prompt_mask."""
    p, g, s, k, _, h = shape
    random = np.random.default_rng(0)
    shapes = [shape, (p, g, k, s, h), (p, g, k, s, h), (p, k, width, h), (p, k, width, h)]
    arrays = [random.normal(size=each) for each in shapes]
    arrays[0] *= loud
    mask = np.arange(width)[None] < np.array(lengths)[:, None]
    return [jnp.array(x, dtype) for x in arrays] + [jnp.array(mask)]


def reference(query, keys, values, *prompt):
    keys, values = keys.transpose(0, 2, 1, 4, 3), values.swapaxes(1, 2)  # as a cache has them
    if prompt:
        prompt = (prompt[0].swapaxes(2, 3), prompt[1], prompt[2][:, None, None])
    causal = jnp.tri(query.shape[2], dtype=bool)[None, None]
    return group_attention(query, keys, values, causal, *prompt, scale=query.shape[-1] ** -0.5)


def value_and_gradients(attention, args):
    """What `attention` returns, and the gradients of a random sum of it, by every float array."""
    *arrays, mask = args
    prompt = [mask] if len(arrays) > 3 else []
    gradients, out = out_and_gradients(attention, len(arrays), *arrays, *prompt)
    return [out, *gradients]


@functools.partial(jax.jit, static_argnums=(0, 1))  # tests that share shapes compile once
def out_and_gradients(attention, num_arrays, *args):
    def loss(*args):
        out = attention(*args)
        wide = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        return (wide * np.random.default_rng(1).normal(size=out.shape)).sum(), out

    return jax.grad(loss, argnums=tuple(range(num_arrays)), has_aux=True)(*args)


FLOAT64_LENGTHS = (3, 0)  # known while tracing, as slices need them


def float64_attention(query, keys, values, prompt_keys, prompt_values, mask):
    """Loops over prompts, completions and tokens; group_attention keeps scores in float32."""
    p, g, s, _, _, h = query.shape
    rows = []
    for i, j, t in np.ndindex(p, g, s):
        key, value = keys[i, j, :, : t + 1], values[i, j, :, : t + 1]
        length = FLOAT64_LENGTHS[i]
        key = jnp.concatenate([prompt_keys[i, :, :length], key], axis=1)
        value = jnp.concatenate([prompt_values[i, :, :length], value], axis=1)
        probs = jax.nn.softmax(jnp.einsum("krh,kth->krt", query[i, j, t], key) / np.sqrt(h))
        rows.append(jnp.einsum("krt,kth->krh", probs, value))
    return jnp.stack(rows).reshape(query.shape)


def plain_part(query, key, value, lengths, *, is_causal):
    """`cudnn_part` in the inputs' type, with heads grouped as its documentation says."""
    batch, num_queries, heads, head_dim = query.shape
    num_keys, kv_heads = key.shape[1:3]
    query = query.reshape(batch, num_queries, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkrh,bukh->btkru", query, key) * head_dim**-0.5
    seen = jnp.ones([batch, num_queries, num_keys], bool)
    if is_causal:
        seen &= jnp.tri(num_queries, num_keys, dtype=bool)[None]
    if lengths is not None:
        seen &= jnp.arange(num_keys)[None, None] < lengths[:, None, None]
    scores = jnp.where(seen[:, :, None, None], scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)
    out = jnp.einsum("btkru,bukh->btkrh", jnp.exp(scores - lse[..., None]), value)
    lse = jax.lax.stop_gradient(lse).reshape(batch, num_queries, heads)
    return out.reshape(batch, num_queries, heads, head_dim), lse


def xla_part(query, key, value, lengths, *, is_causal):
    """The same public function as `cudnn_part`, of the same conventions, by XLA."""
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=is_causal,
        key_value_seq_lengths=lengths,
        implementation="xla",
        return_residual=True,
    )


def close(found, wanted, **tolerances):
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float64), np.asarray(y, np.float64), **tolerances
        )


merged_plain = functools.partial(flash_cudnn.merged_group_attention, part=plain_part)
merged_xla = functools.partial(flash_cudnn.merged_group_attention, part=xla_part)


def test_merging_is_exact_in_float64():
    """Rounding apart, so that a wrong term cannot hide in it."""
    with jax.enable_x64(True):
        args = arguments((2, 2, 3, 2, 2, 4), FLOAT64_LENGTHS, dtype=np.float64, loud=3.0)
        found, wanted = (value_and_gradients(f, args) for f in (merged_plain, float64_attention))
    assert found[0].dtype == np.float64
    close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("merged", [merged_plain, merged_xla], ids=["plain", "xla"])
@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "alone"])
def test_merged_is_group_attention(merged, prompt):
    args = arguments()
    args = args if prompt else [*args[:3], None]
    found, wanted = (value_and_gradients(f, args) for f in (merged, reference))
    close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_prompt_without_tokens_gets_no_gradient_and_gives_no_nan():
    args = arguments(lengths=(0, 0, 0))
    out, *gradients = value_and_gradients(merged_xla, args)
    alone, *_ = value_and_gradients(merged_xla, [*args[:3], None])
    close([out], [alone], rtol=1e-6, atol=1e-6)
    assert all(np.isfinite(x).all() for x in gradients)
    assert not gradients[3].any()
    assert not gradients[4].any()


def test_prompts_may_lie_far_from_the_completion():
    """One part outweighs the other by more than float32 holds, in both directions."""
    args = arguments(lengths=(5, 5, 5), loud=1000.0)
    found, wanted = (value_and_gradients(f, args) for f in (merged_xla, reference))
    # Scores of 1000 are known to 1e-4: probabilities to as much, and gradients times 1000.
    close(found[:1], wanted[:1], rtol=1e-3, atol=1e-3)
    assert all(np.isfinite(x).all() for x in found)


def test_junk_in_the_prompts_padding_moves_nothing():
    args = arguments()
    padding = ~args[5][:, None, :, None]
    spoilt = [*args[:3], *(jnp.where(padding, jnp.nan, x) for x in args[3:5]), args[5]]
    found, wanted = (value_and_gradients(merged_xla, each) for each in (spoilt, args))
    close(found, wanted, rtol=0, atol=0)


class Emulated:
    """In place of one of cuDNN's two primitives, its arithmetic."""

    def __init__(self, arithmetic):
        self.bind = arithmetic


def scores(query, key, kv_lengths, scale, mask_type):
    """[B, N, T, U] float32 and the keys for every query head."""
    key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2).astype(jnp.float32)
    scores = jnp.einsum("btnh,bunh->bntu", query.astype(jnp.float32), key) * scale
    num_queries, num_keys = scores.shape[2:]
    if "CAUSAL" in mask_type.name:
        seen = jnp.tri(num_queries, num_keys, dtype=bool)[None, None]
        scores = jnp.where(seen, scores, -jnp.inf)
    if "PADDING" in mask_type.name:
        seen = jnp.arange(num_keys)[None, None, None] < kv_lengths[:, None, None, None]
        scores = jnp.where(seen, scores, -jnp.inf)
    return scores, key


def forward(query, key, value, bias, q_lengths, kv_lengths, *_, scale, mask_type, **settings):
    logits, _ = scores(query, key, kv_lengths, scale, mask_type)
    value = jnp.repeat(value, query.shape[2] // value.shape[2], axis=2)
    lse = jax.nn.logsumexp(logits, axis=-1)
    out = jnp.einsum("bntu,bunh->btnh", jnp.exp(logits - lse[..., None]), value)
    return [out.astype(query.dtype), *([lse] if settings["is_training"] else [])]


def backward(query, key, value, *operands, scale, mask_type, **_):
    # bias, two lengths, two offsets, two page tables, then what counts; later releases add more.
    kv_lengths, (lse, out, d_out) = operands[2], operands[7:10]
    logits, wide_key = scores(query, key, kv_lengths, scale, mask_type)
    query, value, out, d_out = (x.astype(jnp.float32) for x in (query, value, out, d_out))
    batch, num_keys, kv_heads, head_dim = value.shape
    repeated = jnp.repeat(value, query.shape[2] // kv_heads, axis=2)
    probs = jnp.exp(logits - lse[..., None])
    d_probs = jnp.einsum("btnh,bunh->bntu", d_out, repeated)
    d_logits = probs * (d_probs - (out * d_out).sum(-1).swapaxes(1, 2)[..., None]) * scale
    d_query = jnp.einsum("bntu,bunh->btnh", d_logits, wide_key)
    d_key = jnp.einsum("bntu,btnh->bunh", d_logits, query)
    d_value = jnp.einsum("bntu,btnh->bunh", probs, d_out)
    d_key, d_value = (
        x.reshape(batch, num_keys, kv_heads, -1, head_dim).sum(3) for x in (d_key, d_value)
    )
    return [x.astype(key.dtype) for x in (d_query, d_key, d_value)]


@pytest.fixture
def emulated_cudnn(monkeypatch):
    """JAX's cuDNN attention, with its checks and conventions, on CPU."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    stubs = types.SimpleNamespace(forward=Emulated(forward), backward=Emulated(backward))
    for name, stub in [
        ("check_cudnn_version", lambda: 91100),
        ("_dot_product_attention_fwd_p_wrapper", stubs.forward),
        ("_dot_product_attention_bwd_p_wrapper", stubs.backward),
    ]:
        if not hasattr(fused, name):
            pytest.skip(f"this release of jax has no {name} to stand in for")
        monkeypatch.setattr(fused, name, stub)
    return stubs


@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "alone"])
def test_cudnn_path_with_its_two_calls_emulated(emulated_cudnn, prompt):
    args = arguments(dtype=jnp.bfloat16, loud=3.0)
    args = args if prompt else [*args[:3], None]
    wide = [x.astype(jnp.float32) for x in args[:-1]]
    found = value_and_gradients(flash_cudnn.merged_group_attention, args)
    wanted = value_and_gradients(reference, [*wide, args[-1]])
    assert found[0].dtype == jnp.bfloat16
    # Of numbers up to 10, rounded some three times to 8 bits.
    close(found, wanted, rtol=3 * 2**-8, atol=10 * 2**-8)


def test_the_log_sum_exp_is_not_rounded(emulated_cudnn, monkeypatch):
    """In bfloat16 it would be off by 2 %, and with it the weight of the prompt."""
    query, keys, values, *_ = arguments(dtype=jnp.bfloat16, loud=10.0)
    query = query[:, 0, :6].reshape(3, 6, 6, 8)
    key, value = (x[:, 0, :, :6].swapaxes(1, 2) for x in (keys, values))
    _, lse = flash_cudnn._attend(flash_cudnn.cudnn_part, False, query, key, value, None)
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    _, exact = plain_part(*wide, None, is_causal=False)
    assert lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, exact, rtol=1e-6)
    # Where a gradient keeps nothing of the sort, the rounded number is what there is.
    monkeypatch.setattr(jax.tree, "leaves", lambda tree: [])
    _, rounded = flash_cudnn._attend(flash_cudnn.cudnn_part, False, query, key, value, None)
    np.testing.assert_allclose(rounded, exact, rtol=2**-8)
    assert np.abs(rounded - exact).max() > 1e-3


# S, L, G, K, R, H: not whole blocks, no prompt, blocks of 256.
SPLASH = {
    "ragged": (100, 130, 2, 2, 2, 64),
    "alone": (130, 0, 1, 2, 2, 64),
    "wide": (256, 30, 1, 1, 1, 128),
}


@pytest.mark.parametrize("name", SPLASH)
def test_splash_is_group_attention(name):
    s, width, g, k, r, h = SPLASH[name]
    lengths = (width - 7, 0) if width else (0, 0)
    args = arguments((2, g, s, k, r, h), lengths, width)
    args = args if width else [*args[:3], None]
    splash = functools.partial(flash_splash.splash_group_attention, interpret=True)
    found = value_and_gradients(splash, args)
    # Sums of float32 in another order; a gradient of a key sums over all queries of a group.
    close(found, value_and_gradients(reference, args), rtol=1e-4, atol=2e-5)


def test_splash_tables_survive_the_trace_that_made_them():
    args = arguments((1, 2, 128, 1, 1, 64), (9,), 9)
    flash_splash._splash_kernel.cache_clear()
    splash = functools.partial(flash_splash.splash_group_attention, interpret=True)
    first = jax.jit(lambda *args: splash(*args))(*args)
    again = jax.jit(lambda *args: splash(*args) + 0)(*args)
    assert flash_splash._splash_kernel.cache_info().hits == 1
    close([first, again], [reference(*args)] * 2, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "attention", [flash_cudnn.merged_group_attention, flash_splash.splash_group_attention]
)
def test_shapes_are_checked(attention):
    query, keys, *rest = arguments()
    with pytest.raises(AssertionError):
        attention(query, keys[..., :3, :], *rest)  # slots of a cache, not the queries' own
    with pytest.raises(AssertionError):
        attention(query, keys, *rest[:3])  # no mask


BF16 = {"dtype": jnp.bfloat16, "head_dim": 128, "num_queries": 1024}


@pytest.mark.parametrize(
    ("platform", "changes", "kernel"),
    [
        ("gpu", {}, flash_cudnn.merged_group_attention),
        ("cuda", {"num_queries": 77, "prompt_len": 3}, flash_cudnn.merged_group_attention),
        ("gpu", {"num_queries": 1}, None),
        ("gpu", {"dtype": jnp.float32}, None),
        ("gpu", {"dtype": jnp.float16}, None),
        ("gpu", {"head_dim": 60}, None),
        ("gpu", {"head_dim": 256}, None),
        ("gpu", {"head_dim": 256, "compute_capability": "9.0"}, flash_cudnn.merged_group_attention),
        (
            "gpu",
            {"head_dim": 256, "compute_capability": "10.0"},
            flash_cudnn.merged_group_attention,
        ),
        ("gpu", {"compute_capability": "7.5"}, None),
        ("tpu", {"group_size": 16, "prompt_len": 512}, flash_splash.splash_group_attention),
        ("tpu", {"dtype": jnp.float32}, flash_splash.splash_group_attention),
        ("tpu", {"dtype": jnp.float16}, None),
        ("tpu", {"head_dim": 60}, None),
        ("tpu", {"head_dim": 512}, None),
        ("tpu", {"num_queries": 1}, None),
        ("tpu", {"num_queries": 63}, None),
        ("tpu", {"group_size": 1024}, None),
        ("cpu", {}, None),
        ("rocm", {}, None),
    ],
)
def test_kernel_for(platform, changes, kernel):
    assert flash.kernel_for(platform, **(BF16 | changes)) is kernel
