"""Max of three: all prompts, and the shaped reward against the characters one by one."""

import itertools

from grpo_jax.rewards import Completion, Question
from grpo_jax.tasks.max_of_three import ALPHABET, END, MaxOfThree


def test_all_thousand_prompts():
    task = MaxOfThree()
    questions = [task.train(0, n) for n in range(task.num_train)]
    questions += [task.held_out(n) for n in range(task.num_held_out)]
    assert {q.prompt: q.answer for q in questions} == {
        f"{n:03d}=": str(max(map(int, f"{n:03d}"))) for n in range(1000)
    }
    assert all(set(q.prompt + q.answer) <= set(ALPHABET) for q in questions)
    assert len(set(ALPHABET)) == len(ALPHABET) == 14
    assert ALPHABET[-1] == END


def test_the_reward_is_the_share_of_characters_in_place():
    """Every string of up to three tokens, the end token written out, character by character."""
    question = Question(0, "583=", "8")
    task = MaxOfThree()
    for length in range(4):
        for tokens in itertools.product("78.", repeat=length):
            written = "".join(tokens)
            if END in written[:-1] or (length < 3 and not written.endswith(END)):
                continue  # a completion ends at its first end token, or at the limit of three
            expected = sum(a == b for a, b in zip(written, "8.", strict=False)) / 2
            ended = written.endswith(END)
            completion = Completion(written.removesuffix(END), length, truncated=not ended)
            assert task.reward(question, [completion]) == [expected], written


def test_the_answer_read_is_the_first_digit():
    task = MaxOfThree()
    assert task.parse(Completion("75", 3)) == "7"
    assert task.parse(Completion("=7", 3)) is None
    assert task.parse(Completion("", 1)) is None
    assert task.reward(Question(0, "583=", "8"), [Completion("8", 1, truncated=True)]) == [0.5]
