"""Tests that DVC ignores side files which programs write beside data."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fresh_clone import ROOT


@pytest.mark.slow
def test_dvc_ignores_side_files_of_other_programs() -> None:
    names = [
        f"predictions/7band/here/{name}"
        for name in ("landslides.gpkg.aux.xml", "landslides.gpkg-wal", "landslides.gpkg-shm", "landslides.gpkg")
    ]
    command = [sys.executable, "-m", "dvc", "check-ignore", *names]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.split() == names[:3], result.stderr
