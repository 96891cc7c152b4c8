"""What an objective refuses: combinations that make no sense, settings that break their rule."""

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from grpo_jax.objectives.choices import (
    PLACES,
    Choice,
    call,
    check_names,
    function_of,
    name_of,
    names,
    settings_of,
)
from grpo_jax.ops import (
    corrections,
    ratios,
    references,
    regression,
    sequence_surrogates,
    weights,
)

if TYPE_CHECKING:
    from grpo_jax.objectives.base import Objective

# Sums over a sequence's tokens, under which a sequence's ratio counts once for each of its tokens.
_SUM_OVER_TOKENS = {
    weights.token_mean,
    weights.token_mean_of_parts,
    weights.prompt_mean,
    weights.seq_mean_token_sum,
}
_OF_A_SEQUENCE = {ratios.sequence, ratios.sequence_token, ratios.sequence_product}
ONE_LOSS_A_SEQUENCE = {regression.gvpo, sequence_surrogates.gmpo}
# Factors π_old/μ, bounded in one way or another.
_BY_RATIO = {
    corrections.truncated,
    corrections.masked,
    corrections.sequence_truncated,
    corrections.sequence_masked,
}


def check_objective(objective: "Objective") -> None:
    """Raises ValueError with the reason, unless an objective's choices go together."""
    for place in ("advantages", "surrogate", "weights"):
        if not callable(getattr(objective, place)):
            refuse(f"{place} is {getattr(objective, place)!r}", "give a function")
    for place in ("corrections", "select"):
        given = getattr(objective, place)
        if not isinstance(given, tuple):
            what = name_of(given) if callable(given) else repr(given)
            refuse(f"{place} is {what}", "give a tuple of functions")
    for place, choices in objective.choices().items():
        for choice in choices:
            check_names(place, choice)
    _check_kl(objective)
    _check_ratio(objective)
    if not 0 <= objective.entropy_coef < math.inf:
        refuse(f"entropy_coef is {objective.entropy_coef}", "it must be 0 or more, and finite")
    if objective.entropy_gate and not objective.entropy_controller:
        refuse("an entropy_gate without an entropy_controller", "give both")
    if objective.max_sampling_rounds < 1:
        refuse(
            f"max_sampling_rounds is {objective.max_sampling_rounds}",
            "it must be at least 1, which takes the groups as they come",
        )
    _try(objective)


def _check_kl(objective: "Objective") -> None:
    """What a KL term, or one in the reward, goes together with."""
    if not 0 <= objective.kl_coef < math.inf:
        refuse(f"kl_coef is {objective.kl_coef}", "it must be 0 or more (0: no reference)")
    if objective.kl_coef and objective.kl is None:
        refuse(f"kl_coef is {objective.kl_coef} without an estimate", "give kl=kl.k3")
    if not objective.kl_coef:
        for name in ("kl_controller", "reference", "kl_in_reward"):
            if getattr(objective, name):
                refuse(f"{name} with kl_coef 0", "there is no reference that it would act on")
    if not objective.kl_in_reward:
        return
    named = names(objective.advantages)
    if "token_penalty" not in named:
        credit = name_of(objective.advantages)
        why = "would leave it out"
        if named & {"values", "greedy_rewards"}:
            why = "compares with a value of rewards that are free of it"
        refuse(
            f"a KL in the reward, but {credit} {why}",
            "take a credit rule that names token_penalty, or kl_in_reward=False",
        )
    if objective.kl is not None and "token_log_ratio" in names(objective.kl):
        refuse(
            "a ratio-corrected KL in the reward",
            "its gradient flows through the ratio, and a reward has none: take kl.k1",
        )


def _check_ratio(objective: "Objective") -> None:
    """What a ratio goes together with."""
    surrogate = name_of(objective.surrogate)
    takes = "log_ratio" in names(objective.surrogate)
    if takes and objective.log_ratio is None:
        refuse(f"{surrogate} without a log_ratio", "give ratios.token or ratios.sequence")
    if not takes and objective.log_ratio is not None:
        refuse(
            f"{surrogate} takes no log_ratio: {name_of(objective.log_ratio)} would be ignored",
            "give log_ratio=None",
        )
    ratio = objective.log_ratio
    by_ratio = ratio is not None and function_of(ratio) in _OF_A_SEQUENCE
    by_sequence = by_ratio or function_of(objective.surrogate) in ONE_LOSS_A_SEQUENCE
    if function_of(objective.surrogate) is sequence_surrogates.gmpo and by_ratio:
        refuse(
            "gmpo with one ratio for the sequence",
            "it takes the mean over tokens itself: give log_ratio=ratios.token",
        )
    by_length = by_sequence and function_of(objective.weights) in _SUM_OVER_TOKENS
    if by_length and not objective.length_weighted:
        refuse(
            f"one ratio or loss for a sequence under {name_of(objective.weights)} counts it once "
            "for each of its tokens",
            "take weights.seq_mean_token_mean, or ask for it with length_weighted=True",
        )
    if objective.length_weighted and not by_length:
        refuse(
            "length_weighted without one ratio or loss for a sequence and weights that sum over "
            "tokens",
            "leave it out",
        )
    if objective.sampler_anchor and not objective.uses_anchor:
        refuse(f"sampler_anchor, but {surrogate} compares with no anchor", "leave it out")
    factors = [name_of(c) for c in objective.corrections if function_of(c) in _BY_RATIO]
    if len(factors) > 1:
        refuse(
            f"corrections by {' and '.join(factors)}",
            "each has the ratio of policy and sampler in it, which would count twice: take one",
        )
    if objective.sampler_anchor and objective.corrections:
        drift = {"old_log_probs", "sampler_log_probs"}
        for correction in objective.corrections:
            if drift <= names(correction):
                refuse(
                    f"sampler_anchor with {name_of(correction)}",
                    "the ratio is that to the sampler already, and would count twice",
                )


