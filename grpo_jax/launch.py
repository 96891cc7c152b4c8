"""From a command line to a run: parse the config, run, and say what went wrong in one message."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from grpo_jax.config import Config
from grpo_jax.rewards.combine import RewardError
from grpo_jax.run_directory import RunInterrupted, RunStopped, to_json

C = TypeVar("C", bound=Config)


def launch(
    main: Callable[[C], Any],
    config_type: type[C],
    *,
    args: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parses the command line into the experiment's config and runs it.

    What `main` returns is printed last, as one JSON object.

    Args:
        main: takes the config.
        config_type: its frozen dataclass; each field is an option.
        args: the command line; by default the program's own.
        prog: how the program is called, for its help.
    """
    import tyro

    with plain_errors():
        summary = main(tyro.cli(config_type, args=args, prog=prog, description=config_type.__doc__))
        if summary is not None:
            print(to_json(summary))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the program with a message instead of a traceback, on input that cannot be used.

    GRPO_JAX_TRACEBACK=1 shows the traceback all the same.
    """
    try:
        yield
    except RunInterrupted as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(0) from None
    except (ValueError, ImportError, OSError, RewardError, RunStopped) as error:
        if os.environ.get("GRPO_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        print("(GRPO_JAX_TRACEBACK=1 shows where it was raised)", file=sys.stderr)
        raise SystemExit(2) from None
