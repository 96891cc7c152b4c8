"""The libraries that `make_peer_fixture.py` asks: each as values -> (case -> its own numbers).

A function here takes a paper's name and the values to set in the library's own spelling. It returns
one that maps a case (arrays named as in `peers.npz`) to advantages [P * G, 1 or T], the loss, and
its gradient with respect to `log_probs`, [P * G, T]. Only what a model, a sampler or a reward would
have said is put in by hand; nothing else of a library is replaced, and none of its code is here.
"""

import contextlib
import importlib.abc
import importlib.machinery
import pathlib
import sys
import tempfile
import types
from unittest import mock

import numpy as np

TINY_MODEL = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "tiny_llama"
P, G, T = 3, 4, 8
LENGTHS = np.array([[8, 6, 1, 4], [3, 7, 5, 2], [6, 8, 2, 5]])
MASK = np.arange(T) < LENGTHS[..., None]
PAD, END, WORD = 0, 2, 3


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for what is imported on the way, not installed, and never used here."""

    names = ("deepspeed", "flash_attn", "metrax", "perfetto", "vllm")

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def stand_ins():
    """While the decorated function imports; TRL looks for some of these, and goes without."""
    finder = StandIns()
    sys.meta_path.append(finder)  # last: what is installed comes first
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def flat(array: np.ndarray):
    """[P, G, ...] array -> [P * G, ...] tensor."""
    import torch

    return torch.tensor(array.reshape(P * G, *array.shape[2:]))


def trl(name: str, values: dict):
    import tokenizers
    import torch
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    rloo = name == "rloo"

    class Trainer(RLOOTrainer if rloo else GRPOTrainer):
        """Everything is theirs but what the model, the sampler and the reward would say."""

        def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
            key = "ref_log_probs" if model is self.ref_model else "old_log_probs"
            found = self.current if torch.is_grad_enabled() else flat(self.case[key])
            return found, torch.zeros_like(found), None

        def _generate_single_turn(self, *args, **kwargs):
            ids = [[WORD] * (length - 1) + [END] for length in LENGTHS.flat]
            return ids if rloo else (ids, None)

        def _calculate_rewards(self, *args):
            return flat(self.case["rewards"])[:, None]

    vocabulary = tokenizers.models.WordLevel({"<pad>": PAD, "</s>": END, "a": WORD}, unk_token="a")
    # Two iterations, so that the log-probabilities of the first policy are asked for.
    config = (RLOOConfig if rloo else GRPOConfig)(
        tempfile.gettempdir(),
        per_device_train_batch_size=P * G,
        num_generations=G,
        max_completion_length=T,
        num_iterations=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        **values,
    )
    trainer = Trainer(
        str(TINY_MODEL),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * P}),
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(vocabulary), pad_token="<pad>", eos_token="</s>"
        ),
    )
    trainer.current_gradient_accumulation_steps = 1

    def compute(case: dict):
        trainer.case = case
        trainer.current = flat(case["log_probs"]).requires_grad_()
        batch = trainer._generate_and_score_completions([{"prompt": "a"}] * (P * G))
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        return batch["advantages"][:, None], loss.detach(), trainer.current.grad

    return compute


@stand_ins()
def verl(name: str, values: dict):
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig, PolicyLossConfig

    values = dict(values)
    estimator = values.pop("adv_estimator", "grpo")
    by_std = values.pop("norm_adv_by_std_in_grpo", True)
    kl_in_reward = values.pop("kl_in_reward_coef", 0.0)
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=G,
        ppo_micro_batch_size_per_gpu=P * G,
        policy_loss=PolicyLossConfig(loss_mode=values.pop("loss_mode", "vanilla")),
        **values,
    )

    def compute(case: dict):
        mask, old, ref = (flat(case[k]) for k in ("mask", "old_log_probs", "ref_log_probs"))
        log_probs = flat(case["log_probs"]).requires_grad_()
        rewards = np.zeros((P, G, T))
        np.put_along_axis(rewards, LENGTHS[..., None] - 1, case["rewards"][..., None], axis=-1)
        rewards = flat(rewards) - kl_in_reward * core_algos.kl_penalty(old, ref, "kl") * mask
        advantages, _ = core_algos.get_adv_estimator_fn(estimator)(
            token_level_rewards=rewards,
            response_mask=mask,
            index=np.repeat(np.arange(P), G),
            norm_adv_by_std_in_grpo=by_std,
        )
        config.global_batch_info.update(
            dp_size=1,
            batch_num_tokens=mask.sum(),
            global_batch_size=P * G,
            loss_scale_factor=config.loss_scale_factor,
        )
        policy_loss = core_algos.get_policy_loss_fn(config.policy_loss.loss_mode)
        reduction = config.loss_agg_mode
        loss, _ = policy_loss(old, log_probs, advantages, mask, reduction, config)
        if config.use_kl_loss:
            kl = core_algos.kl_penalty(log_probs, ref, config.kl_loss_type)
            kl = core_algos.agg_loss(kl, mask, reduction, **config.global_batch_info)
            loss = loss + config.kl_loss_coef * kl
        loss.backward()
        return advantages, loss.detach(), log_probs.grad

    return compute


@stand_ins()
def openrlhf(name: str, values: dict):
    import torch
    from openrlhf.models.loss import PolicyLoss, aggregate_loss
    from openrlhf.models.utils import compute_approx_kl
    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController

    # Defaults of openrlhf/cli/train_ppo_ray.py, whose parser cannot be imported.
    setting = types.SimpleNamespace(
        **{
            "kl_init_coef": 0.01,
            "kl_estimator": "k1",
            "kl_use_loss": False,
            "policy_loss_type": "ppo",
            "eps_clip_high": 0.2,
        }
        | values
    )
    new = types.SimpleNamespace
    advantage = new(estimator=setting.estimator, gamma=1.0, lambd=1.0, no_std_norm=False)
    args = new(
        algo=new(advantage=advantage),
        reward=new(clip_range=(-10, 10)),
        rollout=new(n_samples_per_prompt=G),
    )
    controller = FixedKLController(setting.kl_init_coef)
    maker = RemoteExperienceMaker(None, None, None, None, controller, new(args=args), None)
    policy_loss = PolicyLoss(0.2, setting.eps_clip_high, policy_loss_type=setting.policy_loss_type)

    def compute(case: dict):
        mask, old, ref = (flat(case[k]) for k in ("mask", "old_log_probs", "ref_log_probs"))
        log_probs = flat(case["log_probs"]).requires_grad_()
        in_reward = setting.kl_init_coef > 0 and not setting.kl_use_loss
        kl = compute_approx_kl(old, ref, kl_estimator=setting.kl_estimator)
        experience = Experience(
            index=list(range(P * G)),
            rewards=flat(case["rewards"]),
            action_mask=mask,
            kl=kl.double() if in_reward else torch.zeros_like(old),
        )
        (experience,) = maker.compute_advantages_and_returns([experience])
        totals = {"batch_num_tokens": mask.sum(), "global_batch_size": P * G}
        loss = policy_loss(log_probs, old, experience.advantages, mask, **totals)[0]
        if setting.kl_use_loss:
            kl = compute_approx_kl(log_probs, ref, old, kl_estimator=setting.kl_estimator)
            loss = loss + setting.kl_init_coef * aggregate_loss(kl, mask, **totals)
        loss.backward()
        return experience.advantages, loss.detach(), log_probs.grad

    return compute


@stand_ins()
def tunix(name: str, values: dict):
    import jax.numpy as jnp
    from flax import nnx
    from tunix.rl import common, function_registry
    from tunix.rl.grpo.dapo_learner import DAPOConfig
    from tunix.rl.grpo.drgrpo_learner import DrGRPOConfig
    from tunix.rl.grpo.grpo_learner import GRPOConfig

    config = {"dapo": DAPOConfig, "dr_grpo": DrGRPOConfig}.get(name, GRPOConfig)(
        num_generations=G, **values
    )
    config.temperature = 1.0
    policy_loss = function_registry.get_policy_loss_fn(config.policy_loss_fn)
    estimate = function_registry.get_advantage_estimator(config.advantage_estimator)

    class Model(nnx.Module):
        def __init__(self, log_probs):
            self.log_probs = nnx.Param(log_probs)

    def compute(case: dict):
        def rows(key: str):
            return jnp.asarray(case[key].reshape(P * G, T))

        advantages = np.asarray(estimate(rewards=case["rewards"].ravel(), num_generations=G))
        ids = jnp.where(rows("mask"), WORD, PAD)
        example = types.SimpleNamespace(
            prompt_ids=ids[:, :1],
            completion_ids=ids,
            completion_mask=rows("mask").astype(jnp.int32),
            advantages=jnp.asarray(advantages),
            old_per_token_logps=rows("old_log_probs"),
            ref_per_token_logps=rows("ref_log_probs") if config.beta else None,
        )

        def from_model(graphdef, state, **_):
            return nnx.merge(graphdef, state).log_probs[...], jnp.zeros((P * G, T, 2))

        def loss_of(model):
            return policy_loss(model, example, config, pad_id=PAD, eos_id=END)[0]

        with mock.patch.object(common, "compute_per_token_logps", from_model):
            loss, grad = nnx.value_and_grad(loss_of)(Model(rows("log_probs")))
        return advantages[:, None], loss, grad["log_probs"][...]

    return compute


def nemo_rl(name: str, values: dict):
    """Written out from NVIDIA-NeMo/RL, main, 006907a and 00925dd; not run, not their code."""
    defaults = {"leave_one_out": True, "normalize": True, "kl_coef": 0.01, "dual": np.inf}
    defaults |= {"low": 0.2, "high": 0.2, "use_ratio": True, "sequence": False}
    s = types.SimpleNamespace(**defaults | {"token_level": True, "cispo": False} | values)

    def advantage(rewards: np.ndarray, i: int) -> float:
        others = np.delete(rewards, i) if s.leave_one_out else rewards
        variance = (others**2).mean() - others.mean() ** 2
        std = np.sqrt(max(variance * len(others) / (len(others) - 1), 0.0))
        centred = rewards[i] - others.mean()
        return centred / (std + 1e-6) if s.normalize and std > 0 else centred

    def surrogate(a: float, log_prob: float, log_ratio: float) -> tuple[float, float]:
        """Value and slope; a sequence's ratio has its slope shared out by the reduction."""
        if not s.use_ratio:
            return -a * log_prob, -a
        ratio = np.exp(log_ratio)
        clipped = np.clip(ratio, 1 - s.low, 1 + s.high)
        if s.cispo:
            return -a * clipped * log_prob, -a * clipped
        value = max(-a * ratio, -a * clipped)
        if a < 0 and value > -a * s.dual:
            return -a * s.dual, 0.0
        return value, -a * ratio if value == -a * ratio else 0.0

    def compute(case: dict):
        advantages, loss, grad = np.zeros((P, G, T)), 0.0, np.zeros((P, G, T))
        for p, i, t in np.argwhere(MASK):
            length = LENGTHS[p, i]
            log_probs, old = case["log_probs"][p, i], case["old_log_probs"][p, i]
            log_ratio = log_probs[t] - old[t]
            if s.sequence:
                log_ratio = (log_probs - old)[:length].mean()
            advantages[p, i, t] = advantage(case["rewards"][p], i)
            value, slope = surrogate(float(advantages[p, i, t]), log_probs[t], log_ratio)
            # k3 times exp(x - stop_gradient(x)): the weight is 1 and its gradient counts.
            u = case["ref_log_probs"][p, i, t] - log_probs[t]
            k3 = np.exp(u) - 1 - u
            weight = 1 / LENGTHS.sum() if s.token_level else 1 / (length * P * G)
            loss += weight * (value + s.kl_coef * k3)
            grad[p, i, t] = weight * (slope + s.kl_coef * (k3 + 1 - np.exp(u)))
        return advantages, loss, grad

    return compute
