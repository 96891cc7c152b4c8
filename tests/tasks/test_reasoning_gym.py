"""reasoning_gym: strict scores, and one line when it is missing."""

import importlib.util
import re
import sys

import pytest

from grpo_jax.rewards import Completion, Question
from grpo_jax.tasks import ReasoningGym

installed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="reasoning-gym is not installed; it comes with grpo-jax[tasks] and with grpo-jax[dev]",
)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError) as caught:
        ReasoningGym("chain_sum")
    assert str(caught.value) == 'ReasoningGym needs reasoning-gym: pip install "grpo-jax[tasks]"'


@installed
def test_questions_are_stateless_disjoint_and_have_right_answers():
    task, again = (ReasoningGym("chain_sum", min_terms=2, max_terms=2) for _ in range(2))
    trained = [task.train(3, n) for n in range(200)]
    assert trained == [again.train(3, n) for n in reversed(range(200))][::-1]
    held_out = [task.held_out(n) for n in range(task.num_held_out)]
    assert not {str(q.prompt) for q in trained} & {str(q.prompt) for q in held_out}
    for question in trained[:20] + held_out[:20]:
        asked = question.prompt[0]["content"]
        left, sign, right = re.findall(r"(\d+) ([+-]) (\d+)", asked)[0]
        value = int(left) + int(sign + right)
        texts = [f"{value}", f" {value}\n", f"so <answer> {value} </answer>.", f"{value + 1}"]
        rewards = task.reward(question, [Completion(text, 9) for text in texts])
        assert rewards == [1.0, 1.0, 1.0, 0.0]


@installed
def test_part_of_the_score_counts_only_if_asked_for():
    strict, lenient = (
        ReasoningGym("chain_sum", partial_credit=partial, held_out_size=5)
        for partial in (False, True)
    )
    question = strict.train(0, 0)
    right = strict._dataset[question.answer]["answer"]
    hedged = [Completion(f"<answer>{right} or 12</answer>", 9)]
    (score,) = lenient.reward(question, hedged)
    assert 0.0 < score < 1.0
    assert strict.reward(question, hedged) == [0.0]


@installed
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>a</answer> <answer> b\n</answer>", "b"),
        ("<answer>a<answer>b</answer>", "b"),
        ("<answer>a", "<answer>a"),
        (" plain ", "plain"),
        ("<answer> </answer>", None),
        ("", None),
        ("x" * 2001, None),
        ("<answer>" * 300_000, None),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_the_answer_is_extracted_first(text, answer):
    assert ReasoningGym("chain_sum", held_out_size=1).parse(Completion(text, 9)) == answer


@installed
def test_a_scorer_that_chokes_gives_nothing(monkeypatch):
    task = ReasoningGym("chain_sum", held_out_size=1)

    def choke(answer, entry):
        raise RecursionError(answer)

    monkeypatch.setattr(task._dataset, "score_answer", choke)
    assert task.reward(Question(0, "", 0), [Completion("1", 1)]) == [0.0]


@installed
def test_unknown_names_and_too_small_pools_are_refused():
    with pytest.raises(ValueError, match="no_such_dataset"):
        ReasoningGym("no_such_dataset")
    with pytest.raises(ValueError, match=r"reasoning_gym/chain_sum: only .* held_out_size is 100"):
        ReasoningGym("chain_sum", pool_size=50)
