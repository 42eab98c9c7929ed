"""Tests of zonal statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shapely

from stack_files import grid_of, write_stack
from talud.engine.runtime import Model
from talud.mapping.reader import open_stack
from talud.products.polygons import zonal_statistics
from talud.raster import Layout, write_cog

# Wide enough for two borders between windows.
SHAPE = 40, 2100


@pytest.fixture(scope="module")
def terrain_model(exporter) -> Model:
    return Model.load(exporter(2, ("curvature",)))


def polygons(*where: tuple[slice, slice]) -> np.ndarray:
    transform = grid_of(1, 1).transform
    corners = [(*(transform * (c.start, r.stop)), *(transform * (c.stop, r.start))) for r, c in where]
    return np.array([shapely.box(*box) for box in corners], np.object_)


def measured(
    folder: Path,
    model: Model,
    outlines: np.ndarray,
    bands: dict[str, np.ndarray],
    probability: np.ndarray,
    units: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    bands = {"curvature": np.zeros(SHAPE)} | bands
    values = np.stack([*bands.values()]).astype(np.float32)
    raster = write_stack(folder / "stack.tif", values, list(bands), units=units)
    path = folder / "probability.tif"
    with write_cog(path, grid_of(*SHAPE), Layout("float32", float("nan"), ("probability",))) as writer:
        writer.write(probability.astype(np.float32), 1)
    with open_stack(raster, model.contract) as stack:
        return zonal_statistics(outlines, path, stack)


def test_statistics_cover_valid_pixels_across_windows(terrain_model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    probability, slope, elevation = rng.random(SHAPE), rng.uniform(0, 90, SHAPE), rng.uniform(0, 4000, SHAPE)
    slope[6, 1000:1030] = np.nan
    elevation[25:, :] = np.nan
    where = (np.s_[5:9, 1000:1060], np.s_[20:21, 3:4], np.s_[26:30, 2000:2099])
    found = measured(tmp_path, terrain_model, polygons(*where), {"slope": slope, "elevation": elevation}, probability)
    for number, inside in enumerate(where):
        expected = {
            "mean_probability": probability[inside].mean(),
            "maximum_probability": probability[inside].max(),
            "mean_slope_degrees": np.nanmean(slope[inside]),
            "minimum_elevation_m": elevation[inside].min(),
            "maximum_elevation_m": elevation[inside].max(),
        }
        for name, value in expected.items():
            assert found[name][number] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    assert np.isnan(found["aspect_degrees"][2])


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [0, 40, 90, 135, 200, 359])
def test_aspect_of_a_plane_is_its_downslope_direction(terrain_model: Model, tmp_path: Path, degrees: float) -> None:
    """Compare with the closed form, also at the edge of the raster.

    The plane h = -(east sin a + north cos a) descends towards a.
    """
    row, column = np.indices(SHAPE)
    angle = np.radians(degrees)
    height = 2000 - column * np.sin(angle) + row * np.cos(angle)
    where = polygons(np.s_[10:20, 1020:1030], np.s_[0:1, 0:1])
    found = measured(tmp_path, terrain_model, where, {"elevation": height}, np.zeros(SHAPE))["aspect_degrees"]
    assert np.abs((found - degrees + 180) % 360 - 180).max() < 0.1


def test_aspect_uses_pixels_of_neighbouring_windows(terrain_model: Model, tmp_path: Path) -> None:
    """Compare pixels at a border with NumPy's gradient of the whole raster."""
    height = np.random.default_rng(2).uniform(0, 400, SHAPE).astype(np.float32)
    inside = np.s_[10:13, 1024:1025]
    to_south, to_east = np.gradient(height)
    expected = np.degrees(np.arctan2(-to_east[inside].mean(), to_south[inside].mean())) % 360
    found = measured(tmp_path, terrain_model, polygons(inside), {"elevation": height}, np.zeros(SHAPE))
    assert found["aspect_degrees"][0] == pytest.approx(expected, abs=1e-3)


def test_level_ground_has_no_aspect(terrain_model: Model, tmp_path: Path) -> None:
    found = measured(
        tmp_path, terrain_model, polygons(np.s_[3:9, 3:9]), {"elevation": np.full(SHAPE, 7.0)}, np.zeros(SHAPE)
    )
    assert np.isnan(found["aspect_degrees"]).all()


def test_columns_depend_on_bands_and_units(terrain_model: Model, tmp_path: Path) -> None:
    probability = np.zeros(SHAPE)
    nothing = np.array([], np.object_)
    plain = measured(tmp_path, terrain_model, nothing, {}, probability)
    assert list(plain) == ["mean_probability", "maximum_probability"]
    bands = {"slope": np.zeros(SHAPE), "elevation": np.zeros(SHAPE)}
    in_feet = measured(tmp_path, terrain_model, nothing, bands, probability, ("1/100m", "degree", "foot"))
    assert list(in_feet) == ["mean_probability", "maximum_probability", "mean_slope_degrees"]
