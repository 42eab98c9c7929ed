"""Tests of maps of rasters that consist of patches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from stack_files import noise, write_stack
from talud.engine.runtime import Model
from talud.errors import MismatchError, ParamsError, SourceError
from talud.grid import Grid
from talud.mapping.options import MapOptions
from talud.products.prediction import predict

SIDE = 32
LOCAL = CRS.from_wkt('LOCAL_CS["patches side by side",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]')


def patch_stack(folder: Path, values: np.ndarray, side: object = SIDE) -> Path:
    height, width = values.shape[1:]
    grid = Grid(LOCAL, Affine(12.5, 0, 0, 0, -12.5, 12.5 * height), height, width)
    return write_stack(folder / "patches.tif", values, grid=grid, tags={"TALUD_PATCH": str(side)})


@pytest.mark.slow
def test_patches_are_mapped_independently(unets: dict[int, Model], tmp_path: Path) -> None:
    model, values = unets[3], noise(3 * SIDE, 4 * SIDE)
    predict(model, patch_stack(tmp_path, values), tmp_path / "map", MapOptions(tta=False))
    with rasterio.open(tmp_path / "map" / "probability.tif") as raster:
        mapped, tags = raster.read(1), raster.tags()
    for row in range(3):
        for column in range(4):
            place = np.s_[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
            np.testing.assert_array_equal(mapped[place], model.run(np.ascontiguousarray(values[:, *place])))
    assert tags["TALUD_PATCH"] == "32"
    assert "TALUD_HALO" not in tags  # a patch is mapped with all of its context
    record = json.loads((tmp_path / "map" / "prediction.json").read_text())
    assert (record["tiles"], record["tile"], record["halo"], record["exact_halo"]) == (12, [32, 32], 0, 0)
    assert "in local coordinates" in (tmp_path / "map" / "summary.html").read_text()


@pytest.mark.parametrize("option", [{"tile": 64}, {"halo": 0}, {"geojson": True}])
def test_tile_and_halo_are_refused_for_patches(unets: dict[int, Model], tmp_path: Path, option: dict[str, int]) -> None:
    raster = patch_stack(tmp_path, noise(2 * SIDE, 2 * SIDE))
    with pytest.raises(ParamsError, match=f"--{next(iter(option))}"):
        predict(unets[2], raster, tmp_path / "map", MapOptions(**option))
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize("side", ["0", "-32", "thirty-two", "48", "9" * 400])
def test_invalid_patch_side_is_refused(unets: dict[int, Model], tmp_path: Path, side: str) -> None:
    with pytest.raises(SourceError, match="its tag TALUD_PATCH states") as caught:
        predict(unets[2], patch_stack(tmp_path, noise(64, 64), side), tmp_path / "map")
    assert len(str(caught.value).split(": ", 1)[1]) < 200


def test_patches_that_do_not_fit_the_lattice_are_refused(unets: dict[int, Model], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="patches of 20 pixels, the model expects a multiple of 16"):
        predict(unets[4], patch_stack(tmp_path, noise(40, 40), 20), tmp_path / "map")


def test_local_coordinates_without_patches_are_refused(unets: dict[int, Model], tmp_path: Path) -> None:
    grid = Grid(LOCAL, Affine(12.5, 0, 0, 0, -12.5, 800), 64, 64)
    with pytest.raises(MismatchError, match="is not projected"):
        predict(unets[2], write_stack(tmp_path / "mine.tif", noise(64, 64), grid=grid), tmp_path / "map")
