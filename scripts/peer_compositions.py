"""What other libraries compute under the papers' names, composed of the parts of `grpo_jax`.

A function for each record of `tests/fixtures/peers.npz`, `LIBRARY_NAME_SETTINGS`: our preset of
that name with what is other there in its place. Its docstring names each difference from the
preset, a line for each, by the question of `objectives.Objective` that it answers:

    credit advantages    ratio log_ratio    trust region surrogate    reduction weights
    KL kl, kl_coef, kl_in_reward    selection select

`scripts.conformance` shows both; `tests/objectives/test_conformance.py` checks that the numbers are
the library's, and that the docstring names what differs and nothing else.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from grpo_jax.objectives import Objective, cispo, dapo, dr_grpo, grpo, gspo, rloo
from grpo_jax.ops import advantages, kl, ratios, returns, surrogates, weights

WIDTH = 8  # of the fixture: the longest completion, and the longest that is allowed

# Bessel's std (divides by G - 1), with what each library adds to it.
TRL_CREDIT = partial(advantages.group_normalize, eps=1e-4, ddof=1)
VERL_CREDIT = TUNIX_CREDIT = partial(advantages.group_normalize, eps=1e-6, ddof=1)
OPENRLHF_CREDIT = partial(advantages.group_normalize, eps=1e-9, ddof=1)
PPO_CLIP = partial(surrogates.clipped, clip_eps_low=0.2, clip_eps_high=0.2)
DUAL_CLIP = partial(surrogates.dual_clipped, clip_eps_low=0.2, clip_eps_high=0.2, max_ratio=3.0)
DAPO_DUAL_CLIP = partial(
    surrogates.dual_clipped, clip_eps_low=0.2, clip_eps_high=0.28, max_ratio=10.0
)


def with_kl_to_go(
    rewards: jax.Array,
    mask: jax.Array,
    token_penalty: jax.Array,
    *,
    credit: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """OpenRLHF's credit: the KL of a token and of all behind it, after the group's statistics."""
    return returns.kl_to_go(credit(rewards)[..., None], mask, token_penalty)


def sequence_ratio_of_tokens(
    log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """The sequence's ratio and its gradient, once for each token: OpenRLHF's advantages differ."""
    return jnp.broadcast_to(ratios.sequence(log_probs, old_log_probs, mask), mask.shape)


def capped_at_a_fifth(
    log_ratio: jax.Array, log_probs: jax.Array, advantages: jax.Array
) -> jax.Array:
    """CISPO with a cap of 0.2, which our `surrogates.cispo` refuses: on-policy tokens reach it."""
    weight = jax.lax.stop_gradient(jnp.minimum(ratios.ratio(log_ratio), 0.2))
    return surrogates.policy_gradient(log_probs, weight * advantages)


def k3_with_weight(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """NeMo-RL's KL: k3 times exp(log π - sg(log π)), which is 1 and has a gradient."""
    own = log_probs - jax.lax.stop_gradient(log_probs)
    return kl.ratio_corrected(log_probs, ref_log_probs, own, estimate=kl.k3)


# -- GRPO --------------------------------------------------------------------------------------


def trl_grpo_default() -> Objective:
    """credit: std divides by G - 1, 1e-4 is added
    reduction: mean over all tokens (its `loss_type` is "dapo" unless set)
    KL: none
    """
    return replace(grpo(kl_coef=0.0), advantages=TRL_CREDIT, weights=weights.token_mean)


def trl_grpo_recipe() -> Objective:
    """credit: std divides by G - 1, 1e-4 is added
    trust region: ε 10: no lower bound, and 11 above
    KL: 0.001 · ρ k3, with the gradient through ρ
    """
    return replace(
        grpo(clip_eps=10.0, kl_coef=0.001),
        advantages=TRL_CREDIT,
        kl=partial(kl.ratio_corrected, estimate=kl.k3),
    )


