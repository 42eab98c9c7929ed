"""Entry point of the `talud` command."""

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

# No command has started, so an interruption leaves nothing to clean up.
with sigint_ends_process():
    from talud.cli.app import app

    for module in pkgutil.iter_modules(cli.__path__):
        if module.name != "main":
            importlib.import_module(f"talud.cli.{module.name}")

MAX_MESSAGE_CHARACTERS = 1000
EXIT_INTERRUPTED = 130  # exit code that shells give a command ended by Ctrl-C


def main() -> None:
    """Run the command line, and print errors as one line."""
    sys.unraisablehook = _resend_dropped_interrupt
    _replace_unencodable_characters()
    try:
        with _warnings_as_lines():
            app()
    except KeyboardInterrupt:  # before or after the command itself, during which typer handles it
        sys.exit(EXIT_INTERRUPTED)
    except TaludError as error:
        print(f"talud: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"talud: not enough memory: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print each TaludWarning once, as one line on stderr.

    Python shows all other warnings as usual.
    """
    printed: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", TaludWarning)
        show = warnings.showwarning

        def show_as_line(message: Warning | str, category: type[Warning], *location: Any, **more: Any) -> None:
            if issubclass(category, TaludWarning):
                line = _one_line(message)
                if line not in printed:
                    print(f"talud: warning: {line}", file=sys.stderr)
                printed.add(line)
            else:
                show(message, category, *location, **more)

        warnings.showwarning = show_as_line
        yield


def _replace_unencodable_characters() -> None:
    """Print `?` for characters that the console cannot encode.

    The same holds for bytes of file names that are not valid text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _one_line(error: Exception | str) -> str:
    """Return a message on one line of limited length."""
    text = " ".join(str(error).split())
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    return f"{text[: MAX_MESSAGE_CHARACTERS * 2 // 3]} … {text[-MAX_MESSAGE_CHARACTERS // 3 :]}"


def _resend_dropped_interrupt(dropped: sys.UnraisableHookArgs) -> None:
    """Send the interrupt signal again if Python dropped it.

    Python drops exceptions of finalisers and of callbacks of the garbage collector.
    """
    if dropped.exc_type is KeyboardInterrupt:
        # A real signal also ends a blocking wait of the main thread.
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()
