"""What is held at once follows from the machine, and is the same whenever it is asked."""

import jax
import jax.numpy as jnp
import pytest

from grpo_jax import memory


@pytest.fixture
def machine(monkeypatch):
    """Sets the memory and the platform that the machine seems to have."""

    def pretend(gibibytes, platform="gpu"):
        monkeypatch.setattr(memory, "device_bytes", lambda: gibibytes * 2**30)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)

    return pretend


def test_the_memory_of_this_machine_is_a_number_of_bytes():
    assert memory.device_bytes() > 2**28
    assert memory.device_bytes() == memory.device_bytes()


def test_a_container_may_have_less_than_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", (tmp_path / "none", tmp_path / "memory.max"))
    whole = memory.host_bytes()
    for text, found in [("1073741824\n", 2**30), ("max\n", whole), ("", whole)]:
        (tmp_path / "memory.max").write_text(text)
        assert memory.host_bytes() == found


@pytest.mark.parametrize("gibibytes", [8, 24, 141])
def test_a_chunk_of_logits_takes_its_share(gibibytes, machine):
    machine(gibibytes)
    for vocab_size in (32_000, 151_936):
        held = 4 * vocab_size * memory.head_chunk_tokens(vocab_size)
        share = gibibytes * 2**30 / 128
        assert share - 4 * vocab_size < held <= share


def test_a_chunk_is_never_empty(machine):
    machine(1)
    assert memory.head_chunk_tokens(10**7) == 16


def test_groups_take_a_quarter_of_the_memory_while_they_are_decoded(machine):
    machine(24)
    assert memory.groups_in_memory(2**30) == 6
    assert memory.groups_in_memory(2**40) == 1


def test_micro_batches_grow_with_memory_and_shrink_with_the_network(machine):
    matrix = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    head = jax.ShapeDtypeStruct((151_936, 2048), jnp.float32)
    small, large = {"a": matrix}, {"a": matrix, "b": matrix, "norm": jnp.ones(2048)}
    machine(24)
    half = memory.micro_batch_tokens(large)
    assert memory.micro_batch_tokens(small) == pytest.approx(2 * half, abs=2)
    assert memory.micro_batch_tokens(large | {"head": head}) == half  # it has chunks of its own
    machine(48)
    assert memory.micro_batch_tokens(large) == pytest.approx(2 * half, abs=2)
    machine(48, "cpu")
    assert memory.micro_batch_tokens(large) == memory.micro_batch_tokens(small) == 1024
