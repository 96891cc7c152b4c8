"""An objective: one field for each question that a paper of the family answers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.objectives.checks import ONE_LOSS_A_SEQUENCE, check_coefs, check_objective, refuse
from grpo_jax.objectives.choices import PLACES, Choice, call, function_of, name_of, names
from grpo_jax.objectives.measures import Measures, measure
from grpo_jax.ops import covariance, ratios, returns
from grpo_jax.ops import kl as kl_ops
from grpo_jax.types import Batch

# Statistics of all tokens of an optimizer step: of a part of it they would be others.
_OF_THE_WHOLE_STEP = {covariance.clip_cov, covariance.kl_cov}


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """Choices that compose into `sum(weights * (corrections * surrogate + β kl - c entropy))`.

    A choice is a function of named arrays, and is given those that its signature names
    (`choices.PLACES` lists what there is in each place); settings are bound with
    `functools.partial`. P prompts, G completions of each, T tokens.

    Attributes:
        advantages: rewards [P, G] (and what else it names) -> [P, G], or [P, G, T] by token.
        surrogate: log_ratio or log_probs, advantages, ... -> per-token losses [P, G, T or 1].
        weights: mask [P, G, T] of a whole optimizer step -> token weights [P, G, T].
        log_ratio: log_probs, old_log_probs, mask -> [P, G, T or 1]; None where the surrogate takes
            no ratio.
        corrections: factors of the surrogate (not of KL or entropy) that answer for a sampler which
            is not the policy at the start of the update; they are multiplied, without gradient.
        select: rules mask -> mask, one after the other: which tokens have weight at all. Ratios and
            group statistics still see the whole completions.
        kl: log_probs, ref_log_probs, ... -> per-token estimates [P, G, T] in nats, or None.
        kl_coef: β. At 0 no reference is loaded and none is computed.
        kl_in_reward: the KL is taken from the reward when the credit is computed (the advantages
            name `token_penalty`), and the loss has no such term.
        kl_controller: (coef, kl) -> coef, after each step; None keeps it.
        reference: (ref_params, params, step) -> ref_params, after each step; None keeps the first.
        entropy_coef: c of the entropy bonus, from the full distribution at each token.
        entropy_controller: (coef, entropy) -> coef, after each step; None keeps it.
        entropy_gate: (coef, entropy) -> what of it acts in the next step; None is all.
        sampler_anchor: the ratio is that to the sampler's own report, and there is no other anchor.
        length_weighted: asks for a sequence ratio under weights that sum over tokens, which counts
            a sequence once for each of its tokens (LUSPO).
        max_sampling_rounds: phases of sampling that a step may take to fill itself with groups
            that have a signal; 1 takes the groups as they come.

    Raises:
        ValueError: a combination that makes no sense, or a setting that breaks its rule; says why.
    """

    advantages: Choice
    surrogate: Choice
    weights: Choice
    log_ratio: Choice | None = ratios.token
    corrections: tuple[Choice, ...] = ()
    select: tuple[Choice, ...] = ()
    kl: Choice | None = None
    kl_coef: float = 0.0
    kl_in_reward: bool = False
    kl_controller: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    reference: Callable[[Any, Any, jax.Array], Any] | None = None
    entropy_coef: float = 0.0
    entropy_controller: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    entropy_gate: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    sampler_anchor: bool = False
    length_weighted: bool = False
    max_sampling_rounds: int = 1

    def __post_init__(self):
        check_objective(self)

    # -- what it asks for ----------------------------------------------------------------------

    def choices(self) -> dict[str, tuple[Choice, ...]]:
        """The choices in each place."""
        found = {place: getattr(self, place) for place in PLACES}
        return {
            place: choice if isinstance(choice, tuple) else (choice,)
            for place, choice in found.items()
            if choice is not None
        }

    @property
    def names_of_credit(self) -> frozenset[str]:
        """Arrays that the credit and the selection look at, needed or not."""
        return frozenset().union(*(names(choice) for choice in (self.advantages, *self.select)))

    @property
    def needs(self) -> frozenset[str]:
        """Arrays that `prepare` must be given beside the rollout, its rewards and the log-probs."""
        choices = (self.advantages, *self.select)
        required = frozenset().union(*(names(choice, required=True) for choice in choices))
        given = {"rewards", "mask", "lengths", "truncated", "token_penalty", "advantages"}
        needed = required - given
        return needed | {"old_log_probs"} if self.kl_in_reward else needed

    @property
    def needs_old(self) -> bool:
        """Whether credit or selection look at the policy that sampled, however many updates."""
        return bool(self.needs & {"old_log_probs", "entropy", "sum_sq_probs"})

    @property
    def credits_by_policy(self) -> bool:
        """Whether credit or selection look at `old_log_probs`."""
        return self.kl_in_reward or "old_log_probs" in self.names_of_credit

    @property
    def uses_anchor(self) -> bool:
        """Whether the loss compares the policy with the one that the step started from."""
        named = names(self.surrogate).union(*(names(choice) for choice in self.corrections))
        ratio_corrected = self.kl is not None and "token_log_ratio" in names(self.kl)
        return bool(named & {"log_ratio", "old_log_probs"}) or ratio_corrected

    @property
    def selects_by_signal(self) -> bool:
        """Whether a group without a signal is left out or sampled anew."""
        by_rewards = any("rewards" in names(rule) for rule in self.select)
        return by_rewards or self.max_sampling_rounds > 1

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL term."""
        return self.kl_coef > 0

    @property
    def compares_within_group(self) -> bool:
        """Whether a group of one completion would have no signal."""
        alone = names(self.advantages, required=True) & {"greedy_rewards", "values"}
        return not alone and function_of(self.advantages) is not returns.reinforce_plus_plus

    @property
    def has_entropy_bonus(self) -> bool:
        """Whether the loss looks at the entropy, be it later on in the run."""
        return self.entropy_coef > 0 or self.entropy_controller is not None

    @property
    def of_the_whole_step(self) -> bool:
        """Whether the surrogate is a statistic of all tokens of an optimizer step."""
        return function_of(self.surrogate) in _OF_THE_WHOLE_STEP

    @property
    def needs_key(self) -> bool:
        """Whether the surrogate draws random numbers."""
        return "key" in names(self.surrogate)

    def initial_coefs(self) -> dict[str, jax.Array]:
        """Coefficients that follow a measurement, as the state of a run begins with them."""
        found = {}
        if self.kl_controller:
            found["kl"] = jnp.float32(self.kl_coef)
        if self.entropy_controller:
            found["entropy"] = jnp.float32(self.entropy_coef)
            found["entropy_acting"] = jnp.float32(self.entropy_coef)
        return found

    def adapted(
        self, coefs: Mapping[str, jax.Array], measured: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The coefficients after a step that measured `kl` and `entropy`."""
        found = {}
        if self.kl_controller:
            found["kl"] = self.kl_controller(coefs["kl"], measured["kl"])
        if self.entropy_controller:
            entropy = measured["entropy"]
            found["entropy"] = self.entropy_controller(coefs["entropy"], entropy)
            gate = self.entropy_gate or (lambda coef, _: coef)
            found["entropy_acting"] = gate(found["entropy"], entropy)
        # Copies: the state is donated, and no buffer can be donated twice.
        return {name: jnp.array(value, jnp.float32) for name, value in found.items()}

    # -- the loss ------------------------------------------------------------------------------

    def loss(
        self,
        log_probs: jax.Array,
        batch: Batch,
        *,
        entropy: jax.Array | None = None,
        support_log_mass: jax.Array | None = None,
        key: jax.Array | None = None,
        coefs: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """The scalar to minimise.

        Args:
            log_probs: [P, G, T] float, of the policy being trained; gradients flow through these.
            batch: what `prepare` made, or a part of it that carries the whole's weights.
            entropy: [P, G, T] float, of the full distribution; needed with an entropy bonus.
            support_log_mass: [P, G, T] float, log of the probability of the support that was
                sampled from and is kept; ratios then compare distributions on that support, the
                KL term still the whole ones.
            key: for a surrogate that draws random numbers.
            coefs: as controllers have left them, see `initial_coefs`.

        Returns:
            scalar float32 (float64 for float64 input): sum over tokens of weight times per-token
            loss. Values of padding, NaN included, change neither it nor its gradient.

        Raises:
            ValueError: something it needs is not given, or has another shape than the mask.

        >>> from grpo_jax.objectives import dr_grpo, prepare
        >>> from grpo_jax.types import Rollout
        >>> mask = jnp.array([[[True, True], [True, False]]])
        >>> objective = dr_grpo(max_new_tokens=2)
        >>> batch = prepare(objective, Rollout.from_arrays(mask), jnp.array([[1.0, 0.0]]))
        >>> log_probs = jnp.full([1, 2, 2], -0.7)
        >>> jax.grad(objective.loss)(log_probs, batch).tolist()
        [[[-0.125, -0.125], [0.125, 0.0]]]
        """
        return self._loss(log_probs, batch, entropy, support_log_mass, key, coefs)[0]

    def loss_and_measures(
        self,
        log_probs: jax.Array,
        batch: Batch,
        *,
        entropy: jax.Array | None = None,
        support_log_mass: jax.Array | None = None,
        key: jax.Array | None = None,
        coefs: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, Measures]:
        """The loss, and what is worth watching beside it, in a form that adds up over parts."""
        loss, measures = self._loss(log_probs, batch, entropy, support_log_mass, key, coefs)
        return loss, jax.lax.stop_gradient(measures())

    def _loss(
        self,
        log_probs: jax.Array,
        batch: Batch,
        entropy: jax.Array | None,
        support_log_mass: jax.Array | None,
        key: jax.Array | None,
        coefs: Mapping[str, jax.Array] | None,
    ) -> tuple[jax.Array, Callable[[], Measures]]:
        """The loss, and its measures when they are asked for: they cost more than it does."""
        rollout, coefs = batch.rollout, coefs or {}
        mask = rollout.completion_mask
        given = {"log_probs": log_probs, "entropy": entropy, "support_log_mass": support_log_mass}
        given |= {"sampler_log_probs": rollout.sampler_log_probs}
        given |= {"old_log_probs": batch.old_log_probs, "ref_log_probs": batch.ref_log_probs}
        for name, array in given.items():
            if array is not None and array.shape != mask.shape:
                raise ValueError(
                    f"{name} has shape {array.shape}; the completions have [P, G, T] = {mask.shape}"
                )
        check_coefs(coefs)
        counted = mask if batch.mask is None else batch.mask
        weights = call(self.weights, {"mask": counted}) if batch.weights is None else batch.weights
        # Masked first: junk in the padding must not reach exp, nor its gradient.
        whole = jnp.where(mask, log_probs, 0.0)
        drawn = whole
        if support_log_mass is not None:
            drawn = whole - jnp.where(mask, support_log_mass, 0.0)
        sampler = rollout.sampler_log_probs
        if self.sampler_anchor and sampler is None:
            raise ValueError("the anchor is the sampler, but the rollout has no sampler_log_probs")
        old = sampler if self.sampler_anchor else batch.old_log_probs
        old = jax.lax.stop_gradient(drawn) if old is None else jnp.where(mask, old, 0.0)
        arrays = {
            "old_log_probs": old,
            "sampler_log_probs": None if sampler is None else jnp.where(mask, sampler, 0.0),
            "advantages": batch.advantages,
            "mask": mask,
            "key": key,
        }

        by_token = batch.advantages.shape[-1] > 1
        if by_token and function_of(self.surrogate) in ONE_LOSS_A_SEQUENCE:
            refuse(
                f"advantages by token with {name_of(self.surrogate)}, one loss for a sequence",
                "take credit by completion",
            )

        def policy_term(drawn: jax.Array) -> jax.Array:
            given = arrays | {"log_probs": drawn}
            if self.log_ratio is not None:
                given["log_ratio"] = call(self.log_ratio, given)
                if given["log_ratio"].shape[-1] < batch.advantages.shape[-1]:
                    refuse(
                        "advantages by token with one ratio for the sequence",
                        "take log_ratio=ratios.sequence_token, which has the same value",
                    )
            return call(self.surrogate, given)

        losses = policy_term(drawn)
        for correction in self.corrections:
            factor = call(correction, arrays | {"log_probs": jax.lax.stop_gradient(drawn)})
            # Either may be as large as e^80; their product must not leave the type.
            most = jnp.finfo(losses.dtype).max / 1e6
            losses = jnp.clip(losses * jax.lax.stop_gradient(factor), -most, most)
        token_log_ratio = ratios.token(drawn, old, mask)
        pair = {}
        if batch.ref_log_probs is not None:
            pair = {
                "log_probs": whole,
                "ref_log_probs": jnp.where(mask, batch.ref_log_probs, 0.0),
            }
        estimate = None
        if self.kl is not None and pair:
            given = pair | {"token_log_ratio": token_log_ratio, "mask": mask}
            estimate = call(self.kl, given)
        if self.kl_coef and not self.kl_in_reward:
            if estimate is None:
                raise ValueError(
                    f"kl_coef is {self.kl_coef}, but the batch holds no ref_log_probs; "
                    "compute them with completion_log_probs under the reference's parameters"
                )
            losses = losses + coefs.get("kl", self.kl_coef) * estimate
        if self.has_entropy_bonus:
            if entropy is None:
                raise ValueError(
                    "the loss has an entropy bonus, but there is no entropy [P, G, T]; "
                    "completion_log_probs(..., with_entropy=True, entropy_gradient=True) has it"
                )
            bonus = coefs.get("entropy_acting", self.entropy_coef) * jnp.where(mask, entropy, 0.0)
            losses = losses - bonus
        # A factor of weight 0 does not take away an infinite loss: what is not counted is cut out.
        loss = jnp.sum(weights * jnp.where(counted, losses, 0.0))

        def measures() -> Measures:
            estimates = {}
            if pair:
                estimates = {"kl/k1": kl_ops.k1(**pair), "kl/k3": kl_ops.k3(**pair)}
            if estimate is not None:
                estimates["kl"] = estimate
            has_region = names(self.surrogate) & {"log_ratio", "old_log_probs"}
            region = policy_term if has_region else None
            return measure(counted, drawn, token_log_ratio, batch.advantages, region, estimates)

        return loss, measures
