"""Tests of polygons and masks in the wrong location.

They are refused or warned of, with the distance and the likely reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from command_line import Run
from source_files import CORNER, UTM, write_project, write_raster

LEFT, TOP = CORNER
SIDE = 64  # pixels of 12.5 m
SQUARE = shapely.box(LEFT + 200, TOP - 300, LEFT + 300, TOP - 200)
AWAY = shapely.affinity.translate(SQUARE, 250_000)
AREA = {"role": "training", "folder": "data"}
WGS84 = "EPSG:4326"

Fill = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an area's sources in a project.

    The command line works in the project.
    """
    write_raster(tmp_path / "data/optical.tif", np.random.default_rng(0).integers(9, 220, (3, SIDE, SIDE), np.uint8))
    write(tmp_path / "data/inventory.gpkg", SQUARE)
    write_project(tmp_path, {"here": AREA})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def write(path: Path, *geometries: shapely.Geometry, crs: str | None = UTM, to: str | None = None) -> Path:
    """Write a vector file; with `to`, transformed to another CRS."""
    frame = geopandas.GeoDataFrame(geometry=list(geometries), crs=crs)
    (frame.to_crs(to) if to else frame).to_file(path, engine="pyogrio")
    return path


def geojson(path: Path, *geometries: shapely.Geometry, crs: str | None = None) -> None:
    """Write a GeoJSON with unchanged coordinates.

    It has a `crs` member only if `crs` is given.
    """
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(g)} for g in geometries]
    content: dict[str, object] = {"type": "FeatureCollection", "features": features}
    if crs:
        content["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{crs.replace(':', '::')}"}}
    path.write_text(json.dumps(content))


def without_number() -> shapely.Polygon:
    return shapely.Polygon([(LEFT, TOP), (LEFT, np.nan), (LEFT + 9, TOP)])


def swapped(geometry: shapely.Geometry) -> shapely.Geometry:
    return shapely.transform(geometry, lambda points: points[:, ::-1])


def degrees(geometry: shapely.Geometry) -> shapely.Geometry:
    return geopandas.GeoSeries([geometry], crs=UTM).to_crs(WGS84).iloc[0]


def instead(name: str, fill: Fill) -> Fill:
    """Return a function that replaces the GeoPackage by another inventory."""

    def put(folder: Path) -> None:
        (folder / "inventory.gpkg").unlink(missing_ok=True)
        fill(folder / name)

    return put


