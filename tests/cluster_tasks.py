"""Tasks that the tests of clusters run on workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from talud.cluster import SendMessage
from talud.errors import StudyError


def record_start(path: Path, send: SendMessage) -> int:
    """Append the process id to a file, send it, and return it."""
    with path.open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    send(["started", os.getpid()])
    return os.getpid()


def wait_for_release(path: Path, send: SendMessage) -> int:
    """Record the start, and wait until the release file exists."""
    record_start(path, send)
    while not release_file(path).exists():
        time.sleep(0.01)
    send(["ends", os.getpid()])
    return os.getpid()


def release_file(path: Path) -> Path:
    """Return the file that ends the wait of a task."""
    return path.with_suffix(".leave")


def die(path: Path, send: SendMessage) -> int:
    """Kill this process if the file's name is `deadly`."""
    pid = record_start(path, send)
    time.sleep(0.5)
    if path.name == "deadly":
        os.kill(pid, signal.SIGKILL)
    return pid


def fail(path: Path, send: SendMessage) -> None:
    """Raise an error if the file's name is `failing`; else run until cancelled."""
    if path.name == "failing":
        while not path.exists():  # until the other task has started
            time.sleep(0.01)
        raise StudyError("failed on purpose") from OSError(lambda: "a cause that cannot be pickled")
    try:
        while True:
            send("on")
            (path.parent / "failing").touch()
            time.sleep(0.01)
    except KeyboardInterrupt:
        path.touch()
        raise


def read_variable(name: str, send: SendMessage) -> tuple[int, str | None]:
    """Return the process id and an environment variable."""
    time.sleep(0.5)
    return os.getpid(), os.environ.get(name)
