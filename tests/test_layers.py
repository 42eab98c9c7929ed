"""Tests of imports between layers and of the light installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("tensorflow", "keras", "tf2onnx", "dvc", "matplotlib", "sklearn", "distributed")

BLOCKER = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKER + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", HEAVY)
def test_import_blocker_blocks_imports(name: str) -> None:
    assert f"No module named '{name}'" in run(f"import {name}").stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["import talud.products.prediction", "import talud.registry", "import talud.cli.main", "import talud"]
)
def test_runtime_needs_no_tensorflow_dvc_matplotlib_or_dask(code: str) -> None:
    result = run(code)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_engine_maps_arrays_without_rasterio(tiny_model: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy as np
from talud.engine.runtime import Model
print(Model.load(Path({str(tiny_model)!r})).probability(np.zeros((3, 24, 40), np.float32)).shape)
assert not [name for name in sys.modules if name.split(".")[0] == "rasterio"]
"""
    result = run(code)
    assert (result.stdout, result.stderr) == ("(24, 40)\n", "")


def test_help_imports_no_heavy_library() -> None:
    code = """
import sys
import talud.cli.main
print([name for name in ("tensorflow", "mlflow", "onnxruntime", "geopandas", "scipy") if name in sys.modules])
"""
    assert run(code).stdout.strip() == "[]"


@pytest.mark.slow
def test_training_imports_keras_without_unused_packages() -> None:
    code = """
import sys
import talud.training
assert "keras" in sys.modules
assert not {"jax", "matplotlib", "sklearn"} & set(sys.modules), sys.modules
import sklearn.ensemble, matplotlib.pyplot
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
