"""PostgreSQL server for a test, started as in `team/run.py` on loopback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fresh_clone import ROOT


@dataclass(frozen=True)
class PostgreSQL:
    """Running PostgreSQL server.

    Attributes:
        url: SQLAlchemy URL of an empty database.
    """

    url: str
    _command: list[str]
    _options: dict[str, Any]
    _started: dict[str, subprocess.Popen[bytes]]

    def kill(self) -> None:
        """End the server and all its processes as a power cut would."""
        process = self._started["postgresql"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def start(self) -> None:
        """Start the server again over the same data."""
        self._started["postgresql"] = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, **self._options,
        )  # fmt: skip


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a server; yield the SQLAlchemy URL of an empty database."""
    with running_postgresql() as server:
        yield server.url


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """Yield a PostgreSQL server that can be killed and started again."""
    team = script()
    if team.postgresql() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="talud-postgresql-"))
    started: dict[str, subprocess.Popen[bytes]] = {}
    how: dict[str, Any] = {}

    def start(name: str, *command: object, **options: Any) -> None:
        how.update(command=list(map(str, command)), options=options)
        with (folder / "logs" / name).open("wb") as log:
            started[name] = subprocess.Popen(
                how["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **options
            )

    try:
        for name in ("database", "logs"):
            (folder / name).mkdir(mode=0o700)
        url = f"{team.start_postgresql(folder, start)}/runs"
        yield PostgreSQL(url, how["command"], how["options"], started)
    finally:
        team.stop(started)
        shutil.rmtree(folder)


def script() -> ModuleType:
    """Import team/run.py as a module."""
    spec = importlib.util.spec_from_file_location("team_run", ROOT / "team/run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
