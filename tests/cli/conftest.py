"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _away_from_this_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This repository is a project too, in which a map that a test makes would be recorded."""
    monkeypatch.chdir(tmp_path)