def verl_grpo_default() -> Objective:
    """credit: std divides by G - 1
    trust region: dual clip 3, always on
    reduction: mean over all tokens
    KL: none
    """
    return replace(
        grpo(kl_coef=0.0),
        advantages=VERL_CREDIT,
        surrogate=DUAL_CLIP,
        weights=weights.token_mean,
    )


def verl_grpo_recipe() -> Objective:
    """credit: std divides by G - 1
    trust region: dual clip 3, always on
    reduction: mean over all tokens
    KL: 0.001 · k3
    """
    return replace(verl_grpo_default(), kl=kl.k3, kl_coef=0.001)


def openrlhf_grpo_default() -> Objective:
    """credit: std divides by G - 1, 1e-9 is added; then less the KL to go, so that tokens differ
    reduction: mean over all tokens
    KL: 0.01 · k1 in the reward
    """
    return replace(
        grpo(),
        advantages=partial(with_kl_to_go, credit=OPENRLHF_CREDIT),
        weights=weights.token_mean,
        kl=kl.k1,
        kl_coef=0.01,
        kl_in_reward=True,
    )


def openrlhf_grpo_recipe() -> Objective:
    """credit: std divides by G - 1, 1e-9 is added
    reduction: mean over all tokens
    KL: 0.001 · k3
    """
    return replace(grpo(kl_coef=0.001), advantages=OPENRLHF_CREDIT, weights=weights.token_mean)


def tunix_grpo_default() -> Objective:
    """credit: std divides by G - 1
    KL: 0.04 · k1 as a loss, whose gradient is the same for every reference
    """
    return replace(grpo(kl_coef=0.04), advantages=TUNIX_CREDIT, kl=kl.k1)


def nemo_rl_grpo_default() -> Objective:
    """credit: mean and std of the others (divided by G - 2); undivided where that std is 0
    reduction: mean over all tokens
    KL: 0.01 · k3 with the gradient of a weight π/sg(π)
    """
    return replace(
        grpo(kl_coef=0.01),
        advantages=advantages.leave_one_out_normalize,
        weights=weights.token_mean,
        kl=k3_with_weight,
    )


# -- Dr. GRPO ----------------------------------------------------------------------------------


def trl_dr_grpo_default() -> Objective:
    """credit: divided by the std (of G - 1, 1e-4 is added), which the paper takes out"""
    return replace(dr_grpo(max_new_tokens=WIDTH), advantages=TRL_CREDIT)


def trl_dr_grpo_recipe() -> Objective:
    """none"""
    return dr_grpo(max_new_tokens=WIDTH)


def verl_dr_grpo_recipe() -> Objective:
    """trust region: dual clip 3, always on"""
    return replace(dr_grpo(max_new_tokens=WIDTH), surrogate=DUAL_CLIP)


def openrlhf_dr_grpo_default() -> Objective:
    """credit: less the KL to go, so that tokens differ
    reduction: mean over all tokens, so that lengths still count
    KL: 0.01 · k1 in the reward
    """
    return replace(
        dr_grpo(max_new_tokens=WIDTH),
        advantages=partial(with_kl_to_go, credit=advantages.group_center),
        weights=weights.token_mean,
        kl=kl.k1,
        kl_coef=0.01,
        kl_in_reward=True,
    )


def tunix_dr_grpo_default() -> Objective:
    """KL: 0.04 · k1 as a loss, whose gradient is the same for every reference"""
    return replace(dr_grpo(max_new_tokens=WIDTH), kl=kl.k1, kl_coef=0.04)


# -- DAPO --------------------------------------------------------------------------------------


def trl_dapo_recipe() -> Objective:
    """credit: std divides by G - 1, 1e-4 is added
    selection: without truncated completions (there are none here)
    """
    return replace(dapo(filter_truncated=True), advantages=TRL_CREDIT)


def verl_dapo_recipe() -> Objective:
    """credit: std divides by G - 1
    trust region: dual clip 10
    """
    return replace(dapo(), advantages=VERL_CREDIT, surrogate=DAPO_DUAL_CLIP)


