"""Is the final number of a text the right one? Exact: no tolerance, no floating point."""

import re
from collections.abc import Sequence
from fractions import Fraction

from grpo_jax.rewards.base import Completion, Question

# Bounds against hostile text: no answer needs more, and Fraction("1e999999999") would fill memory.
MAX_NUMBER_CHARS = 100
MAX_EXPONENT = 400
MAX_BOXED_CHARS = 1_000

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_UNSIGNED = rf"\$?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+|/\d+)?"
# A sign that follows a word, a digit or a bracket is an operator or a hyphen: "10-3" ends in 3.
_NUMBER = re.compile(rf"(?:(?<![\w.)\]}}])[-+])?{_UNSIGNED}", re.ASCII)
_HASHES = re.compile(rf"####[ \t*]*([-+]?{_UNSIGNED})", re.ASCII)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(\d{1,50})\}\{(\d{1,50})\}", re.ASCII)


def extract_number(text: str) -> str | None:
    r"""The final number of a text, written plainly, or None where there is none.

    The last number marked as the answer, by `#### 42` or `\\boxed{42}`, whichever comes later;
    without a mark, the last number of the text. Thousands commas, a dollar sign, a plus sign and
    a percent sign are dropped; `3/4` and `\\frac{3}{4}` are one number.

    Args:
        text: of any length and content; time is linear in it.

    Returns:
        Digits with an optional "-", decimals, exponent or denominator, as `fractions.Fraction`
        reads them. None where there is no number, and where the one found is longer than 100
        characters, has an exponent beyond +-400 or a denominator of zero.

    Choice: GSM8K writes percentages and money as bare numbers, so "50%" is 50, not 1/2. A mark
    counts only if a number follows it ("#### Step 2" has none, nor has an empty box).

    >>> extract_number("48 + 24 = 72, so she sold 72 clips.\n#### 1,072.50")
    '1072.50'
    >>> extract_number(r"Of 12 there remain \boxed{-\frac{3}{4}}, not 5.")
    '-3/4'
    >>> extract_number("It costs $12 in all.")
    '12'
    >>> extract_number("I do not know.") is None
    True
    """
    for written, plain in (("\u2212", "-"), ("{,}", ","), ("\\$", "$")):
        text = text.replace(written, plain)
    marked = None, -1
    for match in _HASHES.finditer(text):
        marked = match[1], match.start()
    start = text.rfind("\\boxed{")
    if start > marked[1]:
        boxed = _last_number(_in_braces(text, start + len("\\boxed{")))
        marked = (boxed, start) if boxed is not None else marked
    number = marked[0] if marked[0] is not None else _last_number(text)
    if number is None:
        return None
    number = re.sub(r"[,$+]", "", number)
    return number if _value(number) is not None else None


def number_match(text: str, target: str | int | float) -> float:
    """1.0 if the final number of `text` equals `target` exactly, else 0.0.

    Args:
        text: see `extract_number`.
        target: a number, or a text whose final number is meant (a whole GSM8K solution will do).
            A float stands for its shortest decimal: 0.1 is one tenth.

    Returns:
        1.0 or 0.0, without unit. A text without a number scores 0.0.

    Raises:
        ValueError: if `target` holds no number.

    >>> number_match("so 0.50 kg", 0.5), number_match("about 0.33", "1/3")
    (1.0, 0.0)
    """
    wanted = extract_number(str(target))
    if wanted is None:
        raise ValueError(
            f"the target {str(target)[:200]!r} holds no number; give a number, or None as the "
            "question's answer where math_answer does not apply"
        )
    found = extract_number(text)
    return float(found is not None and _value(found) == _value(wanted))


def math_answer(question: Question, completions: Sequence[Completion]) -> list[float]:
    """A reward function: does each completion end in the question's number?

    Args:
        question: its `answer` is the target, see `number_match`; None means "does not apply".
        completions: of any length; truncated ones are read like the others.

    Returns:
        1.0 or 0.0 for each completion; NaN for all of them if the question's answer is None.

    Raises:
        ValueError: if the question's answer holds no number.

    >>> math_answer(Question(0, "2 + 2?", 4), [Completion("2 + 2 = 4.", 6), Completion("5", 1)])
    [1.0, 0.0]
    """
    if question.answer is None:
        return [float("nan")] * len(completions)
    return [number_match(completion.text, question.answer) for completion in completions]


def _last_number(text: str) -> str | None:
    last = None
    for match in _NUMBER.finditer(_LATEX_FRACTION.sub(r"\1/\2", text)):
        last = match[0]
    return last


def _in_braces(text: str, start: int) -> str:
    """The text from `start` to the brace that closes; "" if it does not close soon."""
    depth = 1
    for end in range(start, min(len(text), start + MAX_BOXED_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return ""


def _value(number: str) -> Fraction | None:
    _, _, exponent = number.lower().partition("e")
    if len(number) > MAX_NUMBER_CHARS or abs(int(exponent or 0)) > MAX_EXPONENT:
        return None
    try:
        return Fraction(number)
    except (ValueError, ZeroDivisionError):
        return None
