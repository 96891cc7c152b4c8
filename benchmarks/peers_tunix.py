"""One GRPO step in Tunix, timed: `python -m benchmarks.peers_tunix JOB`, inside its environment.

Measured: whole steps of `GRPOLearner.train` over an `RLCluster`, as a user runs it: its Llama, its
vanilla rollout, its reference, loss and trainer. Nothing of it is replaced; methods are timed.

What it does that others do not, or otherwise:

- The prompt is repeated G times before anything is computed: sampling, reference and training
  read P * G * (L + T) tokens.
- Its Llama makes the logits of every position, the prompt's as well, and drops those afterwards.
- It computes the entropy of each token while training, to log it.
- Its sampler takes T decoding steps after the prompt; the last draws a token that nobody reads.
- Its Llama rotates positions with theta 1e6, whatever the config says: no matter for time.
- It starts each rollout from the same random key: here no matter for time either.
- With one update a step it takes the log-probabilities of the update for the old ones, as TRL
  does: the policy is not scored a second time.

Settings, for speed: a key-value cache of exactly L + T, no rematerialisation (its default), no
gradient accumulation unless there are micro-batches, no top-k or top-p. The rows of a micro-batch
are whole groups.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster as clusters
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

from benchmarks import peers_clock


class NumberTokenizer:
    """The number i is token i; no token begins a text, and the end token is never drawn."""

    def __init__(self, end_id: int):
        self.end_id = end_id

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return self.end_id

    def pad_id(self) -> int:
        return self.end_id


def random_model(job: peers_clock.Job, seed: int) -> llama.Llama3:
    """Tunix's Llama of the shape; random where Tunix has zeros, in its MLPs, and as small."""
    shape = job.shape
    config = llama.ModelConfig(
        num_layers=shape["num_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["num_kv_heads"],
        rope_theta=shape["rope_theta"],
        norm_eps=shape["norm_eps"],
        weight_tying=shape["tie_embeddings"],
    )
    model = llama.Llama3(config, rngs=nnx.Rngs(params=seed))
    draw = np.random.default_rng(seed)

    def redraw(weight: jax.Array) -> jax.Array:
        if weight.ndim == 1:  # a norm's
            return weight
        return jnp.asarray(0.02 * draw.standard_normal(weight.shape, np.float32))

    nnx.update(model, jax.tree.map(redraw, weights(model)))
    return model


def make_cluster(job: peers_clock.Job) -> clusters.RLCluster:
    """Policy, rollout and frozen reference on one device; the first two share their arrays."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    rollout = base_rollout.RolloutConfig(
        max_prompt_length=job.prompt_len,
        max_tokens_to_generate=job.new_tokens,
        kv_cache_size=job.prompt_len + job.new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        eos_tokens=[job.end_id],
    )
    micro_prompts = job.prompts // job.micro_batches
    training = clusters.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6)),
        eval_every_n_steps=job.all_steps + 1,
        max_steps=job.all_steps,
        mini_batch_size=job.prompts,
        # Left out where it is all: with one micro-batch it would still keep sums of gradients.
        train_micro_batch_size=micro_prompts if job.micro_batches > 1 else None,
        rollout_micro_batch_size=job.prompts,
        compute_logps_micro_batch_size=micro_prompts,
    )
    roles = (clusters.Role.ACTOR, clusters.Role.ROLLOUT, clusters.Role.REFERENCE)
    return clusters.RLCluster(
        actor=random_model(job, seed=0),
        reference=random_model(job, seed=0),
        tokenizer=NumberTokenizer(job.end_id),
        cluster_config=clusters.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            rollout_config=rollout,
            training_config=training,
        ),
    )


def reward_each(prompts, completions, **_) -> list[float]:
    return [peers_clock.reward(completion) for completion in completions]


def make_learner(job: peers_clock.Job) -> grpo_learner.GRPOLearner:
    """One update for each P * G completions, KL term k3."""
    algorithm = grpo_learner.GRPOConfig(
        num_generations=job.group,
        num_iterations=1,
        beta=0.04,
        kl_loss_mode="low_var_kl",
    )
    return grpo_learner.GRPOLearner(
        rl_cluster=make_cluster(job), algo_config=algorithm, reward_fns=reward_each
    )


def check_work(job: peers_clock.Job, learner: grpo_learner.GRPOLearner) -> None:
    """Has the learner assert, at each step, that it does the work it is said to do."""
    sample_and_score, cluster = learner._generate_and_compute_advantage, learner.rl_cluster
    update = cluster.update_actor

    def check_shapes(rows: int, batch: grpo_learner.TrainExample) -> None:
        prompt, completion = (rows, job.prompt_len), (rows, job.new_tokens)
        assert batch.prompt_ids.shape == prompt, batch.prompt_ids.shape
        assert batch.completion_ids.shape == completion, batch.completion_ids.shape
        assert batch.ref_per_token_logps.shape == completion
        # An end token would have been masked; a shorter prompt or completion padded.
        assert batch.prompt_mask.all()
        assert batch.completion_mask.all()

    def checked_sample_and_score(*args, **kwargs):
        batch = sample_and_score(*args, **kwargs)
        check_shapes(job.rows, batch)
        return batch

    def checked_update(examples, *args):
        for example in examples:
            check_shapes(job.rows // job.micro_batches, example)
        return update(examples, *args)

    learner._generate_and_compute_advantage = checked_sample_and_score
    cluster.update_actor = checked_update
    for model in (cluster.actor_trainer.model, cluster.inference_worker.get_model("reference")):
        assert all(weight.dtype == jnp.float32 for weight in jax.tree.leaves(weights(model)))


def weights(model: llama.Llama3) -> nnx.State:
    return nnx.state(model, nnx.Param)


def embedding(learner: grpo_learner.GRPOLearner) -> np.ndarray:
    """A copy of the policy's embedding."""
    model = learner.rl_cluster.actor_trainer.model
    return np.array(model.embedder.input_embedding.value)


def main() -> None:
    job = peers_clock.read_job()
    learner = make_learner(job)
    check_work(job, learner)
    cluster, clock = learner.rl_cluster, peers_clock.Clock()
    run_step = learner._run_global_step

    def timed_step(*args):
        run_step(*args)
        jax.block_until_ready(weights(cluster.actor_trainer.model))
        clock.step_ends()

    learner._run_global_step = timed_step
    clock.time(cluster, "generate", "sample_seconds")
    clock.time(learner, "_compute_rewards", "score_seconds")
    clock.time(cluster, "get_ref_per_token_logps", "reference_seconds", wait=jax.block_until_ready)
    before = embedding(learner)
    prompts = np.array(peers_clock.random_prompts(job)).reshape(job.all_steps, job.prompts)
    learner.train({"prompts": step} for step in prompts)
    assert not np.array_equal(before, embedding(learner)), "the weights are what they were"
    sizes = [weight.size for weight in jax.tree.leaves(weights(cluster.actor_trainer.model))]
    notes = {
        "num_parameters": sum(sizes),
        "rollout_shares_weights": not learner.should_sync_weights,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    packages = ["google-tunix", "jax", "jaxlib", "flax", "optax", "numpy"]
    clock.print_report(job, packages, notes)


if __name__ == "__main__":
    main()
