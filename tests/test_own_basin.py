"""Tests of the tutorial on a basin of one's own: fewer epochs, a coarser grid."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pyogrio
import pytest
import yaml

from doc_blocks import run_by
from fresh_clone import ROOT, clone, run_shell

pytestmark = [pytest.mark.real, pytest.mark.slow]

VENV = Path(sys.prefix)


@pytest.fixture(scope="module")
def kashmir(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """A project made as docs/tutorials/own-basin.md describes, after its `dvc repro`."""
    root = clone(tmp_path_factory.mktemp("own") / "kashmir")
    for name in ("data", "data.dvc", "dvc.lock", "evaluation", "src"):  # talud is installed: its sources are not needed
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copytree(real_data / "kashmir", root / "data" / "kashmir", copy_function=shutil.copyfile)
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/tutorials/own-basin.md").read_text(), flags=re.DOTALL)
    assert block
    params = yaml.safe_load(block[1])
    params["stack"]["resolution"] = 60
    params["split"] |= {"block": 32, "patch": 32, "stride": 32}
    params["searches"]["one"] |= {"filters": [4], "epochs": 2}
    params["promotion"] = {"require_skill": False}  # two epochs are too few for a model to learn much
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    identity = {
        f"GIT_{who}_{what}": "kashmir@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "true"}
    for block in run_by("tests/test_own_basin.py::kashmir"):
        result = run_shell(block.code, root, VENV, **identity, **quiet)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return root


def test_every_stage_has_its_result(kashmir: Path) -> None:
    scores = json.loads((kashmir / "evaluation" / "terrain.scores.json").read_text())
    transfer = scores["areas"]["kashmir_east"]
    share = (transfer["tp"] + transfer["fn"]) / sum(transfer[count] for count in ("tp", "fp", "fn", "tn"))
    assert 0.005 < share < 0.03  # the inventory covers about 1.45 % of the whole
    assert (kashmir / "reports" / "index.html").is_file()
    registration = json.loads((kashmir / "registered" / "terrain.json").read_text())
    assert (registration["name"], registration["alias"]) == ("landslide-unet-terrain", "champion")


def test_polygons_open_in_ogr(kashmir: Path) -> None:
    path = kashmir / "predictions" / "terrain" / "kashmir_east" / "landslides.gpkg"
    layers = dict(pyogrio.list_layers(path))
    assert set(layers) >= {"landslides", "not_mapped"}
    if shutil.which("ogrinfo"):
        result = run_shell(f"ogrinfo -so {path} landslides", kashmir, VENV)
        assert result.returncode == 0, result.stderr
        assert "Polygon" in result.stdout
