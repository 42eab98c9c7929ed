"""Tasks for workers to do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from talud.cluster import SendMessage
from talud.errors import StudyError


def record_start(path: Path, tell: SendMessage) -> int:
    """Say which process has begun, and give the process back; each beginning is a line of the file."""
    with path.open("a") as beginnings:
        beginnings.write(f"{os.getpid()}\n")
    tell(["begun", os.getpid()])
    return os.getpid()


def wait_for_release(path: Path, tell: SendMessage) -> int:
    """The same, and stay until somebody lets it go."""
    record_start(path, tell)
    while not release_file(path).exists():
        time.sleep(0.01)
    tell(["ends", os.getpid()])
    return os.getpid()


def release_file(path: Path) -> Path:
    """The file that lets a task go that is held."""
    return path.with_suffix(".leave")


def die(path: Path, tell: SendMessage) -> int:
    """Be killed, where the file's name says so."""
    begun = record_start(path, tell)
    time.sleep(0.5)
    if path.name == "deadly":
        os.kill(begun, signal.SIGKILL)
    return begun


def fail(path: Path, tell: SendMessage) -> None:
    """Fail, or go on until nobody wants it any more, and then write the file."""
    if path.name == "failing":
        while not path.exists():  # the other one has begun
            time.sleep(0.01)
        raise StudyError("no such luck") from OSError(lambda: "a cause that no pickle carries")
    try:
        while True:
            tell("on")
            (path.parent / "failing").touch()
            time.sleep(0.01)
    except KeyboardInterrupt:
        path.touch()
        raise


def read_variable(name: str, tell: SendMessage) -> tuple[int, str | None]:
    """The process, and one of its variables."""
    time.sleep(0.5)
    return os.getpid(), os.environ.get(name)
