"""Tests of registering an adapted model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from small_projects import pixels, write_area, write_model, write_params
from stack_files import write_stack
from talud import load_model
from talud.cli.main import app
from talud.errors import RegistryError
from talud.evaluation import promotion
from talud.measurement.features import measure_features
from talud.registry import Store

CUTS = range(0, 256, 64)


@pytest.mark.slow
def test_adapted_version_states_its_origin_without_alias(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write_params(tmp_path / "project")
    rows, _ = np.indices((128, 128))
    write_area(project, "basin", rows % 10 == 0)
    windows = np.stack([pixels(256, 256)[:, row : row + 64, column : column + 64] for row in CUTS for column in CUTS])
    write_model(project, tiny_model, 0.5, measure_features(onnx.load(tiny_model), windows))
    assert promotion.register(project, "project").alias == "champion"
    raster = write_stack(tmp_path / "valley.tif", pixels(256, 256) * np.float32(0.8) + 20)
    monkeypatch.chdir(project.root)
    command = ["adapt", "landslide-unet-project", str(raster), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    output = json.loads(result.output)
    assert output["made"] == "models:/landslide-unet-project/2"
    store = Store.open(project.root)
    version = store.models.look_up(output["made"])
    assert (version.aliases, store.models.look_up("landslide-unet-project").version) == ((), "1")
    assert version.tags["adapted_from"] == "models:/landslide-unet-project/1"
    found = store.runs.find(version.run_id)
    assert found is not None
    assert found.parameters["raster"] == "valley.tif"
    contract = load_model(output["made"]).contract
    assert contract.derived.adapted is not None
    assert (contract.derived.adapted.version, contract.origin.run_id, contract.origin.weights) == (
        "1",
        version.run_id,
        output["made_weights"],
    )
    assert (
        json.loads(CliRunner().invoke(app, command).output)["made"] == output["made"]
    )  # an equal model is not registered twice
    card = CliRunner().invoke(app, ["models", "show", "landslide-unet-project/2"])
    assert "valley.tif" in card.output
    store.models.fetch(version.uri).path.write_bytes(project.model("project").read_bytes())
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, RegistryError)
    assert "the registered model is not the one that talud adapt made; no alias was moved" in str(refused)
