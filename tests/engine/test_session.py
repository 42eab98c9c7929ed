"""Opening sessions of ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from talud.engine.runtime import Model
from talud.engine.session import physical_cores


def test_threads_are_the_cores_of_this_process() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from talud.engine.session import physical_cores; print(physical_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    assert physical_cores() >= 1


def test_the_session_runs_on_those_cores(model: Model) -> None:
    assert model._session.get_session_options().intra_op_num_threads == physical_cores()


@pytest.mark.slow
def test_opening_a_model_says_nothing(tiny_model: Path) -> None:
    """ONNX Runtime warns about a CUDA library that is absent; nobody without a GPU wants to read that."""
    code = f"import talud; print(talud.load_model({str(tiny_model)!r}).provider)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [result.stdout.strip()]
