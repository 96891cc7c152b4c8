"""Estimates of the KL of one token, for every token of a small vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.ops import kl, ratios

sg = jax.lax.stop_gradient


def divergence(log_p, log_q):
    return (jnp.exp(log_p) * (log_p - log_q)).sum()


@jax.jit
@jax.vmap
def one_token(logits, old_logits, ref_logits):
    """Each estimate for each token that π_old may have said, and what is exact.

    Returns:
        {name: value} and {name: gradient in the policy's logits}: [4] and [4, 4] for estimates,
        scalar and [4] for the divergences "KL" (π || ref) and "KL_ref" (ref || π).
    """
    old, ref = jax.nn.log_softmax(old_logits), jax.nn.log_softmax(ref_logits)

    def terms(x):
        policy = jax.nn.log_softmax(x)
        log_ratio = ratios.token(policy, old, jnp.ones_like(old, bool))
        fixed = sg(ratios.ratio(log_ratio))
        found = {"KL": divergence(policy, ref), "KL_ref": divergence(ref, policy)}
        for name in ("k1", "k2", "k3", "straight_through"):
            found[name] = getattr(kl, name)(policy, ref)
            found[f"sg(r) {name}"] = fixed * found[name]
        for name in ("k1", "k3"):
            estimate = getattr(kl, name)
            found[f"r {name}"] = kl.ratio_corrected(policy, ref, log_ratio, estimate=estimate)
        return found

    return terms(logits), jax.jacfwd(terms)(logits)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