def openrlhf_dapo_recipe() -> Objective:
    """credit: std divides by G - 1, 1e-9 is added
    trust region: 0.27 above, for the paper's 0.28
    KL: 0.001 · k3
    """
    return replace(dapo(clip_eps_high=0.27), advantages=OPENRLHF_CREDIT, kl=kl.k3, kl_coef=0.001)


def tunix_dapo_default() -> Objective:
    """credit: std divides by G - 1"""
    return replace(dapo(), advantages=TUNIX_CREDIT)


def nemo_rl_dapo_recipe() -> Objective:
    """credit: std divides by G - 1
    trust region: dual clip 10
    """
    return replace(
        dapo(),
        advantages=partial(advantages.group_normalize, eps=1e-6, ddof=1),
        surrogate=DAPO_DUAL_CLIP,
    )


# -- GSPO --------------------------------------------------------------------------------------


def trl_gspo_default() -> Objective:
    """credit: std divides by G - 1, 1e-4 is added
    trust region: 0.2 and 0.2, for the paper's 3e-4 and 4e-4
    reduction: mean over all tokens, so that a sequence counts by its length
    """
    return replace(
        gspo(clip_eps_low=0.2, clip_eps_high=0.2),
        advantages=TRL_CREDIT,
        weights=weights.token_mean,
        length_weighted=True,
    )


def trl_gspo_recipe() -> Objective:
    """credit: std divides by G - 1, 1e-4 is added"""
    return replace(gspo(), advantages=TRL_CREDIT)


def verl_gspo_default() -> Objective:
    """credit: std divides by G - 1
    ratio: of GSPO-token, with equal gradients
    trust region: 0.2 and 0.2, for the paper's 3e-4 and 4e-4
    reduction: mean over all tokens, so that a sequence counts by its length
    """
    return replace(
        gspo(clip_eps_low=0.2, clip_eps_high=0.2),
        advantages=VERL_CREDIT,
        log_ratio=ratios.sequence_token,
        weights=weights.token_mean,
        length_weighted=True,
    )


def verl_gspo_recipe() -> Objective:
    """credit: std divides by G - 1
    ratio: of GSPO-token, with equal gradients
    """
    return replace(gspo(), advantages=VERL_CREDIT, log_ratio=ratios.sequence_token)


def openrlhf_gspo_default() -> Objective:
    """credit: std divides by G - 1, 1e-9 is added; then less the KL to go, so that tokens differ
    ratio: the sequence's, against the advantage of each token
    trust region: 0.2 and 0.2, for the paper's 3e-4 and 4e-4
    KL: 0.01 · k1 in the reward
    """
    return replace(
        gspo(clip_eps_low=0.2, clip_eps_high=0.2),
        advantages=partial(with_kl_to_go, credit=OPENRLHF_CREDIT),
        log_ratio=sequence_ratio_of_tokens,
        kl=kl.k1,
        kl_coef=0.01,
        kl_in_reward=True,
    )


def openrlhf_gspo_recipe() -> Objective:
    """credit: std divides by G - 1, 1e-9 is added
    trust region: 0.2 and 0.2, for the paper's 3e-4 and 4e-4
    """
    return replace(gspo(clip_eps_low=0.2, clip_eps_high=0.2), advantages=OPENRLHF_CREDIT)


def tunix_gspo_default() -> Objective:
    """credit: std divides by G - 1
    ratio: of GSPO-token, with equal gradients
    trust region: 0.2 and 0.2, for the paper's 3e-4 and 4e-4
    KL: 0.04 · k1 as a loss, whose gradient is the same for every reference
    """
    return replace(
        gspo(clip_eps_low=0.2, clip_eps_high=0.2),
        advantages=TUNIX_CREDIT,
        log_ratio=ratios.sequence_token,
        kl=kl.k1,
        kl_coef=0.04,
    )


def nemo_rl_gspo_recipe() -> Objective:
    """credit: mean and std of the others (divided by G - 2); undivided where that std is 0
    trust region: 0.2 and 0.2, for the paper's 3e-4 and 4e-4
    """
    return replace(
        gspo(clip_eps_low=0.2, clip_eps_high=0.2), advantages=advantages.leave_one_out_normalize
    )


