"""Tests of the adaptation of a band set's model to an area, as in the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
import yaml
from typer.testing import CliRunner

from small_projects import pixels, write_area, write_model, write_params
from talud.adaptation.area_map import adapt_area
from talud.cli.main import app
from talud.data.stack_record import data_version
from talud.engine.model_file import save_model
from talud.engine.runtime import Model
from talud.errors import MismatchError
from talud.evaluation.results import ScoreTable
from talud.evaluation.scores import evaluate
from talud.files import md5
from talud.lineage.trace import trace_lineage
from talud.measurement.features import FeatureStatistics, measure_features
from talud.products.prediction import predict
from talud.project import Project

pytestmark = pytest.mark.slow  # the tests map an area with each of three models

SIDE = 128


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    """Project whose model was trained on basin, with the map of valley."""
    valley = {"role": "transfer", "folder": "data/valley", "adapt": True}
    found = write_params(tmp_path / "project", valley=valley)
    rows, _ = np.indices((SIDE, SIDE))
    for area in ("basin", "valley"):
        write_area(found, area, rows % 10 == 0)
        digests = {"stack_md5": md5(found.stack(area)), "mask_md5": md5(found.mask(area))}
        found.stack_record(area).parent.mkdir(exist_ok=True)
        found.stack_record(area).write_text(json.dumps(digests))
    squares = np.stack([pixels(SIDE, SIDE)[:, row : row + 32, :32] for row in range(0, SIDE, 32)])
    features = measure_features(onnx.load(tiny_model), squares)
    write_model(found, tiny_model, 0.5, features, data_version=data_version(found, ["basin"]), areas=("basin",))
    predict(Model.load(found.model("project")), found.stack("valley"), found.prediction("project", "valley"))
    return found


def change_params(project: Project, **valley: object) -> Project:
    path = project.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["areas"]["valley"] |= valley
    path.write_text(yaml.safe_dump(params))
    return Project.find(project.root)


def test_adapted_area_is_mapped_and_scored(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    done = CliRunner().invoke(app, ["adapt", "project", "valley"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("project, adapted to valley (b")
    folder = project.root / "predictions" / "project" / "valley.adapted"
    record = json.loads((folder / "adaptation.json").read_text())
    model = Model.load(folder / "model.onnx")
    assert (record["adapted"], record["weights"]) == (
        True,
        Model.load(project.model("project")).contract.origin.weights,
    )
    assert json.loads((folder / "prediction.json").read_text())["model"]["weights"] == model.contract.origin.weights
    assert model.contract.origin.areas == trace_lineage(str(folder), project.root).trained_on
    scores = evaluate(project, "project")
    with rasterio.open(folder / "landslides.tif") as mapped, rasterio.open(project.mask("valley")) as mask:
        found, truth = mapped.read(1), mask.read(1)
    counts = scores.adapted["valley"]
    assert (counts.tp, counts.fp) == (((found == 1) & (truth == 1)).sum(), ((found == 1) & (truth == 0)).sum())
    assert ScoreTable.read(project.scores("project")) == scores
    metrics = json.loads(project.metrics("project").read_text())
    assert metrics["adapted"]["valley"]["f1"] == pytest.approx(counts.f1)
    assert project.confusion_map("project", "valley.adapted").is_file()
    write_model(project, project.model("project"), 0.4, weights="0" * 64)
    predict(Model.load(project.model("project")), project.stack("valley"), project.prediction("project", "valley"))
    with pytest.raises(MismatchError, match=r"was not adapted from project\.onnx; run talud adapt project valley"):
        evaluate(project, "project")


def test_area_without_request_has_a_record_only(project: Project) -> None:
    adapt_area(project, "project", "valley")
    found = adapt_area(change_params(project, adapt=False), "project", "valley")
    assert found.lines == ("project: not adapted to valley; set areas.valley.adapt: true to do so",)
    folder = project.adapted_prediction("project", "valley")
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["adaptation.json"]
    assert not evaluate(change_params(project, adapt=True), "project").adapted


def test_declined_area_states_why_and_succeeds(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    graph = onnx.load(project.model("project"))
    contract = Model.load(project.model("project")).contract.replace(threshold=1e-35, landslide_share=0.05)
    features = FeatureStatistics.of(graph).to_metadata()
    del graph.metadata_props[:]
    save_model(graph, contract, project.model("project"), features)
    done = CliRunner().invoke(app, ["adapt", "project", "valley"])
    assert done.exit_code == 0, done.output
    record = json.loads((project.adapted_prediction("project", "valley") / "adaptation.json").read_text())
    assert record["reason"].startswith("the model is not adapted to it, and its map as it is is probably wrong too: ")
    assert "use the original" not in done.output
    assert [one["plausible"] for one in record["tried"]] == [False] * 3
    assert not record["adapted"]
