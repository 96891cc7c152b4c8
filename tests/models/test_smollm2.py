"""The embedded model, end to end, against greedy answers that transformers with torch gave."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.data import pad_prompts
from grpo_jax.models.network import pretrained
from grpo_jax.policy import completion_log_probs
from grpo_jax.rewards.base import Question
from grpo_jax.sampling import Sampling, prompt_keys, sample_groups
from grpo_jax.tasks import Sums

pytestmark = pytest.mark.embedded
STORED = Path(__file__).parents[1] / "fixtures" / "smollm2_greedy.json"


@pytest.fixture(scope="module")
def model(embedded_directory):
    network = pretrained("smollm2-135m-instruct")
    return network, network.load()


def sample(model, ids, *, group_size, max_new_tokens, temperature, width=None):
    network, params = model
    questions = [Question(n, "") for n in range(len(ids))]
    prompts = pad_prompts(questions, ids, max_prompt_tokens=width or max(map(len, ids)))
    stop_ids, pad_id = network.tokenizer.stop_ids, network.tokenizer.pad_id
    return sample_groups(
        network.policy,
        params,
        prompts,
        prompt_keys(jax.random.key(0), 0, len(ids)),
        group_size=group_size,
        sampling=Sampling(max_new_tokens, temperature, stop_ids=stop_ids, pad_id=pad_id),
    )


def test_greedy_text_is_that_of_transformers(model):
    examples = json.loads(STORED.read_text())["examples"]
    network, _ = model
    ids = [network.tokenizer.encode(example["prompt"]) for example in examples]
    assert ids == [example["prompt_ids"] for example in examples]
    rollout = sample(model, ids, group_size=1, max_new_tokens=24, temperature=0.0)
    lengths = rollout.completion_mask.sum(axis=-1)
    found = [
        row[: int(length)].tolist()
        for row, length in zip(rollout.completion[:, 0], lengths[:, 0], strict=True)
    ]
    assert found == [example["completion_ids"] for example in examples]


def test_sampler_and_scorer_agree_whatever_the_company(model):
    network, params = model
    task = Sums()
    ids = [network.tokenizer.encode(task.train(0, n).prompt) for n in range(3)]
    ids.append(network.tokenizer.encode("The capital of France is"))
    for chosen, group_size, width in [(ids, 4, None), (ids[:1], 8, 40)]:
        rollout = sample(
            model, chosen, group_size=group_size, max_new_tokens=8, temperature=1.0, width=width
        )
        scored = completion_log_probs(network.policy, params, rollout).log_probs
        assert float(jnp.abs(scored - rollout.sampler_log_probs).max()) <= 1e-4


def test_end_and_pad_are_one_token_and_masks_know_the_difference(model):
    network, _ = model
    assert network.tokenizer.stop_ids == (2,)
    assert network.tokenizer.pad_id == 2
    ids = [network.tokenizer.encode(({"role": "user", "content": "Say yes."},))]
    rollout = sample(model, ids, group_size=6, max_new_tokens=8, temperature=1.0)
    for row, mask, cut in zip(
        np.asarray(rollout.completion[0]),
        np.asarray(rollout.completion_mask[0]),
        np.asarray(rollout.truncated[0]),
        strict=True,
    ):
        ends = np.flatnonzero(row == 2)
        assert mask.sum() == (8 if cut else ends[0] + 1)