NOT_DEGREES = r"1 of 1 feature\(s\) has a coordinate such as \(400300, 599700\), which is not a longitude and latitude"
REFUSED: dict[str, tuple[Fill, str]] = {
    "GeoJSON in metres without crs": (
        instead("inventory.geojson", lambda path: geojson(path, SQUARE)),
        r"inventory\.geojson: " + NOT_DEGREES + r", as a GeoJSON without another 'crs' must have \(RFC 7946\).*-a_srs",
    ),
    "metres in EPSG:4326": (
        lambda at: write(at / "inventory.gpkg", SQUARE, crs=WGS84),
        NOT_DEGREES + r", as its coordinate reference system \(EPSG:4326\) has",
    ),
    "some metres among degrees": (
        instead("inventory.geojson", lambda path: geojson(path, degrees(SQUARE), SQUARE)),
        r"1 of 2 feature\(s\) has a coordinate such as",
    ),
    "degrees in UTM": (
        lambda at: write(at / "inventory.gpkg", degrees(SQUARE)),
        r"none of its 1 polygons is in area 'here'; .*its coordinates are those of EPSG:4326, but it states EPSG:32618",
    ),
    "latitude before longitude": (
        instead("inventory.geojson", lambda path: geojson(path, swapped(degrees(SQUARE)))),
        r"is in area 'here'; .*its x and y are swapped",
    ),
    "north before east": (lambda at: write(at / "inventory.gpkg", swapped(SQUARE)), "its x and y are swapped"),
    "swapped degrees in UTM": (
        lambda at: write(at / "inventory.gpkg", swapped(degrees(SQUARE))), "latitude and longitude, swapped"
    ),
    "another UTM zone": (
        lambda at: write(at / "inventory.gpkg", SQUARE, crs="EPSG:32617"),
        r"its coordinates are those of EPSG:32618, but it states EPSG:32617.*-a_srs EPSG:32618",
    ),
    "250 km away": (
        lambda at: write(at / "inventory.gpkg", AWAY), r"the nearest is 249 km away; check its coordinate reference"
    ),
    "NaN": (
        lambda at: write(at / "inventory.gpkg", SQUARE, without_number()),
        r"1 of 2 feature\(s\) has a coordinate that is not finite",
    ),
    "boundary elsewhere": (
        lambda at: write(at / "boundary.gpkg", AWAY), r"boundary\.gpkg: none of its 1 polygons is .*249 km"
    ),
    "boundary in metres without crs": (
        lambda at: geojson(at / "boundary.geojson", SQUARE), r"boundary\.geojson: .*not a longitude and latitude"
    ),
    "boundary without polygons": (lambda at: write(at / "boundary.gpkg", shapely.Polygon()), "has no polygons, so"),
    "cloud in metres without crs": (
        lambda at: geojson(at / "cloud.geojson", SQUARE), r"cloud\.geojson: .*not a longitude and latitude"
    ),
    "cloud in another zone": (
        lambda at: write(at / "cloud.gpkg", SQUARE, crs="EPSG:32617"), ".*those of EPSG:32618, but it states"
    ),
    "cloud on another side of Earth": (
        lambda at: write(at / "cloud.gpkg", shapely.box(100, 10, 101, 11), crs=WGS84), r"cloud.gpkg: none of its"
    ),
    "cloud raster elsewhere": (
        lambda at: write_raster(at / "cloud.tif", np.ones((9, 9), np.uint8), corner=(LEFT + 250_000, TOP)),
        r"cloud\.tif: does not overlap area 'here'",
    ),
    "cloud raster without CRS": (
        lambda at: write_raster(at / "cloud.tif", np.ones((9, 9), np.uint8), crs=None), r"cloud\.tif: no coordinate ref"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:.*(NaN|invalid value).*")
def test_misplaced_source_is_refused_with_the_reason(talud: Run, folder: Path, case: str) -> None:
    fill, said = REFUSED[case]
    fill(folder)
    code, out, err = talud("stack", "here")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.search(said, err), err
    assert not (folder.parent / "stacks").exists() or not list((folder.parent / "stacks").rglob("*.tif"))


def test_geojson_with_a_crs_member_in_metres_is_read(talud: Run, folder: Path) -> None:
    (folder / "inventory.gpkg").unlink()
    geojson(folder / "inventory.geojson", SQUARE, crs=UTM)
    code, out, err = talud("stack", "here")
    assert (code, err) == (0, "")
    assert "1 polygon, 64 landslide pixels" in out


def test_polygons_outside_the_crs_are_reported_as_far_away(talud: Run, folder: Path) -> None:
    there = [degrees(SQUARE), shapely.box(105, -0.5, 105.1, 0.5), shapely.box(20, -89.9, 30, -89)]
    write(folder / "inventory.gpkg", *there, crs=WGS84)
    code, out, err = talud("stack", "here")
    assert (code, err) == (0, "")
    assert "1 polygon, 64 landslide pixels" in out
    assert "without a polygon" not in out


@pytest.mark.parametrize("name", ["cloud.gpkg", "sar_mask.gpkg"])
def test_clouds_outside_the_area_raise_a_warning(talud: Run, folder: Path, name: str) -> None:
    if name.startswith("sar"):
        write_raster(folder / "sar_pre.tif", np.ones((SIDE, SIDE), np.float32), units=("power",))
    write(folder / name, AWAY)
    code, _, err = talud("stack", "here")
    assert code == 0
    assert err.splitlines()[-1].startswith("talud: warning: ")
    assert re.search(rf"{name}: none of its 1 polygons is in area 'here'; the nearest is 249 km away", err)
    with rasterio.open(folder.parent / "stacks/here.tif") as dataset:
        assert np.isfinite(dataset.read(1)).all()


def test_cloud_layer_without_clouds_is_accepted(talud: Run, folder: Path) -> None:
    geopandas.GeoDataFrame(geometry=[], crs=UTM).to_file(folder / "cloud.gpkg", geometry_type="Polygon")
    code, _, err = talud("stack", "here")
    assert (code, err) == (0, "")


def test_map_and_stack_like_check_cloud_locations(talud: Run, folder: Path, tiny_model: Path) -> None:
    sources = ["--optical", folder / "optical.tif", "--cloud", write(folder / "far.gpkg", SQUARE, crs="EPSG:32617")]
    code, _, err = talud("stack", "--like", tiny_model, *sources, "--out", folder / "out.tif")
    assert code == 1
    assert "those of EPSG:32618, but it states EPSG:32617" in err
    assert not (folder / "out.tif").exists()
    sources[-1] = write(folder / "beside.gpkg", AWAY)
    code, _, err = talud("map", "--model", tiny_model, *sources, "--out", folder / "map")
    assert code == 0
    assert err.count("talud: warning: ") == 1
    assert "249 km away" in err


def test_misplaced_corrections_are_refused_with_the_reason(talud: Run, folder: Path) -> None:
    geojson(folder / "edits.geojson", SQUARE)
    code, _, err = talud("inventory", "import", folder / "edits.geojson", "--area", "here")
    assert code == 1
    assert "not a longitude and latitude" in err
    geojson(folder / "edits.geojson", swapped(degrees(SQUARE)))
    code, _, err = talud("inventory", "import", folder / "edits.geojson", "--area", "here")
    assert code == 1
    assert "its x and y are swapped" in err
