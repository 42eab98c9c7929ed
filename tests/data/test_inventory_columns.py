"""Tests of the columns of corrected inventories.

The values survive in every format, under a name that the format can store.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import pyogrio
import pytest
import shapely

from source_files import CORNER, UTM, write_project, write_raster
from talud.data.inventory_revision import Revision, revise_inventory
from talud.errors import SourceError
from talud.project import Project

LEFT, TOP = CORNER
SQUARES = [shapely.box(LEFT + x, TOP - 200, LEFT + x + 50, TOP - 150) for x in (100, 300, 500)]
FORMATS = ["inventory.gpkg", "inventory.shp", "inventory.geojson"]


def write(path: Path, geometries: list[shapely.Polygon], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyogrio.write_dataframe(geopandas.GeoDataFrame(columns, geometry=geometries, crs=UTM), path)
    return path


def geojson(path: Path, **columns: list[Any]) -> Path:
    """Write a GeoJSON of the squares with the given attributes."""
    features = [
        {
            "type": "Feature",
            "properties": {name: values[number] for name, values in columns.items()},
            "geometry": shapely.geometry.mapping(square),
        }
        for number, square in enumerate(SQUARES)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32618"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path


def make_project(root: Path, file: str = "inventory.gpkg", **columns: Any) -> Project:
    import numpy as np

    write_raster(root / "data/optical.tif", np.random.default_rng(0).integers(9, 220, (3, 64, 64)).astype(np.uint8))
    write(root / "data" / file, SQUARES, **(columns or {"note": ["a", "b", "c"], "number": [1, 2, 3]}))
    return write_project(root, {"here": {"role": "training", "folder": "data"}})


def imported(project: Project, edits: Path) -> tuple[Revision, geopandas.GeoDataFrame]:
    result = revise_inventory(project, "here", edits)
    found = pyogrio.read_dataframe(result.path)
    assert len(found) == 3
    order = found.geometry.bounds.minx.argsort()
    return result, found.iloc[order].reset_index(drop=True)


ODD: dict[str, dict[str, list[Any]]] = {
    "fid of a split feature": {"fid": [7, 7, 8]},
    "fid without a value": {"fid": [None, None, 1]},
    "fid as text": {"fid": ["a", "b", "a"]},
    "FID": {"FID": [1, 1, 2]},
    "ogc_fid": {"ogc_fid": [1, 1, None]},
    "geom": {"geom": ["x", "y", "z"]},
    "geometry": {"geometry": ["x", "y", "z"]},
    "names that differ in case": {"Area": [1, 2, 3], "area": [4, 5, 6], "AREA": [7, 8, 9]},
    "reserved words": {"select": [1, 2, 3], "order": [4, 5, 6], "group": ["a", "b", "c"], "table": [1, 2, 3]},
    "columns of a map": {"id": [1, 2, 3], "area_m2": [1.5, 2.5, 3.5], "mean_probability": [0.5, 0.6, 0.7]},
    "long names": {"the name of whoever drew it" * 4: ["p", "q", "r"], "the name of": ["s", "t", "u"]},
    "quotes and accents": {'a"b': [1, 2, 3], "año": [4, 5, 6], "x'; drop table y": [7, 8, 9]},
    "no name": {"": [1, 2, 3]},
    "numbered already": {"fid": [1, 1, 1], "fid_2": [5, 6, 7]},
    "mixed values": {"mixed": [1, "b", None]},
    "lists": {"seen": [["a", "b"], [], None]},
    "another kind": {"number": ["one", "two", "three"]},
    "truth": {"sure": [True, False, None]},
}


def values(frame: geopandas.GeoDataFrame) -> list[tuple[str, ...]]:
    """Return columns as texts, since formats store a number in several ways."""

    def text(value: Any) -> str:
        missing = value is None or value != value
        return "" if missing else f"{float(value):g}" if isinstance(value, (int, float)) else str(value)

    return [tuple(text(value) for value in frame[name].tolist()) for name in frame.columns if name != "geometry"]


def texts(column: list[Any]) -> tuple[str, ...]:
    def text(value: Any) -> str:
        if isinstance(value, (int, float)):
            return f"{float(value):g}"
        return "" if value is None else json.dumps(value) if isinstance(value, list) else value

    return tuple(text(value) for value in column)


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("case", ODD)
def test_import_keeps_the_values_of_any_column(tmp_path: Path, file: str, case: str) -> None:
    project = make_project(tmp_path, file)
    _, found = imported(project, geojson(tmp_path / "edits.geojson", **ODD[case]))
    for column in ODD[case].values():
        if case == "mixed values":
            assert ("1", "b", "") in values(found)
        elif case == "lists" and file == "inventory.geojson":
            assert any("a" in str(value) and "b" in str(value) for value in found.seen)
        else:
            assert texts(column) in values(found)
    assert list(found.note) == ["a", "b", "c"]
    again = revise_inventory(project, "here", tmp_path / "edits.geojson")
    assert not again.written


def test_renamed_columns_are_reported(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    result, found = imported(
        project, geojson(tmp_path / "edits.geojson", fid=[7, 7, 8], Area=[1, 2, 3], area=[4, 5, 6])
    )
    assert result.renamed == {"fid": "fid_2", "area": "area_2"}
    assert list(found.fid_2) == [7, 7, 8]
    assert (list(found.Area), list(found.area_2)) == ([1, 2, 3], [4, 5, 6])


def test_column_names_match_regardless_of_case(tmp_path: Path) -> None:
    project = make_project(tmp_path, Number=[1, 2, 3])
    result, found = imported(project, geojson(tmp_path / "edits.geojson", number=[4, 5, 6]))
    assert result.renamed == {"number": "Number"}
    assert list(found.columns) == ["Number", "geometry"]
    assert list(found.Number) == [4, 5, 6]


def test_geopackage_keeps_its_key_and_geometry_names(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    path = tmp_path / "data/inventory.gpkg"
    path.unlink()
    frame = geopandas.GeoDataFrame({"fid": [5, 5, 6]}, geometry=SQUARES, crs=UTM)
    pyogrio.write_dataframe(frame, path, FID="number", GEOMETRY_NAME="outline")
    result, found = imported(project, geojson(tmp_path / "edits.geojson", number=["p", "q", "r"], outline=[1, 2, 3]))
    assert result.renamed == {"number": "number_2", "outline": "outline_2"}
    assert list(found.fid) == [5, 5, 6]
    with closing(sqlite3.connect(path)) as database:
        names = [row[1] for row in database.execute("PRAGMA table_info(inventory)")]
    assert names[:2] == ["number", "outline"]


def test_shapefile_edits_from_qgis_after_a_split_are_imported(tmp_path: Path) -> None:
    """The fid of a GeoPackage becomes an attribute, which a split duplicates."""
    project = make_project(tmp_path)
    left, right = (shapely.box(x, TOP - 200, x + 25, TOP - 150) for x in (LEFT + 100, LEFT + 125))
    edits = write(tmp_path / "edits.shp", [left, right, SQUARES[1]], fid=[1, 1, 2], note=["a", "a", "b"])
    result = revise_inventory(project, "here", edits)
    assert result.after.polygons == 3
    assert sorted(pyogrio.read_dataframe(result.path).fid_2) == [1, 1, 2]


def test_text_too_long_for_a_shapefile_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path, "inventory.shp")
    before = (tmp_path / "data/inventory.dbf").read_bytes()
    with pytest.raises(SourceError, match=r"column 'why' has a text of 300 bytes.* can store 254"):
        revise_inventory(project, "here", geojson(tmp_path / "edits.geojson", why=["x" * 300, "", ""]))
    assert (tmp_path / "data/inventory.dbf").read_bytes() == before
