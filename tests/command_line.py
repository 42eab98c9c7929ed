"""Command line, run in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

Run = Callable[..., tuple[int, str, str]]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *before: object) -> Run:
    """Return a function that runs a command; it returns exit code, stdout and stderr.

    Args:
        monkeypatch: fixture that sets the arguments of the process.
        capsys: fixture that captures the output.
        before: arguments in front of those of each call.
    """
    from talud.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["talud", *map(str, (*before, *arguments))])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run
