"""Dr. GRPO: GRPO done right. arXiv:2503.20783, section 3.2."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, surrogates, weights


def dr_grpo(*, max_new_tokens: int, clip_eps: float = 0.2) -> Objective:
    """GRPO without its two normalisers, length and standard deviation, and without a reference.

        J = 1/G Σ_i 1/C Σ_t min(ρ A, clip(ρ, 1-ε, 1+ε) A),     A_{i,t} = r_i - mean(r)

    averaged over prompts; the loss is -J. https://arxiv.org/abs/2503.20783

    Args:
        max_new_tokens: C, one constant for the whole run: the generation budget, as in the
            authors' code. The paper's equation leaves it out, which only scales the loss.
        clip_eps: ε, the paper's 0.2.

    >>> dr_grpo(max_new_tokens=1024).weights.keywords
    {'constant': 1024}
    """
    return Objective(
        advantages=advantages.group_center,
        log_ratio=ratios.token,
        surrogate=partial(surrogates.clipped, clip_eps_low=clip_eps, clip_eps_high=clip_eps),
        weights=partial(weights.seq_mean_token_sum, constant=max_new_tokens),
    )
