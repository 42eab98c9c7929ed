"""Tests of ONNX Runtime sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from talud.engine.runtime import Model
from talud.engine.session import physical_cores


def test_default_threads_are_the_cores_of_the_process() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from talud.engine.session import physical_cores; print(physical_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    assert physical_cores() >= 1


def test_session_uses_the_default_threads(model: Model) -> None:
    assert model._session.get_session_options().intra_op_num_threads == physical_cores()


@pytest.mark.slow
def test_opening_a_model_prints_nothing(tiny_model: Path) -> None:
    """ONNX Runtime would warn about a missing CUDA library without a GPU."""
    code = f"import talud; print(talud.load_model({str(tiny_model)!r}).provider)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [result.stdout.strip()]
