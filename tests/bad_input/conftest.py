"""What the tests of bad input share as fixtures."""

import pytest
import toys

from grpo_jax import algorithm, anchors, evaluate, training_loop


@pytest.fixture(autouse=True)
def shared_optimizer(monkeypatch):
    monkeypatch.setattr(training_loop, "make_optimizer", toys.make_optimizer)


@pytest.fixture
def early(monkeypatch):
    """Fails the test if anything is sampled, scored or trained, which is what is compiled."""

    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(algorithm, "sample_continuously", compiled)
    monkeypatch.setattr(anchors, "completion_log_probs", compiled)
    monkeypatch.setattr(algorithm, "update", compiled)
    monkeypatch.setattr(evaluate, "sample_continuously", compiled)


@pytest.fixture
def llama(tmp_path_factory):
    return toys.llama_directory(tmp_path_factory.mktemp("model") / "llama")
