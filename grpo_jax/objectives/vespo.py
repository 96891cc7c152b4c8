"""VESPO: a smooth weight of the whole sequence's ratio. arXiv:2602.10693."""

from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import advantages, ratios, sequence_surrogates, weights


def vespo(
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> Objective:
    """Variational sequence-level soft policy optimization, for completions that may be stale.

        J = 1/G Σ_i Σ_t sg(φ(W_i)) A_i log π(o_{i,t})                          (equation 20)
        W_i = Π_t π/μ,   φ(W) = W^k exp(λ (1 - W)),   A_i = r_i - mean(r)

    averaged over prompts, without KL; the loss is -J. k and λ go by the sign of A_i. μ is the
    sampler, and there is no other anchor. https://arxiv.org/abs/2602.10693

    Args:
        k_positive, lambda_positive: for A of 0 or more.
        k_negative, lambda_negative: for A below 0.

    Choices: the sum over tokens and the advantage without std, as printed; the authors' scripts
    take the mean over all tokens and divide by the group's std.
    Run: G = 8, 8 updates a step, temperature 1, learning rate 1e-6.

    >>> vespo().sampler_anchor
    True
    """
    return Objective(
        advantages=advantages.group_center,
        log_ratio=ratios.token,
        surrogate=partial(
            sequence_surrogates.vespo,
            k_positive=k_positive,
            lambda_positive=lambda_positive,
            k_negative=k_negative,
            lambda_negative=lambda_negative,
        ),
        weights=partial(weights.seq_mean_token_sum, constant=1),
        sampler_anchor=True,
    )
