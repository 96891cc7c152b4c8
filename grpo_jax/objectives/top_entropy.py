"""Beyond the 80/20 rule: only tokens of high entropy. arXiv:2506.01939, section 5."""

import dataclasses
from functools import partial

from grpo_jax.objectives.base import Objective
from grpo_jax.objectives.dapo import dapo
from grpo_jax.ops import selection


def top_entropy(
    *, entropy_share: float = 0.2, clip_eps_low: float = 0.2, clip_eps_high: float = 0.28
) -> Objective:
    """DAPO on the fifth of the tokens where the policy decides most.

        J = 1/n Σ over the tokens whose entropy is in the top share of the batch of DAPO's terms

    https://arxiv.org/abs/2506.01939

    Args:
        entropy_share: of the tokens of the batch, the paper's 20 %.
        clip_eps_low: DAPO's.
        clip_eps_high: DAPO's.

    Choice: entropies are those of the policy that sampled, over the whole step's tokens, so that
    neither mini-batches nor micro-batches change the selection; the mean is over the tokens left.

    >>> top_entropy().select[0].keywords
    {'share': 0.2}
    """
    whole = dapo(clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)
    return dataclasses.replace(whole, select=(partial(selection.top_entropy, share=entropy_share),))
