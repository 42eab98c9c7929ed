"""Polygons of a map."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from stack_files import grid_of
from talud.grid import Grid
from talud.inference import polygons
from talud.raster import Layout, writing_cog

PIXEL = 12.5**2


def traced(folder: Path, parts: np.ndarray, grid: Grid | None = None) -> tuple[polygons.Landslides, polygons.NotMapped]:
    probability = np.arange(parts.size, dtype=np.float32).reshape(parts.shape) / parts.size
    paths = folder / "parts.tif", folder / "probability.tif"
    for path, values in zip(paths, (parts, probability), strict=True):
        with writing_cog(path, grid or grid_of(*parts.shape), Layout(values.dtype.name, None, (path.stem,))) as raster:
            raster.write(values, 1)
    return polygons.trace(*paths, {1: "optical invalid", 2: "sar invalid"})


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3)))
def test_polygons_are_the_groups_of_pixels_that_touch(tmp_path: Path, parts: np.ndarray) -> None:
    """Checked against SciPy's labels of 8-connected pixels."""
    slides, rest = traced(tmp_path, parts)
    transform = grid_of(1, 1).transform
    outlines = [*slides.outlines, *rest.outlines]
    assert all(outline.is_valid for outline in outlines)
    for value, found, reason in ((1, slides.outlines, None), (2, rest.outlines, 0), (3, rest.outlines, 1)):
        if reason is not None:
            found = found[rest.reason == ("optical invalid", "sar invalid")[reason]]
        labels, count = ndimage.label(parts == value, np.ones((3, 3)))
        assert len(found) == count
        if count:
            burnt = rasterio.features.rasterize(
                zip(found, range(1, count + 1), strict=True), parts.shape, transform=transform
            )
            assert len(np.unique(np.stack([burnt, labels])[:, parts == value], axis=1).T) == count
            assert np.array_equal(burnt > 0, parts == value)
    assert shapely.area(outlines).sum() == (parts > 0).sum() * PIXEL


def test_a_diagonal_run_is_one_landslide_without_its_corners(tmp_path: Path) -> None:
    slides, _ = traced(tmp_path, np.eye(5, dtype=np.uint8))
    assert slides.area.tolist() == [5 * PIXEL]
    assert slides.outlines[0].geom_type == "MultiPolygon"


def test_the_mean_is_over_the_pixels_of_each_landslide_across_windows(tmp_path: Path) -> None:
    parts = np.zeros((40, 2100), np.uint8)
    parts[5:9, 1000:1060] = 1  # across the border of two windows
    parts[20, 3], parts[20, 2090] = 1, 2
    slides, rest = traced(tmp_path, parts)
    probability = np.arange(parts.size).reshape(parts.shape) / parts.size
    expected = [probability[5:9, 1000:1060].mean(), probability[20, 3]]
    assert slides.mean_probability == pytest.approx(expected, rel=1e-6)
    assert slides.area.tolist() == [240 * PIXEL, PIXEL]
    assert (rest.area.tolist(), rest.reason.tolist()) == ([PIXEL], ["optical invalid"])


def test_areas_are_square_metres_in_a_grid_of_feet(tmp_path: Path) -> None:
    slides, _ = traced(tmp_path, np.ones((2, 3), np.uint8), grid_of(2, 3, epsg=2263, pixel=100.0))
    assert slides.area == pytest.approx([6 * 30.48006096**2])


def test_the_file_has_the_same_bytes_whenever_it_is_written(tmp_path: Path) -> None:
    layers = traced(tmp_path, np.array([[1, 0, 2], [0, 0, 2], [1, 1, 3]], np.uint8))
    for name in ("first", "second"):
        polygons.write(tmp_path / f"{name}.gpkg", *layers, grid_of(3, 3), {"TALUD_MODEL": "3band"})
        time.sleep(1.1)  # the clock of GDAL counts seconds
    assert (tmp_path / "first.gpkg").read_bytes() == (tmp_path / "second.gpkg").read_bytes()
