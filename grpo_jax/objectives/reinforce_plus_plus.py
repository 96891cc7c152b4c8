"""REINFORCE++, and its form with a baseline. arXiv:2501.03262, section 3."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import kl, ratios, returns, surrogates, weights


def reinforce_plus_plus(*, clip_eps: float = 0.2, kl_coef: float = 0.01) -> Objective:
    """PPO's clipped loss with the reward to go, normalised over the whole batch.

        J = 1/|o| Σ_t min(ρ A, clip(ρ, 1-ε, 1+ε) A)                            (equation 1)
        A_t = (R_t - mean(R)) / std(R),   R_t = r - β Σ_{s ≥ t} k1_s           (equations 4, 5)

    averaged over completions, with mean and std over the batch; the loss is -J.
    https://arxiv.org/abs/2501.03262

    Args:
        clip_eps: ε; not in the paper's latest version; PPO's.
        kl_coef: β; not there either; 0.01 is what OpenRLHF, the authors' code, starts from.

    Prompts are not told apart: a group of one will do. Choice: mean and std are over tokens, as in
    the authors' code; the paper can be read as over completions.

    >>> reinforce_plus_plus().kl_in_reward
    True
    """
    return Objective(
        advantages=returns.reinforce_plus_plus,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=weights.seq_mean_token_mean,
        kl=kl.k1,
        kl_coef=kl_coef,
        kl_in_reward=kl_coef > 0,
    )


def reinforce_plus_plus_baseline(*, clip_eps: float = 0.2, kl_coef: float = 0.01) -> Objective:
    """REINFORCE++ for groups: their mean is the baseline, the batch gives the scale.

        J = 1/|o| Σ_t min(ρ A, clip(ρ, 1-ε, 1+ε) A) - λ k2                     (equation 8)
        A = (A' - mean(A')) / std(A'),   A'_i = r_i - mean(r of its group)     (equations 6, 7)

    averaged over completions; the KL is a term of the loss here. https://arxiv.org/abs/2501.03262

    Args:
        clip_eps: ε, not published; PPO's.
        kl_coef: λ, not published.

    Choice: mean and std are over tokens, as in the authors' code.

    >>> reinforce_plus_plus_baseline().kl.__name__
    'k2'
    """
    return Objective(
        advantages=returns.reinforce_plus_plus_baseline,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=weights.seq_mean_token_mean,
        kl=kl.k2,
        kl_coef=kl_coef,
    )