# -- CISPO -------------------------------------------------------------------------------------


def trl_cispo_default() -> Objective:
    """credit: std divides by G - 1, 1e-4 is added
    trust region: cap 0.2 on the ratio itself: `epsilon_high` falls back to `epsilon`
    """
    return replace(cispo(), advantages=TRL_CREDIT, surrogate=capped_at_a_fifth)


def trl_cispo_recipe() -> Objective:
    """credit: std divides by G - 1, 1e-4 is added"""
    return replace(cispo(max_ratio=5.0), advantages=TRL_CREDIT)


def verl_cispo_default() -> Objective:
    """credit: std divides by G - 1
    trust region: cap 1.2, and 0.8 below
    """
    return replace(cispo(max_ratio=1.2, min_ratio=0.8), advantages=VERL_CREDIT)


def verl_cispo_recipe() -> Objective:
    """credit: std divides by G - 1
    trust region: cap 1.2
    KL: 0.001 · k3
    """
    return replace(cispo(max_ratio=1.2), advantages=VERL_CREDIT, kl=kl.k3, kl_coef=0.001)


def nemo_rl_cispo_recipe() -> Objective:
    """credit: mean and std of the others (divided by G - 2); undivided where that std is 0
    trust region: cap 1.8
    """
    return replace(cispo(max_ratio=1.8), advantages=advantages.leave_one_out_normalize)


# -- RLOO --------------------------------------------------------------------------------------


def trl_rloo_default() -> Objective:
    """ratio: the product over the completion's tokens
    trust region: PPO's clip, 0.2 and 0.2, on that product
    reduction: mean over completions of a value each
    KL: coefficient 0.05
    """
    return replace(
        rloo(kl_coef=0.05),
        log_ratio=ratios.sequence_product,
        surrogate=PPO_CLIP,
        weights=weights.seq_mean_token_mean,
    )


def verl_rloo_default() -> Objective:
    """ratio: by token
    trust region: PPO's clip, 0.2 and 0.2, and dual clip 3
    reduction: mean over all tokens
    KL: none
    """
    return replace(
        rloo(kl_coef=0.0),
        log_ratio=ratios.token,
        surrogate=DUAL_CLIP,
        weights=weights.token_mean,
    )


def verl_rloo_recipe() -> Objective:
    """ratio: by token
    trust region: PPO's clip, 0.2 and 0.2, and dual clip 3
    reduction: mean over all tokens
    KL: coefficient 0.001
    """
    return replace(
        rloo(kl_coef=0.001),
        log_ratio=ratios.token,
        surrogate=DUAL_CLIP,
        weights=weights.token_mean,
    )


def openrlhf_rloo_default() -> Objective:
    """credit: the KL to go is taken after the baseline, so that tokens differ
    ratio: by token
    trust region: PPO's clip, 0.2 and 0.2
    reduction: mean over all tokens
    KL: coefficient 0.01
    """
    return replace(
        rloo(kl_coef=0.01),
        advantages=partial(with_kl_to_go, credit=advantages.leave_one_out),
        log_ratio=ratios.token,
        surrogate=PPO_CLIP,
        weights=weights.token_mean,
    )


def tunix_rloo_default() -> Objective:
    """ratio: by token
    trust region: PPO's clip, 0.2 and 0.2
    reduction: mean over completions of the mean over their tokens
    KL: 0.04 · k1 as a loss, whose gradient is the same for every reference
    """
    return replace(
        rloo(kl_coef=0.04),
        log_ratio=ratios.token,
        surrogate=PPO_CLIP,
        weights=weights.seq_mean_token_mean,
        kl_in_reward=False,
    )


def nemo_rl_rloo_recipe() -> Objective:
    """reduction: mean over all tokens
    KL: 0.01 · k3 as a loss, with the gradient of a weight π/sg(π)
    """
    return replace(
        rloo(kl_coef=0.01), weights=weights.token_mean, kl=k3_with_weight, kl_in_reward=False
    )
