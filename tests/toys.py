"""The toy made smaller still, and shared, so that a run in a test costs little more than its steps.

What is compiled hangs on the policy, the objective and the optimizer as objects: one of each per
process is one compilation of each, however many tests run.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np

import grpo_jax
from experiments import toy
from grpo_jax import runner, tasks, training_loop
from grpo_jax.checkpoints import Checkpoints
from grpo_jax.launch import plain_errors
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.network import Network, from_scratch
from grpo_jax.models.settings import Settings
from grpo_jax.run_directory import CLOCK
from grpo_jax.state import state_shapes
from grpo_jax.tasks.max_of_three import ALPHABET
from grpo_jax.tokenizer import CharTokenizer

EXPERIMENT = "experiments.toy"
SMALL = {"num_prompts": 4, "group_size": 4, "eval_questions": 0, "show_every": 0}
ONE_UPDATE = {"learning_rate": 1e-2}


def fresh_network(seed=0) -> Network:
    tokenizer = CharTokenizer(ALPHABET)
    shape = DecoderConfig.llama(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
    )
    return from_scratch(shape, tokenizer, Settings(seed=seed))


@functools.cache
def network() -> Network:
    made = fresh_network()
    params = jax.tree.map(np.asarray, made.load())
    # New buffers at each call, as `Network.load` promises, without compiling again.
    return dataclasses.replace(made, load=lambda: jax.tree.map(jnp.array, params))


@functools.cache
def objective(kl_coef=0.0):
    return grpo_jax.grpo(kl_coef=kl_coef)


_make_optimizer = training_loop.make_optimizer


@functools.cache
def _optimizer(config):
    return _make_optimizer(config)


def make_optimizer(config):
    """The runner's own, but the same object for configs from which it is the same function."""
    plain = toy.Config()
    names = ("learning_rate", "warmup_steps", "weight_decay", "clip_norm", "lr_schedule")
    names += ("moment_dtype",)
    if config.lr_schedule != "constant":
        names += ("steps", "num_minibatches", "num_epochs", "num_prompts")
    return _optimizer(dataclasses.replace(plain, **{name: getattr(config, name) for name in names}))


def config(run_dir, **fields) -> toy.Config:
    return toy.Config(run_dir=str(run_dir), **(SMALL | fields))


def run(
    run_dir,
    *,
    task=None,
    network=network,
    paper=None,
    rewards=None,
    reward_weights=None,
    signal_reward=None,
    **fields,
):
    """A run of the small toy with these fields, in this directory; GRPO, or another paper."""
    c = config(run_dir, **fields)
    return runner.run(
        c,
        task=tasks.MaxOfThree() if task is None else task,
        network=network() if callable(network) else network,
        objective=paper or objective(c.kl_coef),
        rewards=rewards,
        reward_weights=reward_weights,
        signal_reward=signal_reward,
    )


def lines(run_dir, name):
    """The lines of a log; null, which stands for what is no number, as NaN."""
    return [_with_nan(json.loads(line)) for line in (run_dir / name).read_text().splitlines()]


def _with_nan(value):
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return float("nan") if value is None else value


def metrics(run_dir):
    """metrics.jsonl without what a clock said."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK}
        for line in lines(run_dir, "metrics.jsonl")
    ]


def saved_state(run_dir, *, paper=None, **fields):
    """The newest checkpoint: its arrays by path, key included, and the place beside it."""
    optimizer, _ = make_optimizer(config(run_dir, **fields))
    like = state_shapes(network(), paper or objective(), optimizer)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    state, place = checkpoints.restore(like)
    checkpoints.close()
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    place.pop("seconds")
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(state)}, (
        place
    )


def assert_same_run(one, other, **fields):
    """Bit for bit, but for the clock."""
    (state_one, place_one), (state_other, place_other) = (
        saved_state(run_dir, **fields) for run_dir in (one, other)
    )
    assert state_one.keys() == state_other.keys()
    for path, array in state_one.items():
        assert array.dtype == state_other[path].dtype, path
        assert array.tobytes() == state_other[path].tobytes(), path
    assert place_one == place_other
    assert metrics(one) == metrics(other)
    assert (one / "completions.jsonl").read_bytes() == (other / "completions.jsonl").read_bytes()


LLAMA = pathlib.Path(__file__).resolve().parent / "fixtures" / "tiny_llama"


def llama_directory(target, *, tokenizer=True):
    """A copy of the tiny random Llama, by default with a tokenizer: a token each character."""
    shutil.copytree(LLAMA, target)
    if tokenizer:
        write_tokenizer(target)
    return target


def write_tokenizer(directory, *, eos="</s>"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>"]
    tokens = special + list("0123456789=+>. abcdefghijklmnopqrstuvwxyz")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(special)
    made.save(str(directory / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({"eos_token": eos} if eos else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))


def edit_json(path, **fields):
    """Sets fields of a JSON file; None takes one out."""
    changed = json.loads(path.read_text()) | fields
    kept = {name: value for name, value in changed.items() if value is not None}
    path.write_text(json.dumps(kept))


def contents(directory):
    """Every file below a directory, by relative path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":  # a run in a process of its own: run_dir and fields as JSON
    training_loop.make_optimizer = make_optimizer
    with plain_errors():
        run(sys.argv[1], **json.loads(sys.argv[2]))
