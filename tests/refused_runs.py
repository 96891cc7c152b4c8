"""Runs and commands that are refused: their message, and that nothing was written."""

import re
import sys

import pytest
import toys

from grpo_jax import cli

FIELDS = {"learning_rate": 1e-2}


def refused(tmp_path, *parts, error=ValueError, **kwargs):
    """The message of a run that is refused; nothing may have been written."""
    before, existed = toys.contents(tmp_path), (tmp_path / "run").exists()
    with pytest.raises(error) as caught:
        toys.run(tmp_path / "run", **(FIELDS | kwargs))
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert toys.contents(tmp_path) == before
    assert (tmp_path / "run").exists() == existed
    return message


def command(capsys, *args):
    """Runs `grpo-jax`, expects it to be refused; its words in one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grpo-jax", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert "Traceback" not in out + err
    return " ".join(re.sub(r"[│─╭╮╰╯•]", " ", out + err).split())
