"""What reaches the terminal, and the Ctrl-C that comes from it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType


@dataclass
class _Hush:
    """What keeps stderr while blocks hold it back: threads share it, and the last one to end gives it back."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    blocks: int = 0
    terminal: int = -1


_hush = _Hush()


@contextmanager
def hushed() -> Iterator[None]:
    """Hold back what C libraries write to stderr past every handler; a Python error still shows, after the block."""
    with _hush.lock:
        if not _hush.blocks:
            sys.stderr.flush()
            _hush.terminal = os.dup(2)
            with Path(os.devnull).open("w") as sink:
                os.dup2(sink.fileno(), 2)
        _hush.blocks += 1
    try:
        yield
    finally:
        with _hush.lock:
            _hush.blocks -= 1
            if not _hush.blocks:
                os.dup2(_hush.terminal, 2)
                os.close(_hush.terminal)


def at_a_desktop() -> bool:
    """Whether a person is at the terminal of a machine that can show them a browser."""
    screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return sys.stdout.isatty() and screen


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Let a Ctrl-C inside the block end the process at once, as it ends programs that are not in Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


@contextmanager
def unbroken() -> Iterator[None]:
    """Hold a first Ctrl-C back until the block has ended; a second one breaks it.

    For what must not be cut short: a transaction, which would leave a database locked, or an import, which may
    swallow the interrupt.
    """
    with held_back():
        yield


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold a first Ctrl-C back until the block calls what it is given, or has ended; a second one breaks it.

    For what can be cut short only here and there: a C library may turn the interrupt into an error of its own.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: None
        return
    held = False

    def hold(number: int, _: FrameType | None) -> None:
        nonlocal held
        held = True
        signal.signal(number, before)

    def release() -> None:
        nonlocal held
        if held:
            held = False
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, hold)
    try:
        yield release
    finally:
        signal.signal(signal.SIGINT, before)
        release()
