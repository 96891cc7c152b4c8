"""The layout reward, against a list of layouts judged by hand."""

import pytest

from grpo_jax.rewards import Completion, Question, format_tags


def one(text, tags=("think", "answer")):
    return format_tags(tags)(Question(0, "?"), [Completion(text, 1)])


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\n</think>\n\n<answer>b</answer> \n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<think>a < b</think><answer>b > a</answer>", 1.0),
        ("", 0.0),
        ("b", 0.0),
        ("<answer>b</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a<answer></think>b</answer>", 0.0),
        ("</think>a<think><answer>b</answer>", 0.0),
        ("x<think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think>x<answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer>x", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think>a <think> b</think><answer>b</answer>", 0.0),
        ("<Think>a</Think><answer>b</answer>", 0.0),
        ("<think>" * 200_000, 0.0),
    ],
)
def test_the_layout(text, reward):
    assert one(text) == [reward]


def test_other_tags_in_their_order():
    tags = ("plan", "code", "final-answer")
    text = "<plan>a</plan> <code>b</code> <final-answer>c</final-answer>"
    assert one(text, tags) == [1.0]
    assert one(text, tags[::-1]) == [0.0]


@pytest.mark.parametrize("tags", [(), ("think", "think"), ("<think>",), ("",), ["a b"]])
def test_names_that_are_no_names_are_refused(tags):
    with pytest.raises(ValueError, match="tag"):
        format_tags(tags)
