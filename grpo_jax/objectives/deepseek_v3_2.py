"""DeepSeek-V3.2's GRPO. arXiv:2512.02556, section 3.1."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, corrections, kl, ratios, surrogates, weights


def deepseek_v3_2(
    *, clip_eps: float = 0.2, kl_coef: float = 0.001, max_drift: float = 0.5
) -> Objective:
    """GRPO made to scale: an unbiased KL, stale bad completions left out, the support kept.

        J = 1/G Σ_i 1/|o_i| Σ_t [ M_i min(ρ A, clip(ρ, 1-ε, 1+ε) A) - β ρ k3 ]
        A_i = r_i - mean(r),   M_i = 0 where A_i < 0 and 1/|o_i| Σ_t log(μ/π) > δ, else 1

    with ρ = π/μ, the gradient of ρ k3 through ρ, and μ the sampler. https://arxiv.org/abs/2512.02556

    Args:
        clip_eps: ε, not published; PPO's.
        kl_coef: β, not published (it differs by domain, and may be 0); R1's.
        max_drift: δ in nats a token, not published; 0.5 is what TRL suggests.

    The paper's π_old is what the sampler reported, here μ: in ρ as well as in M.

    Keep Sampling Mask, the paper's fourth part, is a setting of the sampler:
    `Sampling(top_p=..., keep_support=True)`. Keep Routing has no part in dense models.

    >>> deepseek_v3_2().sampler_anchor
    True
    """
    return Objective(
        advantages=advantages.group_center,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        corrections=(partial(corrections.off_policy_sequences, max_drift=max_drift),),
        weights=weights.seq_mean_token_mean,
        kl=partial(kl.ratio_corrected, estimate=kl.k3),
        kl_coef=kl_coef,
        sampler_anchor=True,
    )
