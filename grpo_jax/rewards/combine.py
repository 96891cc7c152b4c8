"""Calls the reward functions on every group, and says clearly what went wrong in which."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from grpo_jax.rewards.base import Completion, Question, RewardFn

MAX_QUOTED_CHARS = 200


class RewardError(RuntimeError):
    """A reward function failed, or returned what is no reward."""


def score_groups(
    reward_fns: Mapping[str, RewardFn],
    questions: Sequence[Question],
    completions: Sequence[Sequence[Completion]],
    *,
    step: int,
    timeout_seconds: float,
) -> np.ndarray:
    """The rewards of a batch, each function on its own, from one call per function and group.

    Args:
        reward_fns: K functions by the name that metrics and messages call them.
        questions: P of them.
        completions: P groups of G completions.
        step: the training step, for messages only.
        timeout_seconds: how long one function may take over one group, in seconds.

    Returns:
        [P, G, K] float32 rewards in the functions' own units; NaN where one does not apply.

    Raises:
        RewardError: if a function raises (the completion that does it is looked for, one at a
            time, and named), returns other than G numbers or one infinite in float32, or takes
            longer than `timeout_seconds`.
        ValueError: without functions, P groups of one size, or a timeout above 0.

    Choice: the functions run in one daemon thread, left behind on timeout, since Python cannot
    stop a thread. So code that relies on `signal` fails (math-verify: switch its own timeouts
    off), and code that never releases the interpreter lock, as one `re` match gone exponential,
    is reported only once it returns.

    >>> from grpo_jax.rewards.math_answer import math_answer
    >>> group = [Completion("4", 1), Completion("It is 5.", 4)]
    >>> score_groups({"right": math_answer}, [Question(0, "2 + 2?", 4)], [group],
    ...              step=0, timeout_seconds=10.0).tolist()
    [[[1.0], [0.0]]]
    """
    sizes = {len(group) for group in completions}
    if not reward_fns:
        raise ValueError("there is no reward function; give at least one")
    if len(questions) != len(completions) or len(sizes) > 1:
        raise ValueError(
            f"{len(questions)} questions and {len(completions)} groups of sizes {sorted(sizes)}: "
            "each question needs one group, all groups of one size"
        )
    if not timeout_seconds > 0:
        raise ValueError(f"reward_timeout_seconds of {timeout_seconds} must be above 0")
    rewards = np.empty((len(questions), max(sizes, default=0), len(reward_fns)), np.float32)
    worker = _Worker(timeout_seconds)
    try:
        for k, (name, reward_fn) in enumerate(reward_fns.items()):
            for p, (question, group) in enumerate(zip(questions, completions, strict=True)):
                where = f"reward function {name!r} at step {step}, question {question.number}"
                watched = _Watched(group)
                try:
                    values = _values(worker, partial(reward_fn, question), watched, where)
                except TimeoutError:
                    raise RewardError(
                        f"{where}: took longer than {timeout_seconds} s for {len(group)} "
                        f"completions{watched.reached()}; make it faster or raise "
                        "reward_timeout_seconds"
                    ) from None
                rewards[p, :, k] = _checked(values, group, where)
    finally:
        worker.calls.put(None)  # ends the thread, once it is through
    return rewards


def weighted_sum(rewards: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Adds up the reward functions that apply.

        R[p, g] = sum_k weights[k] * rewards[p, g, k], without the k that are NaN

    Args:
        rewards: [P, G, K] float; NaN where function k does not apply.
        weights: K finite numbers, in units of the total per unit of function k.

    Returns:
        [P, G] float32; NaN only where no function applies.

    Raises:
        ValueError: unless `weights` are K finite numbers.

    >>> weighted_sum(np.array([[[1.0, 0.5], [float("nan"), 0.5]]]), [1.0, 2.0]).tolist()
    [[2.0, 1.0]]
    """
    if len(weights) != rewards.shape[-1] or not all(math.isfinite(weight) for weight in weights):
        wanted = f"{rewards.shape[-1]} finite numbers, one for each reward function"
        raise ValueError(f"weights {list(weights)} must be {wanted}")
    applies = ~np.isnan(rewards)
    # Masked first: a weight of 0 times NaN is still NaN. Added up in float64, in any order.
    terms = np.where(applies, rewards, 0.0).astype(np.float64) * np.asarray(weights, np.float64)
    return np.where(applies.any(axis=-1), terms.sum(axis=-1), np.nan).astype(np.float32)


