"""The optimizer of a run: types of its state, what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import toys

from grpo_jax.optimizer import make_optimizer

PARAMS = {"mlp": {"kernel": jnp.array([[1.0, -2.0]]), "correction": jnp.array([0.5, -0.5])}}


def updated(params, gradient=0.0, **fields):
    optimizer, _ = make_optimizer(toys.config("unused", warmup_steps=0, **fields))
    state = optimizer.init(params)
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    updates, state = optimizer.update(grads, state, params)
    return updates["mlp"], state


def test_all_decays_but_what_chooses_experts():
    found, _ = updated(PARAMS, weight_decay=0.1, learning_rate=0.5)
    np.testing.assert_allclose(found["kernel"], -0.05 * PARAMS["mlp"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(found["correction"], [0.0, 0.0])


def test_the_state_of_parameters_in_half_precision():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    for moment in ("float32", "bfloat16"):
        found, state = updated(half, gradient=1e-3, learning_rate=0.5, moment_dtype=moment)
        types = {str(x.dtype) for x in jax.tree.leaves(state) if x.ndim}
        assert types == {"float32", moment}
        # Adam's first step is the rate, whatever the size of the gradient.
        np.testing.assert_allclose(found["kernel"], -0.5, rtol=1e-2)
