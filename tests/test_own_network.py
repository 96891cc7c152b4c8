"""Runs of a network of one's own."""

import pytest
import toys

from experiments import own_network


def config(run_dir, **fields):
    return own_network.Config(run_dir=str(run_dir), **(toys.SMALL | fields))


def test_it_learns(tmp_path):
    own_network.main(own_network.Config(run_dir=str(tmp_path / "run"), eval_questions=0, steps=60))
    rewards = [line["reward"] for line in toys.metrics(tmp_path / "run")]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.2


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    own_network.main(config(tmp_path / "one", steps=4))
    own_network.main(config(tmp_path / "two", steps=2))
    own_network.main(config(tmp_path / "two", steps=4, resume=True))
    assert toys.metrics(tmp_path / "one") == toys.metrics(tmp_path / "two")


@pytest.mark.parametrize(
    "fields", [{"lora_rank": 4}, {"compute_dtype": "bfloat16"}, {"scan_layers": True}], ids=str
)
def test_what_it_does_not_follow_is_refused(fields, tmp_path):
    with pytest.raises(ValueError, match="a network of your own does not follow"):
        own_network.network(config(tmp_path / "run", **fields))
