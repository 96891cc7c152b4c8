"""What every task promises: stateless, disjoint, each question once an epoch, no empty task."""

import collections
import dataclasses
import hashlib
import json
import random
import subprocess
import sys
import zlib

import pytest

from grpo_jax.rewards import Completion, Question
from grpo_jax.tasks import (
    Countdown,
    DemonstratedSums,
    FiniteTask,
    GeneratedTask,
    MaxOfThree,
    Sorting,
    Sums,
)

FINITE = [Sums(), Sums(((0, 4), (0, 4), (0, 4)), subtract=True), DemonstratedSums(), MaxOfThree()]
FINITE += [Sums(plain=True)]
GENERATED = [Countdown(), Countdown(num_numbers=4), Sorting(), Sorting(num_digits=6)]

FINGERPRINT = """
import hashlib, json
from grpo_jax.tasks import *
for task in [Sums(), DemonstratedSums(), MaxOfThree(), Countdown(), Sorting()]:
    questions = [task.train(seed, n) for seed in (0, 7) for n in (0, 1, 999, 12345)]
    questions += [task.held_out(n) for n in (0, 1, 30)]
    text = json.dumps([[q.number, q.prompt, q.answer] for q in questions])
    print(hashlib.sha256(text.encode()).hexdigest())
"""


def ident(task):
    return f"{task.name}-{getattr(task, 'num_numbers', getattr(task, 'num_digits', ''))}"


def test_a_fresh_process_draws_the_same_questions():
    """Also under another hash seed: nothing may hang on the order of a set."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    scope: dict = {"printed": []}
    exec(FINGERPRINT.replace("print(", "printed.append("), scope)
    assert runs[0].split() == scope["printed"]


def test_the_questions_stay_what_they_are():
    """A recorded value: a change here changes every run's data, so make it knowingly."""
    task = Sums()
    answers = [task.train(0, n).answer for n in range(8)]
    assert answers == [32, 95, 15, 13, 94, 64, 68, 17]
    digest = hashlib.sha256(
        json.dumps([Countdown().train(0, n).answer for n in range(50)]).encode()
    ).hexdigest()
    assert digest[:16] == "149ae53eaedded41"


@pytest.mark.parametrize("task", FINITE + GENERATED, ids=ident)
def test_numbers_alone_decide_and_seeds_differ(task):
    forward = [task.train(3, n) for n in range(50)]
    backward = [task.train(3, n) for n in reversed(range(50))]
    assert forward == backward[::-1]
    assert [question.number for question in forward] == list(range(50))
    assert [q.prompt for q in forward] != [task.train(4, n).prompt for n in range(50)]
    json.dumps([dataclasses.asdict(question) for question in forward])


@pytest.mark.parametrize("task", FINITE + GENERATED, ids=ident)
def test_training_and_held_out_never_meet(task):
    held_out = {task.content(task.held_out(n)) for n in range(task.num_held_out)}
    assert len(held_out) == task.num_held_out
    trained = {task.content(task.train(seed, n)) for seed in (0, 1) for n in range(2500)}
    assert not held_out & trained
    assert all(zlib.crc32(text.encode()) % 5 == 0 for text in held_out)
    assert all(zlib.crc32(text.encode()) % 5 for text in trained)


@pytest.mark.parametrize("task", FINITE, ids=ident)
@pytest.mark.parametrize("seed", range(2))
def test_each_question_comes_once_an_epoch_in_another_order(task, seed):
    size = task.num_train
    epochs = [[task.train(seed, e * size + n).prompt for n in range(size)] for e in range(3)]
    counts = [collections.Counter(map(str, epoch)) for epoch in epochs]
    assert counts[0] == counts[1] == counts[2]
    assert set(counts[0].values()) == {1}
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("task", FINITE, ids=ident)
def test_about_one_question_in_five_is_held_out(task):
    total = task.num_train + task.num_held_out
    # Five standard deviations of a binomial count.
    assert abs(task.num_held_out - total / 5) < 5 * (total * 0.16) ** 0.5


@pytest.mark.parametrize("task", [FINITE[0], GENERATED[0]], ids=ident)
def test_numbers_out_of_range_are_refused(task):
    with pytest.raises(ValueError, match="training question -1 does not exist"):
        task.train(0, -1)
    for number in (-1, task.num_held_out):
        with pytest.raises(IndexError, match=f"held-out question {number} does not exist"):
            task.held_out(number)


def test_a_longer_held_out_list_begins_with_the_shorter_one():
    short, long = Sorting(held_out_size=20), Sorting(held_out_size=100)
    assert [short.held_out(n) for n in range(20)] == [long.held_out(n) for n in range(20)]


class Silent:
    """A verifier that is never asked."""

    name = "mine"

    def parse(self, completion: Completion):
        return None

    def reward(self, question, completions):
        return [0.0] * len(completions)


@dataclasses.dataclass(frozen=True)
class Listed(Silent, FiniteTask):
    texts: tuple[str, ...]

    def split(self):
        return self.split_by_hash(Question(0, text) for text in self.texts)


@dataclasses.dataclass(frozen=True)
class Drawn(Silent, GeneratedTask):
    size: int
    held_out_size: int = 5

    def draw(self, rng: random.Random):
        return Question(0, str(rng.randrange(self.size))) if self.size else None


def test_an_empty_task_is_one_clear_error():
    with pytest.raises(ValueError, match=r"mine: 0 training and 0 held-out questions"):
        Listed(())
    trained = [str(n) for n in range(20) if zlib.crc32(str(n).encode()) % 5]
    with pytest.raises(ValueError, match=rf"mine: {len(trained)} training and 0 held-out"):
        Listed(tuple(trained))
    with pytest.raises(ValueError, match="mine: no training question in 10000 draws"):
        Drawn(0)
    with pytest.raises(ValueError, match="held_out_size is 5; lower it"):
        Drawn(10)
    with pytest.raises(ValueError, match="and 0 held-out questions"):
        Drawn(100, held_out_size=0)
