"""Bad input gets one clear error, early, and nothing written: questions."""

import dataclasses

import pytest
import toys
from refused_runs import FIELDS, refused

from grpo_jax import tasks
from grpo_jax.data import train_questions
from grpo_jax.tokenizer import CharTokenizer


@dataclasses.dataclass(frozen=True)
class SometimesLong(tasks.MaxOfThree):
    """Training questions of these numbers, and such held-out ones, are too long."""

    long: tuple[int, ...] = ()
    long_held_out: tuple[int, ...] = ()

    def train(self, seed, number):
        question = super().train(seed, number)
        return self._longer(question) if number in self.long else question

    def held_out(self, number):
        question = super().held_out(number)
        return self._longer(question) if number in self.long_held_out else question

    def _longer(self, question):
        return dataclasses.replace(question, prompt="0" + question.prompt)


@pytest.mark.usefixtures("early")
def test_a_long_prompt_is_an_error_that_names_its_question(tmp_path):
    refused(
        tmp_path,
        "question 2 has 5 tokens, more than max_prompt_tokens = 4",
        "raise it, or set --drop-long-prompts",
        repr(SometimesLong(long=(2,)).train(0, 2).prompt),
        task=SometimesLong(long=(2,)),
        steps=1,
    )


@pytest.mark.usefixtures("early")
def test_a_long_prompt_that_comes_later_is_found_before_anything_is_compiled(tmp_path):
    refused(tmp_path, "question 9 has 5 tokens", task=SometimesLong(long=(9,)), steps=3)


@pytest.mark.usefixtures("early")
def test_a_long_held_out_prompt_is_found_before_anything_is_written(tmp_path):
    task = SometimesLong(long_held_out=(1,))
    refused(tmp_path, "question 1 has 5 tokens", task=task, steps=1, eval_questions=4)


def test_long_prompts_are_dropped_and_counted_where_that_is_asked(tmp_path):
    task = SometimesLong(long=(0, 2, 3, 9))
    toys.run(tmp_path / "run", task=task, steps=3, drop_long_prompts=True, **FIELDS)
    counts = [line["prompts/dropped"] for line in toys.lines(tmp_path / "run", "metrics.jsonl")]
    assert counts == [3, 4, 4]
    asked = [group["question"] for group in toys.lines(tmp_path / "run", "completions.jsonl")]
    assert asked == [n for n in range(16) if n not in task.long]
    # The count and the place in the data go on where they were.
    toys.run(tmp_path / "other", task=task, steps=1, drop_long_prompts=True, **FIELDS)
    toys.run(tmp_path / "other", task=task, steps=3, drop_long_prompts=True, resume=True, **FIELDS)
    toys.assert_same_run(tmp_path / "other", tmp_path / "run", **FIELDS)


def test_long_held_out_prompts_are_dropped_where_that_is_asked(tmp_path):
    task = SometimesLong(long_held_out=(1, 3))
    fields = {"eval_questions": 4, "eval_samples": 4, "drop_long_prompts": True}
    toys.run(tmp_path / "run", task=task, steps=1, **FIELDS | fields)
    first, last = toys.lines(tmp_path / "run", "evaluations.jsonl")
    assert first["eval/num_questions"] == last["eval/num_questions"] <= 4


@pytest.mark.usefixtures("early")
def test_nothing_but_long_prompts_is_an_error_even_where_they_are_dropped(tmp_path):
    refused(
        tmp_path,
        "max_prompt_tokens = 3",
        "4 tokens",
        "raise it",
        steps=1,
        max_prompt_tokens=3,
        drop_long_prompts=True,
    )


def test_many_long_prompts_between_short_ones_are_no_error():
    class FourInFive(tasks.MaxOfThree):
        def train(self, seed, number):
            question = super().train(seed, number)
            return dataclasses.replace(question, prompt="00=" if number % 5 == 0 else "0000=")

    batch = train_questions(
        FourInFive(),
        CharTokenizer(toys.ALPHABET),
        seed=0,
        position=0,
        num_prompts=300,
        max_prompt_tokens=3,
        drop_long_prompts=True,
    )
    assert batch.num_dropped == 4 * 299
    assert len(batch.questions) == len(batch.ids) == 300


@pytest.mark.usefixtures("early")
def test_an_empty_prompt_is_an_error_that_names_its_question(tmp_path):
    class Silent(tasks.MaxOfThree):
        def train(self, seed, number):
            return dataclasses.replace(super().train(seed, number), prompt="")

    refused(tmp_path, "question 0 has an empty prompt", task=Silent(), steps=1)


class Nothing(tasks.base.FiniteTask):
    """No dataclass, so that nobody looks at its questions until they are asked for."""

    name = "nothing"

    def split(self):
        return [], []

    def parse(self, completion):
        return None

    def reward(self, question, completions):
        return [0.0] * len(completions)


@pytest.mark.usefixtures("early")
def test_an_empty_task_is_refused(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Checked(Nothing):
        pass

    with pytest.raises(ValueError, match="nothing: 0 training and 0 held-out questions"):
        Checked()
    refused(tmp_path, "nothing", "question", task=Nothing(), steps=1)


@pytest.mark.usefixtures("early")
def test_a_task_with_nothing_held_out_is_refused_where_that_is_to_be_asked(tmp_path):
    class AllTrained(tasks.MaxOfThree):
        num_held_out = 0

    refused(tmp_path, "max_of_three", "held-out", task=AllTrained(), steps=1, eval_questions=4)
