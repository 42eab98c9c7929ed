"""Tests of a project that an older talud made.

`project_before_versions.tar.xz` holds what talud of commit 4a0e340 wrote for a small synthetic project: the study
`small`, finished and registered with an int8 variant, the study `long`, stopped in its third epoch, and the
probabilities of an array of pixels. The MLflow store is a dump of its SQLite database.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from talud.cli.main import main
from talud.engine.runtime import Model
from talud.errors import TaludWarning
from talud.mapping.tiles import mapped_probability
from talud.registry import Store


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tarfile.open(Path(__file__).with_name("project_before_versions.tar.xz")) as packed:
        packed.extractall(tmp_path, filter="data")
    root = tmp_path / "project"
    with closing(sqlite3.connect(root / "mlflow.db")) as store:
        dump = (root / "mlflow.sql").read_text(encoding="utf-8")
        # The store holds absolute paths, so it is loaded as if the project had always been here.
        store.executescript(dump.replace("file:///tmp/project", root.as_uri()).replace("/tmp/project", str(root)))
    monkeypatch.chdir(root)
    return root


def test_older_registry_is_read_and_its_champion_used(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talud(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["talud", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0, said.err) == (0, "")
        return said.out

    assert "landslide-unet-both" in talud("models", "list")
    store = Store.open(project)
    (version,) = store.models.versions()
    run_id = json.loads((project / "models" / "both.trials.json").read_text())["best"]
    assert (version.version, version.run_id, version.aliases) == ("1", run_id, ("champion",))
    fetched = store.models.fetch("models:/landslide-unet-both@champion")
    assert Model.load(fetched.path).contract.origin.run_id == run_id


@pytest.mark.parametrize(("file", "precision"), [("both.onnx", "float32"), ("both.int8.onnx", "int8")])
def test_older_model_file_gives_the_same_map(project: Path, file: str, precision: str) -> None:
    model = Model.load(project / "models" / file)
    assert model.contract.derived.precision == precision
    assert (model.contract.input.halo, model.contract.measured.threshold) == (10, 0.22)
    with np.load(project / "probabilities.npz") as recorded:
        found = mapped_probability(model, recorded["values"])
        np.testing.assert_allclose(found, recorded[precision], atol=1e-6 if precision == "float32" else 0.02)


@pytest.mark.slow
def test_older_unfinished_study_restarts_with_a_warning(project: Path) -> None:
    tags = {"band_set": "both", "search": "long", "study": "0" * 32, "data_version": "0" * 32, "commit": "unknown"}
    runs = Store.open(project).runs
    with (
        pytest.warns(TaludWarning, match=r"study of both \(search long\) that began on 2026-11-30 is unfinished"),
        runs.study("both · long", tags),
    ):
        pass
    with runs.study("both · small", tags | {"search": "small", "study": "1" * 32}):
        pass  # the study before was finished: no message
