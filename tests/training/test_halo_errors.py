"""Tests of the errors of smaller halos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from rasterio.windows import Window

from stack_files import noise, write_stack
from talud.data.patches import Block
from talud.engine.runtime import Model
from talud.mapping.options import MapOptions
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import open_raster
from talud.training import halo_errors

SIDE = 220


def cloudy_stack() -> np.ndarray:
    """Return a stack that is valid in rows 0 to 27 and 32 to 35."""
    values = noise(SIDE, SIDE)
    values[:, 36:] = np.nan
    values[0, 28:32] = np.nan
    return values


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return Model.load(tiny_model, provider="cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with a valid, a mostly invalid and a too small area."""
    root = tmp_path_factory.mktemp("project")
    areas = {name: {"role": "training", "folder": "data"} for name in ("valid", "cloudy", "small")}
    grid = {"filters": [4], "learning_rate": [0.001], "batch_size": [8], "epochs": 1}
    params = {
        "seed": 1,
        "areas": areas,
        "band_sets": {"3band": ["red", "green", "blue"]},
        "stack": {},
        "split": {},
        "training": {"depth": 2},
        "search": "one",
        "searches": {"one": grid},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "stacks").mkdir()
    project = Project.find(root)
    write_stack(project.stack("valid"), noise(SIDE, SIDE))
    write_stack(project.stack("cloudy"), cloudy_stack())
    write_stack(project.stack("small"), noise(80, 300))
    return project


def block(row: int, column: int, landslide_pixels: int = 9, side: int = 32) -> Block:
    return Block(Window(column, row, side, side), "training", landslide_pixels)


def core_probability(model: Model, values: np.ndarray, row: int, column: int, context: int) -> np.ndarray:
    """Return the probability of a 28 × 28 core from a plain session with some context."""
    rows, columns = (slice(first - context, first + 28 + context) for first in (row, column))
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"stack": np.ascontiguousarray(values[:, rows, columns])[np.newaxis]})[0][0, 0]
    return found[context : context + 28, context : context + 28]


def test_halo_errors_match_onnx_runtime_with_less_context(model: Model, project: Project) -> None:
    """Compare a block's core, which is as wide as the halo (28 pixels)."""
    errors = halo_errors.measure_halo_errors(
        model, project, {"valid": [block(98, 86), block(0, 0, landslide_pixels=0)]}
    )
    values = noise(SIDE, SIDE)
    exact = core_probability(model, values, 100, 88, 60)
    assert np.array_equal(core_probability(model, values, 100, 88, 28), exact)
    assert errors == {
        context: float(np.abs(core_probability(model, values, 100, 88, context) - exact).max())
        for context in range(0, 28, 4)
    }
    assert min(errors.values()) > 0


def test_halo_errors_count_only_mapped_pixels(model: Model, project: Project) -> None:
    """Count rows 4 to 8 of the core at 28, which are the valid ones."""
    errors = halo_errors.measure_halo_errors(model, project, {"cloudy": [block(0, 0)]})
    difference = np.abs(
        core_probability(model, cloudy_stack(), 28, 28, 0) - core_probability(model, cloudy_stack(), 28, 28, 28)
    )
    assert errors[0] == difference[4:8].max() < difference.max()
    assert halo_errors.measure_halo_errors(model, project, {"cloudy": [block(150, 150)]}) == {}


def test_halo_errors_are_empty_without_room_or_landslides(model: Model, project: Project) -> None:
    assert halo_errors.measure_halo_errors(model, project, {"small": [block(30, 100)]}) == {}
    assert halo_errors.measure_halo_errors(model, project, {"valid": [block(90, 90, landslide_pixels=0)]}) == {}


def test_halo_error_windows_are_spread_over_areas_and_blocks(
    model: Model, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [block(row, column) for row in range(0, 192, 32) for column in range(0, 192, 32)]
    windows = halo_errors._windows(blocks, (SIDE, SIDE), model.halo, model.contract.input.alignment)
    assert len(windows) == len(set(windows))
    for window in windows:
        assert window.row_off % 4 == window.col_off % 4 == 0
        assert (window.height, window.width) == (84, 84)
        assert 0 <= window.row_off <= SIDE - 84
        assert 0 <= window.col_off <= SIDE - 84
    assert halo_errors._spread(range(100), 5) == [10, 30, 50, 70, 90]
    assert halo_errors._spread("ab", 5) == ["a", "b"]
    seen = []
    opened = halo_errors.open_stack
    monkeypatch.setattr(
        halo_errors, "open_stack", lambda path, contract: seen.append(path.stem) or opened(path, contract)
    )
    many = halo_errors._read_samples(model, project, {"valid": blocks, "cloudy": blocks})
    assert seen == ["valid", "cloudy"]
    assert 2 <= len(many) <= halo_errors.MAX_WINDOWS
    assert halo_errors.measure_halo_errors(model, project, {"valid": blocks}) == halo_errors.measure_halo_errors(
        model, project, {"valid": blocks}
    )


@pytest.mark.slow
def test_halo_errors_predict_errors_of_a_map(model: Model, project: Project, tmp_path: Path) -> None:
    """Allow a factor of 4, since a few windows do not hold the worst pixel of a map."""
    blocks = [block(row, column) for row in range(30, 150, 32) for column in range(30, 150, 32)]
    errors = halo_errors.measure_halo_errors(model, project, {"valid": blocks})
    probability = {}
    for context in (0, 4, 12, 20, model.halo):
        predict(model, project.stack("valid"), tmp_path / str(context), MapOptions(tile=56, halo=context))
        with open_raster(tmp_path / str(context) / "probability.tif") as dataset:
            probability[context] = dataset.read(1)
    exact = probability.pop(model.halo)
    for context, found in probability.items():
        difference = np.abs(found - exact).max()
        assert errors[context] / 4 < difference < 4 * errors[context], context
