"""Grouped sampling: the prompt is read once, its G completions are decoded side by side."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from grpo_jax.ops import draws, support
from grpo_jax.ops.log_probs import token_log_probs
from grpo_jax.policy import Policy, Prefix
from grpo_jax.types import Params, Prompts, Rollout


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Plain values: compiled into the sampler.

    Attributes:
        max_new_tokens: T; a completion that has not ended by then is truncated.
        temperature: logits are divided by it; 0 takes the likeliest token (the greedy policy,
            whose log-probability of its own token is 0).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with this share of the probability.
        min_p: keep tokens at least this many times as likely as the likeliest.
        keep_support: put on record which tokens could be drawn, V / 8 bytes a token, so that
            training can renormalise over them (DeepSeek-V3.2, arXiv:2512.02556).
        stop_ids: all of the model's end tokens. The one drawn belongs to the completion.
        pad_id: written after the end; masks come from lengths, so it may equal an end token.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    keep_support: bool = False
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0

    def __post_init__(self):
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "a number of tokens, or 0 to keep all"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 keeps all)"),
            "min_p": (0 <= self.min_p < 1, "at least 0 and below 1 (0 keeps all)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {rule}")
        if self.keep_support and not (self.cuts and self.temperature > 0):
            raise ValueError(
                "keep_support is True, but nothing is cut away that could be kept on record; set "
                "top_k, top_p or min_p and a temperature above 0, or leave it out"
            )

    @property
    def cuts(self) -> bool:
        """Whether tokens are taken out of the support."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def prompt_keys(key: jax.Array, first: jax.Array | int, num_prompts: int) -> jax.Array:
    """A key for each prompt, from its place in the stream of prompts; [P] keys.

    Prompt number n of a run gets the same key whatever batch it falls into.
    """
    return jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(num_prompts))


@functools.partial(jax.jit, static_argnames=("policy", "group_size", "sampling"))
def sample_groups(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    keys: jax.Array,
    *,
    group_size: int,
    sampling: Sampling,
) -> Rollout:
    """Samples `group_size` completions of each prompt, as one program.

    Token t of completion g of a prompt is a function of that prompt, its key, g and t: neither
    the other prompts nor their padding have a part in it, up to the rounding of matrix products.
    Decoding stops when every row has ended; until then, those that have keep their place
    (`continuous_batching.sample_continuously` gives it to others).

    Args:
        policy: the network.
        params: its parameters.
        prompts: P prompts.
        keys: [P] typed PRNG keys, one a prompt (`prompt_keys`).
        group_size: G.
        sampling: how tokens are drawn.

    Returns:
        P groups of G completions, with the log-probabilities that they were drawn with.
    """
    params = policy.read_often(params)
    shape = (prompts.tokens.shape[0], group_size, sampling.max_new_tokens)
    prefix, last_hidden = policy.prefill(params, prompts.tokens, prompts.mask)
    cache = policy.init_cache(prefix, group_size, sampling.max_new_tokens - 1)
    keys_of_rows = row_keys(keys, jnp.broadcast_to(jnp.arange(group_size), shape[:2]))
    stop_ids = jnp.array(sampling.stop_ids, jnp.int32)

    def write(t, hidden, drawn, alive):
        """Draws token t of every row and writes those of the rows still alive."""
        logits = policy.unembed(params, hidden).astype(jnp.float32)
        token, log_prob, log_mass, kept = draw_tokens(
            logits, keys_of_rows, jnp.full(shape[:2], t), sampling
        )
        token = jnp.where(alive, token, sampling.pad_id)
        values = [token, alive, jnp.where(alive, log_prob, 0.0), jnp.where(alive, log_mass, 0.0)]
        if sampling.keep_support:
            values.append(support.pack(kept & alive[..., None]))
        drawn = tuple(x.at[:, :, t].set(v) for x, v in zip(drawn, values, strict=True))
        return drawn, alive & ~jnp.isin(token, stop_ids)

    def unfinished(carry):
        t, _, alive, _, _ = carry
        return (t < sampling.max_new_tokens) & alive.any()

    def decode(carry):
        t, drawn, alive, cache, routing = carry
        last = jax.lax.dynamic_slice_in_dim(drawn[0], t - 1, 1, axis=2)
        hidden, cache = policy.extend(params, prefix, last, cache)
        if routing is not None:
            routing = routing.at[:, :, t - 1].set(cache.routing[:, :, 0])
        drawn, alive = write(t, hidden[:, :, 0], drawn, alive)
        return t + 1, drawn, alive, cache, routing

    drawn = (
        jnp.full(shape, sampling.pad_id, jnp.int32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    if sampling.keep_support:
        vocab_size = jax.eval_shape(policy.unembed, params, last_hidden).shape[-1]
        drawn += (jnp.zeros((*shape, -(-vocab_size // 8)), jnp.uint8),)
    first_hidden = jnp.broadcast_to(last_hidden[:, None], (*shape[:2], last_hidden.shape[-1]))
    drawn, alive = write(0, first_hidden, drawn, jnp.ones(shape[:2], bool))
    routing = no_routing(prefix, shape)
    if sampling.max_new_tokens > 1:
        carry = (jnp.int32(1), drawn, alive, cache, routing)
        _, drawn, alive, _, routing = jax.lax.while_loop(unfinished, decode, carry)
    completion, mask, log_probs, log_mass, *kept = drawn
    return Rollout(
        prompts.tokens,
        prompts.mask,
        completion,
        mask,
        log_probs,
        log_mass,
        alive,
        kept[0] if kept else None,
        prompt_routing=None if routing is None else prefix.routing,
        routing=None if routing is None else jnp.where(followed(mask), routing, 0),
    )


def followed(mask: jax.Array) -> jax.Array:
    """Tokens that another one follows, [P, G, T, 1, 1] bool."""
    return jnp.pad(mask[:, :, 1:], [(0, 0), (0, 0), (0, 1)])[..., None, None]


def no_routing(prefix: Prefix, shape: tuple[int, ...]) -> jax.Array | None:
    """A place for the experts of completions [P, G, T], where the network keeps them, else None."""
    like = getattr(prefix, "routing", None)
    return None if like is None else jnp.zeros([*shape, *like.shape[-2:]], like.dtype)


def draw_tokens(
    logits: jax.Array, row_keys: jax.Array, t: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Token t of each row, by its key and t alone.

    Args:
        logits: [P, G, V] float32.
        row_keys: [P, G] typed PRNG keys.
        t: [P, G] int, which token of its completion is drawn.
        sampling: how.

    Returns:
        the token [P, G] int32; its log-probability as drawn; the log of the probability that the
        support had before it was cut out; and that support [P, G, V] bool.
    """
    if sampling.temperature == 0:
        token = logits.argmax(axis=-1).astype(jnp.int32)
        certain = jnp.zeros(token.shape, jnp.float32)
        whole = token_log_probs(logits, token)
        return token, certain, whole, logits > -jnp.inf
    logits = logits / sampling.temperature
    kept = draws.keep_support(
        logits, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p
    )
    uniform = jax.vmap(jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t))))
    token, log_prob = draws.inverse_cdf(kept, uniform(row_keys, t))
    if not sampling.cuts:
        return token, log_prob, jnp.zeros_like(log_prob), kept > -jnp.inf
    return token, log_prob, token_log_probs(logits, token) - log_prob, kept > -jnp.inf


def row_keys(keys: jax.Array, members: jax.Array) -> jax.Array:
    """A key for each completion, from its prompt's [P] and its place in the group [P, G]."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, members)
