"""DAPO: decoupled clip and dynamic sampling. arXiv:2503.14476, section 3."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, selection, surrogates, weights


def dapo(
    *,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.28,
    max_sampling_rounds: int = 10,
    filter_truncated: bool = False,
) -> Objective:
    """GRPO with a higher upper clip, full groups only, and the mean over all tokens.

        J = 1/Σ_i |o_i| Σ_i Σ_t min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)         (equation 8)
        A_{i,t} = (r_i - mean(r)) / std(r),   0 < number of right answers < G

    without KL; the loss is -J. https://arxiv.org/abs/2503.14476

    Args:
        clip_eps_low: the paper's 0.2.
        clip_eps_high: the paper's 0.28 (clip-higher, section 3.1).
        max_sampling_rounds: phases of sampling a step may take to find groups with a signal
            (dynamic sampling, section 3.2). The paper has no cap. A signal is judged by the sum
            of the rewards, or by those of the task alone (`run(signal_reward=...)`), which is what
            the paper means: a punishment of length would give one to a group that is all right.
        filter_truncated: leaves truncated completions out of the loss (overlong filtering, section
            3.4); their rewards still count in their groups.

    Section 3.4 goes on to punish length in the reward, before it is normalised:
    `rewards.soft_overlong` with a limit of 20480 tokens and a band of 4096 there.
    Choice: the equation is written for one prompt; the mean is over the tokens of all groups of an
    optimizer step, as in the authors' code (`weights.prompt_mean` is the other reading).
    Run: G = 16, 512 prompts, 16 updates a step, learning rate 1e-6.

    >>> dapo().surrogate.keywords
    {'clip_eps_low': 0.2, 'clip_eps_high': 0.28}
    """
    return Objective(
        advantages=advantages.group_normalize,
        log_ratio=ratios.token,
        surrogate=partial(
            surrogates.clipped, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high
        ),
        weights=weights.token_mean,
        select=(selection.without_truncated,) if filter_truncated else (),
        max_sampling_rounds=max_sampling_rounds,
    )
