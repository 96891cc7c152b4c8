"""Every family against logits that transformers computed (scripts/make_family_fixtures.py)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import families

from grpo_jax.models.directory import open_directory
from grpo_jax.models.loading import load_params

CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.mark.parametrize("name", families.NAMES)
def test_logits_of_ragged_prompts(name):
    """The last state of all that rows begin with, in one batch."""
    _, params = families.opened(name)
    told, scaled = families.said(name), name in families.SCALED_BY_LENGTH
    for rows in [[one] for one in told] if scaled else [told]:
        longest = max(len(row) for row, _ in rows)
        policy = families.policy(name, longest)
        prompts = [row[: n + 1] for row, _ in rows for n in range(len(row))]
        wanted = np.concatenate([logits for _, logits in rows])
        if scaled:  # the whole row alone was turned as it was
            prompts, wanted = prompts[-1:], wanted[-1:]
        tokens, mask = families.prompts_of(prompts, longest, longest + 1)
        _, hidden = policy.prefill(params, tokens, mask)
        np.testing.assert_allclose(policy.unembed(params, hidden), wanted, **CLOSE)


@pytest.mark.parametrize("name", families.NAMES)
@pytest.mark.parametrize("cut", [1, 6])
def test_logits_of_a_group_after_its_prompt(name, cut):
    _, params = families.opened(name)
    told = [(row, wanted) for row, wanted in families.said(name) if len(row) > cut]
    if name in families.SCALED_BY_LENGTH:
        told = told[-1:]
    policy = families.policy(name, max(len(row) for row, _ in told))
    found = families.logits_in_a_group(policy, params, [row for row, _ in told], cut)
    for logits, (_, wanted) in zip(found, told, strict=True):
        np.testing.assert_allclose(logits, wanted[cut:], **CLOSE)


@pytest.mark.parametrize("name", families.NAMES)
def test_logits_of_decoding_with_a_cache(name):
    """Two prompts side by side, each with company."""
    _, params = families.opened(name)
    told = families.said(name)[-2:]
    if name in families.SCALED_BY_LENGTH:  # one length for all of a batch
        told = told[-1:]
    policy = families.policy(name, len(told[-1][0]))
    found = families.logits_in_steps(policy, params, [row for row, _ in told], 6)
    for logits, (_, wanted) in zip(found, told, strict=True):
        np.testing.assert_allclose(logits, wanted[6 : 6 + len(logits)], **CLOSE)


@pytest.mark.parametrize(
    "name", [n for n in families.NAMES if (families.FAMILIES / n / "gradient").is_dir()]
)
def test_gradient_of_a_log_probability(name):
    directory, params = families.opened(name)
    row, _ = families.said(name)[-1]
    policy = families.policy(name, len(row))

    def log_prob(params):
        tokens, mask = families.prompts_of([row], 4, 5)
        prefix, last = policy.prefill(params, tokens, mask)
        hidden, _ = policy.extend(params, prefix, jnp.array(row[None, None, 4:-1]))
        states = jnp.concatenate([last[:, None, None], hidden], axis=2)
        after = jax.nn.log_softmax(policy.unembed(params, states))[0, 0]
        within, mask = families.prompts_of([row[: n + 1] for n in range(3)], 3, 4)
        _, early = policy.prefill(params, within, mask)
        before = jax.nn.log_softmax(policy.unembed(params, early))
        first = before[jnp.arange(3), row[1:4]].sum()
        return first + after[jnp.arange(len(row) - 4), row[4:]].sum()

    found = jax.grad(log_prob)(params)
    there = dataclasses.replace(directory, path=directory.path / "gradient")
    wanted = load_params(there)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * float(jnp.abs(theirs).max()))


def test_every_family_has_a_fixture():
    from grpo_jax.models.families import FAMILIES

    kinds = {open_directory(families.FAMILIES / name).model_type for name in families.NAMES}
    assert kinds == FAMILIES.keys()
