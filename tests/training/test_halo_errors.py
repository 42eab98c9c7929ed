"""What smaller halos cost, as measured for the contract."""

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


def clouded() -> np.ndarray:
    """Valid in the first 36 rows alone, and there not from row 28 to 32."""
    values = noise(SIDE, SIDE)
    values[:, 36:] = np.nan
    values[0, 28:32] = np.nan
    return values


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return Model.load(tiny_model, provider="cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three areas: one valid, one mostly not, and one too small."""
    root = tmp_path_factory.mktemp("project")
    areas = {name: {"role": "training", "folder": "data"} for name in ("hill", "cloud", "tiny")}
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
    write_stack(project.stack("hill"), noise(SIDE, SIDE))
    write_stack(project.stack("cloud"), clouded())
    write_stack(project.stack("tiny"), noise(80, 300))
    return project


def block(row: int, column: int, landslide_pixels: int = 9, side: int = 32) -> Block:
    return Block(Window(column, row, side, side), "training", landslide_pixels)


def core(model: Model, values: np.ndarray, row: int, column: int, context: int) -> np.ndarray:
    """The probability of a core of 28 pixels a side, by a bare session that sees so much around it."""
    rows, columns = (slice(first - context, first + 28 + context) for first in (row, column))
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"stack": np.ascontiguousarray(values[:, rows, columns])[np.newaxis]})[0][0, 0]
    return found[context : context + 28, context : context + 28]


def test_it_is_the_difference_of_the_plain_network_with_less_context(model: Model, project: Project) -> None:
    """Around one block: the core is as wide as the halo, 28 pixels, and centred on it as far as the lattice goes."""
    errors = halo_errors.measure_halo_errors(model, project, {"hill": [block(98, 86), block(0, 0, landslide_pixels=0)]})
    values = noise(SIDE, SIDE)
    exact = core(model, values, 100, 88, 60)
    assert np.array_equal(core(model, values, 100, 88, 28), exact)
    assert errors == {
        context: float(np.abs(core(model, values, 100, 88, context) - exact).max()) for context in range(0, 28, 4)
    }
    assert min(errors.values()) > 0


def test_only_pixels_that_are_mapped_count(model: Model, project: Project) -> None:
    """Of the core at 28, which a window in the raster's corner has, rows 4 to 8 are valid."""
    errors = halo_errors.measure_halo_errors(model, project, {"cloud": [block(0, 0)]})
    difference = np.abs(core(model, clouded(), 28, 28, 0) - core(model, clouded(), 28, 28, 28))
    assert errors[0] == difference[4:8].max() < difference.max()
    assert halo_errors.measure_halo_errors(model, project, {"cloud": [block(150, 150)]}) == {}


def test_nothing_is_measured_where_no_core_has_its_whole_halo(model: Model, project: Project) -> None:
    assert halo_errors.measure_halo_errors(model, project, {"tiny": [block(30, 100)]}) == {}
    assert halo_errors.measure_halo_errors(model, project, {"hill": [block(90, 90, landslide_pixels=0)]}) == {}


def test_the_windows_are_spread_over_areas_and_blocks(
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
    many = halo_errors._read_samples(model, project, {"hill": blocks, "cloud": blocks})
    assert seen == ["hill", "cloud"]
    assert 2 <= len(many) <= halo_errors.MAX_WINDOWS
    assert halo_errors.measure_halo_errors(model, project, {"hill": blocks}) == halo_errors.measure_halo_errors(
        model, project, {"hill": blocks}
    )


@pytest.mark.slow
def test_a_map_with_less_halo_differs_by_the_order_of_what_was_measured(
    model: Model, project: Project, tmp_path: Path
) -> None:
    """A few windows do not see the worst pixel of a map: four times as much passes, and so does a quarter."""
    blocks = [block(row, column) for row in range(30, 150, 32) for column in range(30, 150, 32)]
    errors = halo_errors.measure_halo_errors(model, project, {"hill": blocks})
    probability = {}
    for context in (0, 4, 12, 20, model.halo):
        predict(model, project.stack("hill"), tmp_path / str(context), MapOptions(tile=56, halo=context))
        with open_raster(tmp_path / str(context) / "probability.tif") as dataset:
            probability[context] = dataset.read(1)
    exact = probability.pop(model.halo)
    for context, found in probability.items():
        difference = np.abs(found - exact).max()
        assert errors[context] / 4 < difference < 4 * errors[context], context
