"""A first Ctrl-C or SIGTERM asks a run to stop after the step it is in. No JAX."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_signal() -> Iterator[list[str]]:
    """A list that a first SIGINT or SIGTERM adds its name to; a second one acts as ever."""
    received: list[str] = []
    kept: dict[signal.Signals, Any] = {}

    def receive(number: int, _) -> None:
        received.append(signal.Signals(number).name)
        for which, handler in kept.items():
            signal.signal(which, handler)

    try:
        for which in (signal.SIGINT, signal.SIGTERM):
            kept[which] = signal.signal(which, receive)
    except ValueError:  # only the main thread of a program may
        pass
    try:
        yield received
    finally:
        for which, handler in kept.items():
            signal.signal(which, handler)
