"""The `talud` command: gathers the subcommands, and shows errors to a person."""

from __future__ import annotations

import importlib
import io
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from talud import cli
from talud.errors import TaludError, TaludWarning
from talud.process import sigint_ends_process

with sigint_ends_process():  # no command has begun, so there is nothing to tidy up, or to tell
    from talud.cli.app import app

    for module in pkgutil.iter_modules(cli.__path__):
        if module.name != "main":
            importlib.import_module(f"talud.cli.{module.name}")

MAX_MESSAGE_CHARACTERS = 1000
EXIT_INTERRUPTED = 130  # exit code that shells give a command ended by Ctrl-C


def main() -> None:
    """Run the command line: a TaludError, or a lack of memory, becomes one line on stderr and exit code 1."""
    sys.unraisablehook = _resend_dropped_interrupt
    _replace_unencodable_characters()
    try:
        with _warnings_as_lines():
            app()
    except KeyboardInterrupt:  # before or after the command itself, where typer sees to it
        sys.exit(EXIT_INTERRUPTED)
    except TaludError as error:
        print(f"talud: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"talud: not enough memory: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print each TaludWarning inside the block once, as one line on stderr.

    Python shows all other warnings as usual.
    """
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", TaludWarning)
        show = warnings.showwarning

        def show_as_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, TaludWarning):
                line = _one_line(message)
                if line not in said:
                    print(f"talud: warning: {line}", file=sys.stderr)
                said.add(line)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = show_as_line
        yield


def _replace_unencodable_characters() -> None:
    """Print `?` for characters that the console's encoding lacks.

    Likewise for the bytes of a file name that are not text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _one_line(error: Exception | str) -> str:
    """Return the message of an error on one line of limited length.

    It may quote the content of a file, such as 10,000 names.
    """
    said = " ".join(str(error).split())
    return (
        said
        if len(said) <= MAX_MESSAGE_CHARACTERS
        else f"{said[: MAX_MESSAGE_CHARACTERS * 2 // 3]} … {said[-MAX_MESSAGE_CHARACTERS // 3 :]}"
    )


def _resend_dropped_interrupt(dropped: sys.UnraisableHookArgs) -> None:
    """Send a Ctrl-C again that Python has dropped.

    Python drops it in a finaliser or a callback of the garbage collector.
    """
    if dropped.exc_type is KeyboardInterrupt:  # a real signal, which also ends a wait that the main thread is in
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()
