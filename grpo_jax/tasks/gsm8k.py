"""GSM8K and data sets written like it: JSON lines with a question and a worked answer."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from grpo_jax.rewards.base import Completion, Question
from grpo_jax.rewards.math_answer import extract_number, math_answer
from grpo_jax.tasks.base import FiniteTask

MAX_REPORTED = 10
INSTRUCTION = "Think step by step, then give the final number after ####."


@dataclasses.dataclass(frozen=True)
class GSM8K(FiniteTask):
    """Word problems from local files; the reward is `rewards.math_answer`.

    Each line is a JSON object with the texts `question` and `answer`; the answer's last line is
    `#### 72`. Blank lines are skipped. The files are at github.com/openai/grade-school-math.

    Args:
        train_file: path of the training questions.
        held_out_file: path of the held-out questions (GSM8K's test.jsonl). Without it, the
            questions of `train_file` are split by their text, about one in five held out.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if lines are not as described, naming the first 10 by file and line with
            what is wrong; or if training or held-out has no question.

    A held-out question that also stands in the training file is not trained on. The completion
    need not use "####": its last number counts (see `rewards.extract_number`).
    """

    train_file: str | pathlib.Path
    held_out_file: str | pathlib.Path | None = None
    name = "gsm8k"

    def split(self) -> tuple[list[Question], list[Question]]:
        problems: list[str] = []
        questions = _read(self.train_file, problems)
        held_out = _read(self.held_out_file, problems) if self.held_out_file is not None else []
        if problems:
            more = len(problems) - MAX_REPORTED
            listed = problems[:MAX_REPORTED] + ([f"and {more} more"] if more > 0 else [])
            raise ValueError("\n".join(["lines that cannot be used; mend or remove them", *listed]))
        if self.held_out_file is None:
            return self.split_by_hash(questions)
        known = {self.content(question) for question in held_out}
        return [q for q in questions if self.content(q) not in known], held_out

    def parse(self, completion: Completion) -> str | None:
        """The final number of the completion."""
        return extract_number(completion.text)

    def reward(self, question: Question, completions: Sequence[Completion]) -> list[float]:
        """1.0 where the final number is the answer's, else 0.0."""
        return math_answer(question, completions)


def _read(path: str | pathlib.Path, problems: list[str]) -> list[Question]:
    """The file's questions; adds what is wrong with the others to `problems`."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; GSM8K's train.jsonl and test.jsonl are at "
            "github.com/openai/grade-school-math"
        )
    questions: list[Question] = []
    with path.open("rb") as lines:  # json decodes, so that bad bytes are a line's problem too
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                questions.append(_question(line))
            except ValueError as error:
                problems.append(f"{path}, line {number}: {error}")
    return questions


def _question(line: bytes) -> Question:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object with the fields 'question' and 'answer'")
    for field in ("question", "answer"):
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise ValueError(f"the field {field!r} is missing or not a text")
    _, mark, final = record["answer"].rpartition("####")
    number = extract_number(mark + final)
    if not mark or number is None:
        raise ValueError("the answer has no '####' with the final number after it")
    turn = {"role": "user", "content": f"{record['question'].strip()}\n{INSTRUCTION}"}
    return Question(0, (turn,), number)