def check_ahead(objective: "Objective") -> None:
    """Whether completions may be sampled one step ahead, by the policy before the update.

    Raises:
        ValueError: nothing in the objective answers for that, or it samples by what it finds.
    """
    if objective.max_sampling_rounds > 1 or "greedy_rewards" in objective.needs:
        raise ValueError(
            "sampling ahead, but this objective samples again by the rewards that it finds "
            "(max_sampling_rounds, greedy_rewards); sample each step by itself"
        )
    if not objective.corrections and not objective.sampler_anchor:
        raise ValueError(
            "sampling ahead makes each step one step off-policy, and this objective has no "
            "correction for that; take one that has (tis, icepop, decoupled_ppo), or add one of "
            "ops.corrections"
        )


def check_adapters(objective: "Objective") -> None:
    """Whether the policy may be adapters beside frozen parameters.

    Raises:
        ValueError: the reference is an average, and one of adapters' two factors is not the average
            of what they add.
    """
    if objective.reference is not None and function_of(objective.reference) is references.polyak:
        raise ValueError(
            "the reference is an average (references.polyak), which adapters cannot hold: that of "
            "their factors is another policy; take references.refresh, or train without adapters"
        )


def _try(objective: "Objective") -> None:
    """Traces choices on made-up shapes, so that a setting breaks its rule here and now.

    Ours only: they take any shape, and a function of yours need not.
    """
    settings = [
        settings_of(choice) for choices in objective.choices().values() for choice in choices
    ]

    def size(name: str, smallest: int) -> int:
        """Settings that count prompts or completions need as many."""
        counts = [s[name] for s in settings if isinstance(s.get(name), int)]
        return max([smallest, *counts])

    num_prompts, group_size = size("num_parts", 1), size("k", 2)
    shapes = {
        "mask": (jnp.bool_, 3),
        "truncated": (jnp.bool_, 2),
        "lengths": (jnp.int32, 2),
        "step_ends": (jnp.int32, 3),
        "greedy_rewards": (jnp.float32, 1),
        "rewards": (jnp.float32, 2),
    }
    axes = (num_prompts, group_size, 2)
    every = frozenset().union(*PLACES.values()) - {"key", "reward_weights", "advantages"}
    arrays: dict[str, Any] = {}
    for name in every:
        dtype, rank = shapes.get(name, (jnp.float32, 3))
        arrays[name] = jax.ShapeDtypeStruct(axes[:rank], dtype)
    arrays["advantages"] = jax.ShapeDtypeStruct((*axes[:2], 1), jnp.float32)
    arrays["reward_weights"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    arrays["key"] = jax.eval_shape(lambda: jax.random.key(0))
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    rules = [
        (objective.reference, ({"w": scalar}, {"w": scalar}, jax.ShapeDtypeStruct((), jnp.int32)))
    ]
    rules += [(objective.kl_controller, (scalar, scalar))]
    rules += [
        (rule, (scalar, scalar)) for rule in (objective.entropy_controller, objective.entropy_gate)
    ]
    try:
        for place, choices in objective.choices().items():
            given = {name: arrays[name] for name in PLACES[place]}
            for choice in filter(_is_ours, choices):
                jax.eval_shape(functools.partial(call, choice), given)
        for rule, args in rules:
            if rule is not None and _is_ours(rule):
                jax.eval_shape(rule, *args)
    except ValueError as error:  # without what JAX says of its tracebacks
        raise ValueError(str(error)) from None


def _is_ours(choice: Choice) -> bool:
    return function_of(choice).__module__.startswith("grpo_jax.")


def check_coefs(coefs: Mapping[str, jax.Array]) -> None:
    """Raises ValueError for a coefficient that no objective has."""
    unknown = sorted(coefs.keys() - {"kl", "entropy", "entropy_acting"})
    if unknown:
        refuse(f"coefs hold {unknown[0]!r}", "there are kl, entropy and entropy_acting")


def refuse(what: str, way_out: str) -> None:
    """Raises ValueError: what is wrong, and what to do instead."""
    raise ValueError(f"{what}; {way_out}")
