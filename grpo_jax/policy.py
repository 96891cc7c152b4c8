"""Policy: what the algorithm asks of a network, and what a network says of given tokens."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from grpo_jax.memory import head_chunk_tokens
from grpo_jax.ops.log_probs import TokenStats, chunked
from grpo_jax.ops.routing import load_balance
from grpo_jax.parts import in_parts, joined
from grpo_jax.types import Params, Rollout

Prefix = Any
"""What a network keeps of the prompts (keys and values [P, ...] per layer); a pytree."""
Cache = Any
"""What it keeps of the completions while decoding (prompt not included); a pytree."""


class Extend(Protocol):
    def __call__(
        self, params: Params, prefix: Prefix, tokens: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A network as pure functions over a parameter tree.

    Attributes:
        prefill: (params, tokens [P, L], mask [P, L]) -> prefix, last hidden state [P, D]. The
            prompt is read once for its whole group. A network that keeps the routing of its experts
            has it as `routing` of the prefix and of the cache, and both functions take `routing`.
        extend: (params, prefix, tokens [P, G, S], cache=None) -> hidden [P, G, S, D], cache. The
            tokens follow the prompt, or what the cache holds already; a token sees its prompt and
            its own completion up to itself. One function decodes (S = 1, a cache) and scores
            (S = T, none), so that sampler and scorer are one graph. Without a cache, what a network
            of experts says beside (`models.experts.Routed`) takes its place.
        unembed: (params, hidden [..., D]) -> logits [..., V].
        init_cache: (prefix, group_size, num_tokens) -> an empty cache of that many slots.
        repack: (cache, lanes [P', G'] int32, rows [P', G'] int32, kept [P', G'] bool, num_tokens)
            -> a cache whose completion [p, g] goes on from [lanes, rows][p, g] of the old one, or
            is empty where not kept, with `num_tokens` slots, enough for the longest. An empty place
            is as `init_cache` makes it and may go to another prompt's completion, so nothing of a
            prompt lives in the cache alone: `extend` has its prefix. None where a network cannot:
            its finished completions then keep their place (`continuous_batching`).
        cast: params -> params in the types that products read them in, done once before a loop
            reads them for each token. None where they are read as they are.
        with_noise: (params, key) -> params with which one pass of training draws at random
            (dropout). None where none does.
    """

    prefill: Callable[..., tuple[Prefix, jax.Array]]
    extend: Extend
    unembed: Callable[[Params, jax.Array], jax.Array]
    init_cache: Callable[[Prefix, int, int], Cache]
    repack: Callable[[Cache, jax.Array, jax.Array, jax.Array, int], Cache] | None = None
    cast: Callable[[Params], Params] | None = None
    with_noise: Callable[[Params, jax.Array], Params] | None = None

    def read_often(self, params: Params) -> Params:
        """The parameters cast, and kept from being cast again in each round of a loop."""
        cast = self.cast(params) if self.cast else params
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(cast), strict=False)
        same = all(before is after for before, after in pairs)
        return params if same else jax.lax.optimization_barrier(cast)


def predicting_hidden(policy: Policy, params: Params, rollout: Rollout) -> tuple[jax.Array, Any]:
    """The state in which each token of a rollout was chosen, [P, G, T, D]; what else `extend` says.

    The prompt predicts the first token; each token predicts the next; the last predicts none.
    """
    told: dict[str, Any] = {}
    if rollout.prompt_routing is not None:
        told = {"routing": rollout.prompt_routing}
    prefix, last_hidden = policy.prefill(params, rollout.prompt, rollout.prompt_mask, **told)
    num_prompts, group_size, num_tokens = rollout.completion.shape
    first = jnp.broadcast_to(
        last_hidden[:, None, None], (num_prompts, group_size, 1, last_hidden.shape[-1])
    )
    if num_tokens == 1:
        return first, None
    told = {} if rollout.routing is None else {"routing": rollout.routing[:, :, :-1]}
    hidden, said = policy.extend(params, prefix, rollout.completion[:, :, :-1], **told)
    return jnp.concatenate([first, hidden], axis=2), said


@functools.partial(
    jax.jit,
    static_argnames=(
        "policy",
        "temperature",
        "with_entropy",
        "entropy_gradient",
        "with_sum_sq_probs",
        "with_balance",
        "chunk_tokens",
        "groups_at_once",
    ),
)
def completion_log_probs(
    policy: Policy,
    params: Params,
    rollout: Rollout,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
    with_sum_sq_probs: bool = False,
    with_balance: bool = False,
    chunk_tokens: int = 0,
    groups_at_once: int = 0,
) -> TokenStats:
    """What a policy says of a rollout's completion tokens: old, reference and current alike.

    Args:
        policy: the network.
        params: its parameters; gradients flow to them.
        rollout: P groups of G completions.
        temperature: logits are divided by it, as the sampler divided them.
        with_entropy: also the entropy of the distribution at each token.
        entropy_gradient: gradients flow through the entropy, too.
        with_sum_sq_probs: also the sum of squared probabilities at each token.
        with_balance: also [P, G], how unevenly the tokens of each completion fall on experts.
        chunk_tokens: tokens whose logits are held at once; 0 chooses by the memory of the machine.
        groups_at_once: groups that go through the network together; 0 is all.

    Returns:
        `log_probs` [P, G, T] float32 in nats under the whole distribution, and what was asked for
        beside them, else None; `support_log_mass` where the rollout kept the support that it was
        sampled from (`drawn` is then renormalised over it). All are 0 outside `completion_mask`.

    Raises:
        ValueError: `temperature` is not positive (the greedy policy has no finite ones),
            `groups_at_once` negative, or a balance of experts asked of a network without.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}; log-probabilities need one above 0 "
            "(temperature 0 is the greedy policy: sample with it, do not train on it)"
        )
    if groups_at_once < 0:
        raise ValueError(f"groups_at_once is {groups_at_once}; it must be at least 1, or 0 for all")
    if 0 < groups_at_once < len(rollout.prompt):
        said = functools.partial(
            completion_log_probs,
            policy,
            params,
            temperature=temperature,
            with_entropy=with_entropy,
            entropy_gradient=entropy_gradient,
            with_sum_sq_probs=with_sum_sq_probs,
            with_balance=with_balance,
            chunk_tokens=chunk_tokens,
        )
        return joined(jax.lax.map(said, in_parts(rollout, groups_at_once)), len(rollout.prompt))
    hidden, routed = predicting_hidden(policy, params, rollout)
    if not chunk_tokens:
        vocab_size = jax.eval_shape(policy.unembed, params, hidden[0, 0, 0]).shape[-1]
        chunk_tokens = head_chunk_tokens(vocab_size)
    stats = chunked(
        lambda h: policy.unembed(params, h).astype(jnp.float32) / temperature,
        hidden,
        rollout.completion,
        support=rollout.support,
        chunk_tokens=chunk_tokens,
        with_entropy=with_entropy,
        entropy_gradient=entropy_gradient,
        with_sum_sq_probs=with_sum_sq_probs,
    )
    mask = rollout.completion_mask
    stats = jax.tree.map(lambda x: jnp.where(mask, x, 0.0), stats)
    if not with_balance or mask.shape[-1] == 1:
        return stats
    if routed is None:
        raise ValueError("with_balance is True, but the network has no experts; leave it out")
    # Of tokens that another follows: no others are on record where routing is.
    return stats._replace(balance=load_balance(routed.scores, routed.chosen, mask[:, :, 1:]))
