"""Tests of the polygons of a map."""

from __future__ import annotations

import json
import re
import resource
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from stack_files import grid_of
from talud.errors import OutputError
from talud.grid import Grid
from talud.products import polygons
from talud.raster import Layout, write_cog

PIXEL = 12.5**2


def traced(
    folder: Path, parts: np.ndarray, grid: Grid | None = None, minimum_area: float = 0
) -> tuple[polygons.Landslides, polygons.NotMapped]:
    with write_cog(folder / "parts.tif", grid or grid_of(*parts.shape), Layout("uint8", None, ("parts",))) as raster:
        raster.write(parts, 1)
    return polygons.trace_polygons(*[folder / "parts.tif"] * 2, {1: "optical invalid", 2: "sar invalid"}, minimum_area)


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3)))
def test_polygons_are_8_connected_components(tmp_path: Path, parts: np.ndarray) -> None:
    """Compare the polygons with SciPy's labels."""
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


def test_diagonal_pixels_are_one_landslide(tmp_path: Path) -> None:
    slides, _ = traced(tmp_path, np.eye(5, dtype=np.uint8))
    assert slides.area.tolist() == [5 * PIXEL]
    assert slides.outlines[0].geom_type == "MultiPolygon"


def test_polygons_have_area_perimeter_and_reason(tmp_path: Path) -> None:
    parts = np.zeros((40, 2100), np.uint8)
    parts[5:9, 1000:1060] = 1
    parts[6, 1010:1013] = 0  # a hole
    parts[20, 3], parts[20, 2090] = 1, 2
    slides, rest = traced(tmp_path, parts)
    assert slides.area.tolist() == [237 * PIXEL, PIXEL]
    assert slides.perimeter.tolist() == [(2 * 64 + 8) * 12.5, 4 * 12.5]
    assert (rest.area.tolist(), rest.reason.tolist()) == ([PIXEL], ["optical invalid"])


def test_landslides_below_the_minimum_area_are_counted(tmp_path: Path) -> None:
    parts = np.zeros((9, 9), np.uint8)
    parts[0, 0], parts[2:4, 2], parts[6, 2:5], parts[8, 8] = 1, 1, 1, 2
    slides, rest = traced(tmp_path, parts, minimum_area=2 * PIXEL)
    assert (slides.area.tolist(), slides.left_out) == ([3 * PIXEL, 2 * PIXEL], 1)
    assert rest.area.tolist() == [PIXEL]  # the minimum area does not apply to unmapped parts


def test_areas_are_in_square_metres_if_the_grid_is_in_feet(tmp_path: Path) -> None:
    slides, _ = traced(tmp_path, np.ones((2, 3), np.uint8), grid_of(2, 3, epsg=2263, pixel=100.0))
    assert slides.area == pytest.approx([6 * 30.48006096**2])


def attributes(slides: polygons.Landslides) -> dict[str, np.ndarray]:
    return {"mean_probability": np.where(slides.area > PIXEL, 0.75, np.nan)}


@pytest.mark.slow
def test_file_has_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    slides, rest = traced(tmp_path, np.array([[1, 0, 2], [0, 0, 2], [1, 1, 3]], np.uint8))
    for name in ("first", "second"):
        tags = {"TALUD_MODEL": "3band"}
        polygons.write_geopackage(tmp_path / f"{name}.gpkg", slides, attributes(slides), rest, grid_of(3, 3), tags)
        polygons.write_geojson(tmp_path / f"{name}.geojson", slides, attributes(slides), grid_of(3, 3))
        time.sleep(1.1)  # GDAL's clock has a resolution of seconds
    for suffix in ("gpkg", "geojson"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()


def test_geopackage_contains_qgis_styles_of_both_layers(tmp_path: Path) -> None:
    """Query the styles as QGIS does."""
    slides, rest = traced(tmp_path, np.array([[1, 0, 2]], np.uint8))
    polygons.write_geopackage(tmp_path / "l.gpkg", slides, attributes(slides), rest, grid_of(1, 3), {})
    with closing(sqlite3.connect(tmp_path / "l.gpkg")) as database:
        geometry = dict(database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns"))
        assert geometry.keys() == {"landslides", "not_mapped"}
        kinds = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents"))
        assert kinds["layer_styles"] == "attributes"
        for layer, column in geometry.items():
            [(style, default)] = database.execute(
                "SELECT styleQML, useAsDefault FROM layer_styles "
                "WHERE f_table_schema='' AND f_table_name=? AND f_geometry_column=?",
                (layer, column),
            )
            root = ElementTree.fromstring(style)
            assert (root.tag, default) == ("qgis", 1)
            assert root.find("renderer-v2/symbols/symbol[@type='fill']/layer") is not None
            fields = {name for _, name, *_ in database.execute(f"PRAGMA table_info({layer})")}
            asked = set(re.findall(r'"(\w+)"', root.findtext("mapTip") or ""))
            assert asked - {"model", "version"} <= fields


def test_geojson_follows_rfc_7946(tmp_path: Path) -> None:
    """Compare with pyproj; exterior rings must be counterclockwise."""
    slides, _ = traced(tmp_path, np.array([[1, 1, 0, 1]], np.uint8))
    polygons.write_geojson(tmp_path / "l.geojson", slides, attributes(slides), grid_of(1, 4))
    content = json.loads((tmp_path / "l.geojson").read_text())
    assert "crs" not in content
    assert [feature["properties"]["area_m2"] for feature in content["features"]] == slides.area.tolist()
    assert content["features"][1]["properties"]["mean_probability"] is None
    to_degrees = pyproj.Transformer.from_crs(32618, 4326, always_xy=True)
    for feature, outline in zip(content["features"], slides.outlines, strict=True):
        found = shapely.geometry.shape(feature["geometry"])
        expected = shapely.transform(outline, to_degrees.transform, interleaved=False)
        assert shapely.hausdorff_distance(found, expected) < 1e-7
        for part in found.geoms:
            assert part.exterior.is_ccw


@pytest.mark.parametrize("missing", [1, 2, 40, 2000])
def test_incomplete_geojson_on_a_full_disk_is_an_error(tmp_path: Path, missing: int) -> None:
    slides, _ = traced(tmp_path, np.eye(40, dtype=np.uint8)[::-1] | np.eye(40, dtype=np.uint8, k=-9))
    path = tmp_path / "l.geojson"
    polygons.write_geojson(path, slides, attributes(slides), grid_of(40, 40))
    size = path.stat().st_size
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            polygons.write_geojson(path, slides, attributes(slides), grid_of(40, 40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_without_landslides_are_valid(tmp_path: Path) -> None:
    slides, rest = traced(tmp_path, np.zeros((2, 2), np.uint8))
    polygons.write_geopackage(tmp_path / "l.gpkg", slides, attributes(slides), rest, grid_of(2, 2), {})
    polygons.write_geojson(tmp_path / "l.geojson", slides, attributes(slides), grid_of(2, 2))
    assert json.loads((tmp_path / "l.geojson").read_text())["features"] == []
