import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.ops import references

RULES = {
    "refresh": functools.partial(references.refresh, every=3),
    "polyak": functools.partial(references.polyak, rate=0.25, every=3),
}
rules = pytest.mark.parametrize("name", RULES)


def trees(dtype=np.float32):
    rng = np.random.default_rng(0)

    def tree():
        return {"a": rng.normal(size=(2, 3)).astype(dtype), "b": [rng.normal(size=4).astype(dtype)]}

    return jax.tree.map(jnp.array, (tree(), tree()))


def follow(name, step, ref, new):
    """One number."""
    if step % 3:
        return ref
    return new if name == "refresh" else 0.25 * new + 0.75 * ref


@rules
def test_follows_at_every_third_step_counted_from_one(name, transform):
    ref, params = trees()
    f = transform(RULES[name])
    for step in (1, 2, 3, 4, 6):
        found = f(ref, params, jnp.int32(step))
        wanted = jax.tree.map(
            lambda r, p, step=step: follow(name, step, np.float64(r), np.float64(p)), ref, params
        )
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
        assert jax.tree.structure(found) == jax.tree.structure(ref)


@rules
def test_float64(name):
    with jax.enable_x64(True):
        ref, params = trees(np.float64)
        found = RULES[name](ref, params, 6)
    wanted = follow(name, 6, np.asarray(ref["a"]), np.asarray(params["a"]))
    assert found["a"].dtype == np.float64
    np.testing.assert_allclose(found["a"], wanted, rtol=1e-14)


@rules
def test_the_type_of_the_reference_is_kept(name):
    ref, params = trees()
    ref = jax.tree.map(lambda x: x.astype(jnp.bfloat16), ref)
    found = RULES[name](ref, params, 3)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    wanted = follow(name, 3, np.float32(ref["a"]), np.asarray(params["a"]))
    # Mixed in float32 and rounded once.
    np.testing.assert_array_equal(found["a"], jnp.array(wanted).astype(jnp.bfloat16))


def test_the_ends_of_polyak():
    ref, params = trees()
    for found in (
        references.polyak(ref, params, 1, rate=1.0),
        references.refresh(ref, params, 7, every=1),
    ):
        np.testing.assert_array_equal(found["a"], params["a"])
    # What has arrived stays.
    found = references.polyak(params, params, 1, rate=0.6)
    np.testing.assert_allclose(found["a"], params["a"], rtol=3e-7)
    # Geometric: after n steps 0.75^n of the way is left.
    for _ in range(5):
        ref = references.polyak(ref, params, 1, rate=0.25)
    left = 0.75**5 * (trees()[0]["a"] - params["a"])
    np.testing.assert_allclose(ref["a"] - params["a"], left, rtol=1e-4, atol=1e-6)


@functools.partial(jax.jit, donate_argnums=0)
def increased(tree):
    return jax.tree.map(lambda x: x + 1, tree)


@rules
def test_a_donated_reference_leaves_the_policy_alone(name):
    """At a step that takes the policy's values the buffers stay two, and either can be given up."""
    for f in (jax.jit(RULES[name], donate_argnums=0), jax.jit(RULES[name]), RULES[name]):
        ref, params = trees()
        before = np.array(params["a"])
        found = f(ref, params, 3)
        places = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)}
        assert not places & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(found)}
        kept = np.array(found["a"])
        increased(params)
        np.testing.assert_array_equal(found["a"], kept)
        if name == "refresh":
            np.testing.assert_array_equal(kept, before)


@rules
def test_vmaps_over_seeds(name):
    ref, params = trees()
    found = jax.vmap(RULES[name], in_axes=(0, 0, 0))(ref["a"], params["a"], jnp.array([3, 4]))
    np.testing.assert_allclose(
        found[0], follow(name, 3, np.asarray(ref["a"][0]), np.asarray(params["a"][0])), rtol=1e-6
    )
    np.testing.assert_array_equal(found[1], ref["a"][1])


def test_refusals():
    ref, params = trees()
    with pytest.raises(ValueError, match="every is 0"):
        references.refresh(ref, params, 1, every=0)
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"rate is {rate}"):
            references.polyak(ref, params, 1, rate=rate)
    with pytest.raises(AssertionError):
        references.refresh(ref, params, 1.0, every=1)
    with pytest.raises(AssertionError):
        references.refresh(ref, params | {"a": jnp.zeros([3, 3])}, 1, every=1)
    with pytest.raises(AssertionError):
        references.polyak(jnp.zeros(2, int), jnp.zeros(2, int), 1, rate=0.5)
