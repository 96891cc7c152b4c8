"""PPO with a critic's advantages, as for RLHF. arXiv:1707.06347, 1506.02438, 2203.02155."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import kl, ratios, surrogates, values, weights


def ppo(*, clip_eps: float = 0.2, kl_coef: float = 0.02, lam: float = 0.95) -> Objective:
    """Proximal Policy Optimization: what GRPO does without a value network.

        J = mean over tokens of min(ρ A, clip(ρ, 1-ε, 1+ε) A)                  (PPO, equation 7)
        A_t = Σ_l λ^l δ_{t+l},   δ_t = r_t + V_{t+1} - V_t                     (GAE, equation 16)
        r_t = -β k1_t, and the completion's reward on its last token besides

    with advantages whitened over the tokens of the batch; the loss is -J.

    Args:
        clip_eps: ε, PPO's 0.2.
        kl_coef: β, InstructGPT's 0.02 (arXiv:2203.02155, appendix C.4). The KL is in the reward: V
            is to be trained on returns that hold it, too.
        lam: λ. InstructGPT does not give it; 0.95 is GAE's and PPO's. γ is 1.

    `prepare` wants the critic's `values`; `ops.values` has its target and its loss.

    >>> sorted(ppo().needs), ppo().kl_in_reward
    (['old_log_probs', 'values'], True)
    """
    return Objective(
        advantages=partial(values.whitened_gae, discount=1.0, lam=lam),
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=weights.token_mean,
        kl=kl.k1,
        kl_coef=kl_coef,
        kl_in_reward=kl_coef > 0,
    )
