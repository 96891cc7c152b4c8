"""A random batch with all that an objective of the family may look at, and what becomes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import objectives
from grpo_jax.types import Batch, Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Example:
    """P prompts, G completions of each, T tokens; NaN wherever nothing may be read.

    Numbers are float64 and those of float32, so that one oracle serves both precisions.
    """

    mask: np.ndarray  # [P, G, T], as are those down to sum_sq_probs
    log_probs: np.ndarray
    old_log_probs: np.ndarray
    sampler_log_probs: np.ndarray
    ref_log_probs: np.ndarray
    entropy: np.ndarray
    values: np.ndarray
    sum_sq_probs: np.ndarray
    rewards: np.ndarray  # [P, G]; one is missing, the last group has one reward for all
    truncated: np.ndarray  # [P, G]
    rewards_by_function: np.ndarray  # [P, G, K]
    reward_weights: np.ndarray  # [K]
    step_rewards: np.ndarray  # [P, G, J]
    step_ends: np.ndarray  # [P, G, J]
    greedy_rewards: np.ndarray  # [P]


BY_TOKEN = ("mask", "log_probs", "old_log_probs", "sampler_log_probs", "ref_log_probs")
BY_TOKEN += ("entropy", "values", "sum_sq_probs")
BY_COMPLETION = ("rewards", "truncated", "rewards_by_function", "step_rewards", "step_ends")
WITHOUT_REWARD, EMPTY, LONE, WITH_HOLE, TRUNCATED = (1, 2), (1, 3), (0, 2), (0, 1), (1, 0)


def random_example(seed=0, *, shape=(3, 4, 7), drift=1.0, staleness=1.0, binary=False):
    """An example of at least two prompts and four completions.

    Args:
        seed: of all that is random.
        shape: P, G, T.
        drift: how far log-probabilities are from the old ones, about; 1 is beyond most bounds.
        staleness: likewise the old ones from the sampler's.
        binary: rewards of 0 and 1, both in every group but the last.
    """
    rng = np.random.default_rng(seed)
    prompts, _, num_tokens = shape
    mask = np.arange(num_tokens) < rng.integers(2, num_tokens + 1, size=shape[:2])[..., None]
    mask[WITH_HOLE] = (np.arange(num_tokens) < 2) | (np.arange(num_tokens) > 3)
    mask[LONE], mask[EMPTY], mask[TRUNCATED] = np.arange(num_tokens) == 0, False, True
    truncated = np.zeros(shape[:2], bool)
    truncated[TRUNCATED] = True

    def moved(log_probs, size):
        """Mostly by some tenths, now and then by about two, and some completions as a whole."""
        far = 2.0 * rng.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=shape)
        whole = 0.3 * rng.normal(size=shape[:2])[..., None]
        return np.minimum(log_probs + size * (0.3 * rng.normal(size=shape) + far + whole), -0.02)

    log_probs = -0.05 - 3.0 * rng.random(shape)
    old = moved(log_probs, drift)
    probs = np.exp(old)
    by_token = {
        "log_probs": log_probs,
        "old_log_probs": old,
        "sampler_log_probs": moved(old, staleness),
        "ref_log_probs": np.minimum(log_probs + 0.5 * rng.normal(size=shape), -0.02),
        "entropy": 2.0 * rng.random(shape),
        "values": rng.normal(size=shape),
        "sum_sq_probs": probs**2 + (1 - probs) ** 2 * rng.random(shape),
    }
    by_token = {name: np.where(mask, np.float32(x), np.nan) for name, x in by_token.items()}

    rewards = np.float32(rng.normal(size=shape[:2]))
    if binary:
        rewards = np.float32(rng.random(shape[:2]) < 0.5)
        rewards[:, 0], rewards[:, 1] = 1, 0
    rewards[-1] = rewards[-1, 0]
    by_function = np.float32(rng.normal(size=(*shape[:2], 2)))
    by_function[-1] = by_function[-1, 0]
    by_function[0, 0, 1] = np.nan
    step_ends = np.sort(rng.integers(0, num_tokens, size=(*shape[:2], 3)), axis=-1)
    step_rewards = np.float32(rng.normal(size=step_ends.shape))
    step_rewards[-1] = step_rewards[-1, 0, 0]
    step_rewards[0, 0, 2] = np.nan
    for x in (rewards, by_function, step_rewards):
        x[WITHOUT_REWARD] = np.nan
    return Example(
        mask=mask,
        **{name: x.astype(float) for name, x in by_token.items()},
        rewards=rewards.astype(float),
        truncated=truncated,
        rewards_by_function=by_function.astype(float),
        reward_weights=np.array([1.0, 0.5]),
        step_rewards=step_rewards.astype(float),
        step_ends=step_ends.astype(np.int32),
        greedy_rewards=np.float32(rng.normal(size=prompts)).astype(float),
    )


def replaced(example, names, change):
    """The example with `change(name, array)` in place of the named arrays."""
    new = {name: change(name, getattr(example, name)) for name in names}
    return dataclasses.replace(example, **new)


def widened(example, columns):
    """With this many columns of padding behind the tokens."""

    def pad(name, x):
        filling = False if name == "mask" else np.nan
        return np.pad(x, [(0, 0), (0, 0), (0, columns)], constant_values=filling)

    return replaced(example, BY_TOKEN, pad)


def reordered(example, prompts, members):
    """The prompts in another order, and the completions of each."""
    example = replaced(example, BY_TOKEN + BY_COMPLETION, lambda _, x: x[prompts][:, members])
    return replaced(example, ("greedy_rewards",), lambda _, x: x[prompts])


def prepared(objective: objectives.Objective, example: Example) -> Batch:
    """What `prepare` makes of it, given no more than the objective needs."""
    example = jax.tree.map(jnp.asarray, example)
    shape = example.mask.shape
    rollout = Rollout(
        prompt=jnp.zeros([shape[0], 2], jnp.int32),
        prompt_mask=jnp.ones([shape[0], 2], bool),
        completion=jnp.zeros(shape, jnp.int32),
        completion_mask=example.mask,
        sampler_log_probs=example.sampler_log_probs,
        support_log_mass=jnp.zeros(shape),
        truncated=example.truncated,
    )
    named = objective.needs - {"old_log_probs"}
    rewards = example.rewards
    if "rewards_by_function" in named:
        named = named - {"rewards_by_function"} | {"reward_weights"}
        rewards = example.rewards_by_function
    return objectives.prepare(
        objective,
        rollout,
        rewards,
        # An anchor that nothing looks at is refused.
        example.old_log_probs
        if not objective.sampler_anchor or objective.credits_by_policy
        else None,
        example.ref_log_probs if objective.needs_reference else None,
        **{name: getattr(example, name) for name in named},
    )


def weighed(objective: objectives.Objective, batch: Batch) -> Batch:
    """With the weights of its tokens, as an update attaches them before it cuts a batch."""
    mask = batch.rollout.completion_mask if batch.mask is None else batch.mask
    return dataclasses.replace(batch, weights=objective.weights(mask))


def loss_and_gradient(
    objective: objectives.Objective, log_probs: jax.Array, entropy: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Given no more than the objective needs."""
    return jax.value_and_grad(objective.loss)(
        log_probs,
        batch,
        entropy=entropy if objective.has_entropy_bonus else None,
        key=jax.random.key(3) if objective.needs_key else None,
    )


def assert_same(found, wanted, tolerance):
    """Of two pairs (loss, gradient): within so much of the order of the terms of each.

    Those of a loss are of the order of 1, and may cancel; those of a gradient are its entries.
    """
    for ours, theirs, order in zip(found, wanted, (1.0, 0.0), strict=True):
        order = max(order, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * order)