def named_weights(
    rewards: Mapping[str, RewardFn], weights: Mapping[str, float]
) -> dict[str, float]:
    """The weight of each reward function, 1 where none is given.

    Raises:
        ValueError: there is no function, or a weight that is not finite or of no function.

    >>> named_weights({"right": len, "short": len}, {"short": -0.5})
    {'right': 1.0, 'short': -0.5}
    """
    if not rewards:
        raise ValueError("there is no reward function; give at least one")
    unknown = sorted(weights.keys() - rewards.keys())
    if unknown:
        raise ValueError(
            f"reward weights for {unknown}, but the reward functions are {sorted(rewards)}; "
            "name each weight as its function"
        )
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of reward {name!r} is {weight}; it must be finite")
    return {name: float(weights.get(name, 1.0)) for name in rewards}


class _Watched(list[Completion]):
    """A group that knows which of its completions was looked at last."""

    _last: int | None = None

    def __iter__(self) -> Iterator[Completion]:
        for index, completion in enumerate(super().__iter__()):
            self._last = index
            yield completion

    def reached(self) -> str:
        if self._last is None:
            return ""
        return f", and was at completion {self._last}, text {_quote(self[self._last].text)}"


class _Worker:
    """One daemon thread that runs calls one after another."""

    # Not concurrent.futures: the interpreter waits for its threads at exit, hung ones too.
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="grpo-jax-rewards", daemon=True).start()

    def _loop(self) -> None:
        while (call := self.calls.get()) is not None:
            started = time.monotonic()
            try:
                value, error = call(), None
            except BaseException as raised:  # sys.exit() in a reward must not pass for silence
                value, error = None, raised
            self._results.put((value, error, time.monotonic() - started))

    def run(self, call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """The call's value or its exception; TimeoutError where it takes too long."""
        self.calls.put(call)
        try:
            value, error, taken = self._results.get(timeout=self._seconds)
        except queue.Empty:
            raise TimeoutError from None
        # A call that held the interpreter lock kept this thread, too, from noticing in time.
        if taken > self._seconds:
            raise TimeoutError
        return value, error


def _values(worker: _Worker, score: Callable, group: Sequence[Completion], where: str) -> Any:
    """What the function returns for the group; if it raises, which completion it raises on."""

    def listed(part: Sequence[Completion]) -> Any:
        values = score(part)
        return list(values) if isinstance(values, Iterable) else values

    values, error = worker.run(partial(listed, group))
    if error is None:
        return values
    culprit = "the group as a whole (no completion does it alone)"
    for index, completion in enumerate(group):
        try:
            _, alone = worker.run(partial(listed, [completion]))
        except TimeoutError:
            culprit = "a completion that was not found in time"
            break
        if alone is not None:
            culprit = f"completion {index} of the group, text {_quote(completion.text)}"
            break
    raise RewardError(
        f"{where}: raised {type(error).__name__}, {_quote(str(error))}, on {culprit}; "
        "return NaN where the function does not apply"
    ) from error


def _checked(values: Any, group: Sequence[Completion], where: str) -> list[float]:
    if not isinstance(values, list) or len(values) != len(group):
        got = f"{len(values)} values" if isinstance(values, list) else _quote(values)
        raise RewardError(
            f"{where}: returned {got}, expected {len(group)} values, one for each completion"
        )
    checked = []
    for index, (value, completion) in enumerate(zip(values, group, strict=True)):
        what = f"{where}: returned {_quote(value)} for completion {index} of the group, text "
        what += _quote(completion.text)
        try:
            if isinstance(value, str | bytes) or np.ndim(value) != 0:
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise RewardError(f"{what}: not a number; NaN says 'does not apply'") from None
        if abs(number) > float(np.finfo(np.float32).max):
            raise RewardError(f"{what}: not finite in float32; NaN says 'does not apply'")
        checked.append(number)
    return checked


def _quote(value: Any) -> str:
    """repr, so that terminal escapes are inert, and short."""
    quoted = repr(value)
    return quoted if len(quoted) <= MAX_QUOTED_CHARS else quoted[:MAX_QUOTED_CHARS] + "..."
