"""What a run shows while it runs: a table that grows by a line a step, and sample groups."""

import math
import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from grpo_jax.rewards.base import Completion, Question

# Heading, metric, format, and how many characters wide.
_COLUMNS = (
    ("step", "step", "d", 5),
    ("reward", "reward", ".3f", 7),
    ("no signal", "frac_reward_zero_std", ".0%", 10),
    ("KL", "kl", ".4f", 8),
    ("entropy", "entropy", ".3f", 8),
    ("clipped", "clip_ratio/region_mean", ".2%", 8),
    ("length", "completions/mean_length", ".1f", 7),
    ("tok/s", "tokens_per_second", ".0f", 6),
    ("mismatch", "sampler_mismatch/max", ".1e", 9),
    ("seconds", "step_time", ".2f", 8),
)
_HEADING_EVERY = 20


class RunConsole:
    """Prints a run's progress; on a terminal also a bar with the time that is left."""

    def __init__(self, num_steps: int, first_step: int = 0):
        self._console = Console(highlight=False, soft_wrap=True)
        self._rows = 0
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task("training", total=num_steps, completed=first_step)

    def __enter__(self) -> "RunConsole":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def say(self, text: str, style: str = "") -> None:
        """A line or several; markup and control characters in it do nothing."""
        self._console.print(Text(printable(text), style=style))

    def row(self, metrics: Mapping[str, float]) -> None:
        """The table's next line."""
        if self._rows % _HEADING_EVERY == 0:
            self.say(" ".join(f"{heading:>{width}}" for heading, _, _, width in _COLUMNS), "bold")
        self._rows += 1
        cells = Text()
        for i, (_, name, fmt, width) in enumerate(_COLUMNS):
            value = metrics.get(name)
            # A step without a reference has no KL; a ratio is exact only when it is a number.
            shown = "-" if value is None or math.isnan(value) else format(value, fmt)
            style = "green" if name == "reward" else "dim" if shown == "-" else ""
            cells.append((" " if i else "") + f"{shown:>{width}}", style=style)
        self._console.print(cells)
        self._progress.update(self._bar, completed=int(metrics["step"]))

    def group(
        self, question: Question, completions: Sequence[Completion], rewards: Sequence[float]
    ) -> None:
        """A question, and what the policy answered."""
        prompt = question.prompt if isinstance(question.prompt, str) else _turns(question.prompt)
        self.say(f"  question {question.number}: {_one_line(prompt, 100)}", "cyan")
        for completion, reward in sorted(zip(completions, rewards, strict=True), key=_by_reward):
            cut = " (truncated)" if completion.truncated else ""
            style = "green" if reward > 0 else "dim"
            self.say(f"    {reward:7.3f}  {_one_line(completion.text, 90)}{cut}", style)


def printable(text: str) -> str:
    """Control characters (terminal escapes among them) as visible symbols; newlines stay.

    >>> printable("a" + chr(27) + "[2Jb")
    'a␛[2Jb'
    """

    def symbol(match: re.Match[str]) -> str:
        code = ord(match.group())
        return chr(0x2400 + code) if code < 32 else "\N{REPLACEMENT CHARACTER}"

    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", symbol, text)


def _one_line(text: str, width: int) -> str:
    text = text.replace("\n", "⏎")
    return repr(text if len(text) <= width else text[: width - 1] + "…")


def _turns(prompt: Sequence[Mapping[str, str]]) -> str:
    return " | ".join(turn["content"] for turn in prompt)


def _by_reward(pair: tuple[Completion, float]) -> float:
    return -pair[1] if pair[1] == pair[1] else math.inf
