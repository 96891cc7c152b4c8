"""GSM8K: what is read, what is refused and how it is said."""

import json

import pytest
from real_data import GSM8K as REAL
from real_data import needs_gsm8k

from grpo_jax.rewards import Completion
from grpo_jax.tasks import GSM8K


def write(path, records):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def problem(number, answer=None):
    return {"question": f"Problem {number}?", "answer": answer or f"So it is.\n#### {number}"}


def test_two_files_are_the_two_sides(tmp_path):
    train = write(tmp_path / "train.jsonl", [problem(n) for n in range(20)])
    test = write(tmp_path / "test.jsonl", [problem(n) for n in range(18, 25)])
    task = GSM8K(train, str(test))
    assert (task.num_train, task.num_held_out) == (18, 7)  # 18 and 19 stand in both
    assert [task.held_out(n).answer for n in range(7)] == [str(n) for n in range(18, 25)]
    assert {int(task.train(0, n).answer) for n in range(18)} == set(range(18))
    (turn,) = task.held_out(0).prompt
    assert turn["role"] == "user"
    assert turn["content"].startswith("Problem 18?\n")
    assert "####" in turn["content"]


def test_one_file_is_split_by_its_text(tmp_path):
    task = GSM8K(write(tmp_path / "all.jsonl", [problem(n) for n in range(200)]))
    assert task.num_train + task.num_held_out == 200
    assert 15 < task.num_held_out < 70


def test_rewards_go_by_the_final_number(tmp_path):
    records = [problem(n, "She has 1,234.\n#### 1,234") for n in range(40)]
    task = GSM8K(write(tmp_path / "all.jsonl", records))
    texts = ["#### 1234", "It is $1,234.00.", "1234 or 1235", "none"]
    rewards = task.reward(task.train(0, 0), [Completion(text, 9) for text in texts])
    assert rewards == [1.0, 1.0, 0.0, 0.0]
    assert task.parse(Completion("none", 1)) is None
    assert task.parse(Completion("1234 or 1235", 1)) == "1235"


def test_all_bad_lines_are_named_at_once(tmp_path):
    bad = [
        problem(1),
        "{not json",
        "",
        {"question": "Why?"},
        {"question": 3, "answer": "#### 3"},
        problem(2, "It is 2."),
        problem(2, "It is 2. #### two"),
        "[1, 2]",
    ]
    train = write(tmp_path / "train.jsonl", bad)
    test = tmp_path / "test.jsonl"
    test.write_bytes(b'{"question": "\xff", "answer": "#### 1"}\n' + b"[" * 100_000 + b"\n" * 3)
    with pytest.raises(ValueError, match="cannot be used") as caught:
        GSM8K(train, test)
    lines = str(caught.value).splitlines()[1:]
    expected = [
        (train, 2, "not JSON"),
        (train, 4, "the field 'answer' is missing or not a text"),
        (train, 5, "the field 'question' is missing or not a text"),
        (train, 6, "no '####' with the final number"),
        (train, 7, "no '####' with the final number"),
        (train, 8, "not a JSON object"),
        (test, 1, "not JSON"),
        (test, 2, "not JSON"),
    ]
    assert len(lines) == len(expected)
    for line, (path, number, rule) in zip(lines, expected, strict=True):
        assert line.startswith(f"{path}, line {number}: ")
        assert rule in line


def test_no_more_than_ten_bad_lines_are_listed(tmp_path):
    path = write(tmp_path / "bad.jsonl", ["?"] * 25)
    with pytest.raises(ValueError, match="cannot be used") as caught:
        GSM8K(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "and 15 more"


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl is not a file; GSM8K's"):
        GSM8K(tmp_path / "nowhere.jsonl")
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match="gsm8k: 0 training and 0 held-out questions"):
        GSM8K(empty)


@needs_gsm8k
def test_the_real_files():
    task = GSM8K(REAL / "train.jsonl", REAL / "test.jsonl")
    assert (task.num_train, task.num_held_out) == (7473, 1319)
    with (REAL / "test.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            solution = Completion(json.loads(line)["answer"], 99)
            assert task.reward(task.held_out(number), [solution]) == [1.0]
