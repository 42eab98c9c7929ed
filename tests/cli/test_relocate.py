"""Tests of `talud models relocate` on copied projects."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import Run
from small_projects import SOMETHING, write_area, write_model, write_params
from talud.evaluation import promotion

NAME = "landslide-unet-3band"


@pytest.mark.slow
def test_relocate_updates_a_copied_project(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, talud: Run
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old = write_params(tmp_path / "3band")
    write_area(old, "basin", np.indices((128, 128))[0] % 10 == 0)
    write_model(old, tiny_model, SOMETHING)
    promotion.register(old, "3band")
    new = tmp_path / "a copy ñ"
    shutil.copytree(old.root, new)
    shutil.rmtree(old.root)
    monkeypatch.chdir(new)
    code, _, err = talud("models", "list")
    assert (code, err.count("\n")) == (1, 1)
    assert "run talud models relocate" in err
    before = (new / "mlflow.db").read_bytes()
    code, out, _ = talud("models", "relocate")
    assert (code, (new / "mlflow.db").read_bytes()) == (0, before)
    assert f"from {(tmp_path / '3band/mlartifacts').as_uri()} to {(new / 'mlartifacts').as_uri()}" in out
    assert all(f"  {place}: 1\n" in out for place in ("experiments.artifact_location", "runs.artifact_uri"))
    assert talud("models", "relocate", "--yes")[0] == 0
    assert (new / "mlflow.db.before-relocation").is_file()
    code, out, err = talud("models", "list")
    assert (code, err) == (0, "")
    assert NAME in out
    assert "champion" in out
    code, out, err = talud("predict", "auto", "stacks/basin.tif", "--out", "map")
    assert (code, err) == (0, "")
    assert f"{NAME}, version 1" in out
    assert "nothing to relocate" in talud("models", "relocate")[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "names another store" in talud("models", "relocate", "--yes")[2]
