"""GRPO with outcome and with process supervision. DeepSeekMath, arXiv:2402.03300, section 4.1."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, kl, process, ratios, surrogates, weights


def grpo(*, clip_eps: float = 0.2, kl_coef: float = 0.04) -> Objective:
    """Group Relative Policy Optimization: PPO with the group's rewards in place of a critic.

        J = 1/G Σ_i 1/|o_i| Σ_t [ min(ρ A, clip(ρ, 1-ε, 1+ε) A) - β k3 ]       (equation 3)
        A_{i,t} = (r_i - mean(r)) / std(r)                                     (section 4.1.2)
        k3 = π_ref/π - log(π_ref/π) - 1                                        (equation 4)

    averaged over prompts; the loss is -J. https://arxiv.org/abs/2402.03300

    Args:
        clip_eps: ε. The paper does not give it; 0.2 is PPO's (and was never reached there: one
            update per phase of sampling keeps ρ at 1).
        kl_coef: β, the paper's 0.04. At 0 there is no reference.

    Choices where the paper is silent: std divides by G, and 1e-6 is added to it.
    Run: G = 64, one update a step, learning rate 1e-6, 1024 tokens.

    >>> grpo().weights.__name__, grpo().kl_coef
    ('seq_mean_token_mean', 0.04)
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=weights.seq_mean_token_mean,
        kl=kl.k3,
        kl_coef=kl_coef,
    )


def grpo_process(*, clip_eps: float = 0.2, kl_coef: float = 0.04) -> Objective:
    """GRPO with process supervision: rewards of steps, to go from each token.

        A_{i,t} = Σ_{j: e_{i,j} ≥ t} (r_{i,j} - mean(R)) / std(R)              (section 4.1.3)

    with R all step rewards of the group together and e_{i,j} the last token of step j; all else as
    in `grpo`. https://arxiv.org/abs/2402.03300

    `prepare` wants `step_rewards` and `step_ends`. Choices: those of
    `ops.process.process_supervision`; tokens behind the last step get 0.

    >>> sorted(grpo_process().needs)
    ['step_ends', 'step_rewards']
    """
    outcome = grpo(clip_eps=clip_eps, kl_coef=kl_coef)
    return dataclasses.replace(outcome, advantages=process.process_supervision)
