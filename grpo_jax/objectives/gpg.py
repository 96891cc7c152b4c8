"""GPG: the plain policy gradient of a group. arXiv:2504.02546, section 3."""

from grpo_jax.objectives.base import Objective
from grpo_jax.ops import batch_advantages, surrogates, weights


def gpg() -> Objective:
    """Group Policy Gradient: no ratio, no clip, no reference.

        J = 1/Σ_i |o_i| Σ_i Σ_t A_i log π(o_{i,t})                             (equation 5)
        A_i = α (r_i - mean(r)),   α = B / (B - M)                             (equations 6, 7)

    with B completions in the batch, M of them in groups without a signal, and A held fixed; the
    loss is -J. https://arxiv.org/abs/2504.02546

    There is no ratio: take one update a step. Left out: the paper goes on collecting until 60 % of
    the completions are in groups with a signal (`max_sampling_rounds` is the nearest). Choice: the
    mean is over the tokens of all groups; the paper writes it for one (`weights.prompt_mean`).
    Run: G = 8, 144 prompts, learning rate 1e-6.

    >>> gpg().surrogate.__name__
    'policy_gradient'
    """
    return Objective(
        advantages=batch_advantages.gpg,
        log_ratio=None,
        surrogate=surrogates.policy_gradient,
        weights=weights.token_mean,
    )
