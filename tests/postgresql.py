"""A PostgreSQL of a test's own, as `team/run.py` starts one: on loopback, gone at the end."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fresh_clone import ROOT


@contextmanager
def postgresql() -> Iterator[str]:
    """SQLAlchemy's URL of an empty database."""
    team = script()
    if team.postgresql() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="talud-postgresql-"))
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *command: object, **options: Any) -> None:
        with (folder / "logs" / name).open("wb") as log:
            started[name] = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                **options,
            )  # fmt: skip

    try:
        for name in ("database", "logs"):
            (folder / name).mkdir(mode=0o700)
        yield f"{team.start_postgresql(folder, start)}/runs"
    finally:
        team.stop(started)
        shutil.rmtree(folder)


def script() -> ModuleType:
    """team/run.py as a module."""
    spec = importlib.util.spec_from_file_location("team_run", ROOT / "team/run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
