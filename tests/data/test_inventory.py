"""Tests of reading and rasterising polygons."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from shapely.geometry import Point, Polygon, box

from talud.data.inventory import Polygons, extract_polygons
from talud.errors import SourceError
from talud.grid import Grid

UTM = CRS.from_epsg(32618)
GRID = Grid(UTM, Affine(10, 0, 400_000, 0, -10, 600_000), 20, 30)  # 400000 to 400300 east, 599800 to 600000 north


def square(left: float, bottom: float, side: float) -> Polygon:
    return box(400_000 + left, 599_800 + bottom, 400_000 + left + side, 599_800 + bottom + side)


def write(path: Path, geometries: list[shapely.Geometry | None], layer: str | None = None, **columns: list) -> Path:
    frame = geopandas.GeoDataFrame(columns, geometry=geometries, crs="EPSG:32618")
    frame.to_file(path, **({"layer": layer} if layer else {}))
    return path


def test_inventory_rules_mark_the_expected_pixels(tmp_path: Path) -> None:
    # From 14 to 36: touches the pixels from 10 to 40, holds the centres 15, 25 and 35.
    path = write(tmp_path / "inventory.gpkg", [square(14, 14, 22), square(103, 103, 4)])
    polygons = Polygons.read(path, "inventory", UTM)
    centre = polygons.rasterise(GRID, all_touched=False)
    expected = np.zeros(GRID.shape, bool)
    expected[16:19, 1:4] = True
    expected[9, 10] = True  # its only pixel, with the centre at 105, 105
    assert np.array_equal(centre, expected)
    wide = write(
        tmp_path / "wide.gpkg", [square(16, 16, 18)]
    )  # contains only the centre 25, touches three pixels each way
    polygons = Polygons.read(wide, "inventory", UTM)
    assert polygons.rasterise(GRID, all_touched=False).sum() == 1
    assert polygons.rasterise(GRID, all_touched=True).sum() == 9


def test_rasterised_windows_equal_the_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    geometries = [
        Point(*p).buffer(r)
        for p, r in zip(
            random.uniform((400_000, 599_800), (400_300, 600_000), (40, 2)), random.uniform(2, 30, 40), strict=True
        )
    ]
    polygons = Polygons.read(write(tmp_path / "inventory.gpkg", geometries), "inventory", UTM)
    whole = polygons.rasterise(GRID, all_touched=True)
    pieces = np.zeros_like(whole)
    for window in GRID.windows(7):
        pieces[window.toslices()] = polygons.rasterise(GRID.crop(window), all_touched=True)
    assert np.array_equal(pieces, whole)


def test_polygons_are_transformed_to_the_grid_crs(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(geometry=[square(50, 50, 100)], crs=32618).to_crs(4326)
    frame.to_file(tmp_path / "inventory.geojson")
    polygons = Polygons.read(tmp_path / "inventory.geojson", "inventory", UTM)
    assert polygons.rasterise(GRID, all_touched=False).sum() == 100


def test_invalid_polygons_are_repaired_and_others_counted(tmp_path: Path) -> None:
    bow = Polygon([(400_010, 599_810), (400_110, 599_910), (400_110, 599_810), (400_010, 599_910)])
    line = Polygon([(400_010, 599_810), (400_110, 599_910), (400_010, 599_810)])
    path = write(tmp_path / "inventory.gpkg", [square(150, 50, 40), bow, Polygon(), None, line])
    polygons = Polygons.read(path, "inventory", UTM)
    assert (len(polygons.geometries), polygons.repaired, polygons.skipped) == (2, 1, 3)
    assert polygons.rasterise(GRID, all_touched=False)[:, :12].sum() == pytest.approx(50, abs=6)  # half of 10 by 10


def test_filter_selects_features(tmp_path: Path) -> None:
    path = write(tmp_path / "inventory.shp", [square(0, 0, 10), square(50, 0, 10)], year=[2015, 1999])
    polygons = Polygons.read(path, "inventory", UTM, "year >= 2015")
    assert polygons.geometries[0].bounds[0] == 400_000
    assert len(polygons.geometries) == 1
    with pytest.raises(SourceError, match=r"inventory\.shp.*age > 1"):
        Polygons.read(path, "inventory", UTM, "age > 1")


def test_named_layer_is_read_among_several(tmp_path: Path) -> None:
    path = tmp_path / "all.gpkg"
    write(path, [square(0, 0, 10)], layer="parcels")
    assert len(Polygons.read(path, "inventory", UTM).geometries) == 1
    write(path, [square(0, 0, 10)] * 3, layer="inventory")
    assert len(Polygons.read(path, "inventory", UTM).geometries) == 3
    with pytest.raises(SourceError, match=r"2 layers of polygons .parcels, inventory.; keep one"):
        Polygons.read(path, "boundary", UTM)


def test_layer_of_points_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "inventory.gpkg", [Point(400_010, 599_900)])
    with pytest.raises(SourceError, match="has no layer of polygons"):
        Polygons.read(path, "inventory", UTM)


def test_file_without_vector_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inventory.gpkg"
    path.write_bytes(b"not a GeoPackage")
    with pytest.raises(SourceError, match="cannot be read as polygons"):
        Polygons.read(path, "inventory", UTM)


def test_shapefile_without_prj_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "inventory.shp", [square(0, 0, 10)])
    path.with_suffix(".prj").unlink()
    with pytest.raises(SourceError, match="no coordinate reference system"):
        Polygons.read(path, "inventory", UTM)


def burnt(folder: Path, name: str) -> int:
    """Count the pixels of GRID that GDAL's own tool marks for a GeoPackage."""
    left, bottom, right, top = GRID.bounds
    out = folder / "burnt.tif"
    extent = ["-te", *map(str, (left, bottom, right, top)), "-tr", "10", "10"]
    command = ["gdal_rasterize", "-q", "-burn", "1", "-ot", "Byte", *extent, folder / name, out]
    subprocess.run(command, check=True, capture_output=True)
    with rasterio.open(out) as dataset:
        return int(np.count_nonzero(dataset.read(1)))


OVERLAPPING = shapely.MultiPolygon([square(20, 20, 60), square(50, 50, 60)])
TWICE_ROUND = Polygon([(400_000 + x, 599_820 + y) for x, y in
                       ((0, 0), (100, 0), (100, 50), (30, 50), (30, -20), (70, -20), (70, 100), (0, 100))])  # fmt: skip


def test_overlapping_parts_of_a_multipolygon_are_united(tmp_path: Path) -> None:
    polygons = Polygons.read(write(tmp_path / "inventory.gpkg", [OVERLAPPING]), "inventory", UTM)
    assert polygons.repaired == 1
    assert polygons.geometries[0].area == 60 * 60 * 2 - 30 * 30
    write(tmp_path / "parts.gpkg", list(OVERLAPPING.geoms))
    assert polygons.rasterise(GRID, all_touched=False).sum() == burnt(tmp_path, "parts.gpkg") == 63


@pytest.mark.parametrize(
    ("geometry", "area"),
    [
        (OVERLAPPING, 6_300),
        (shapely.MultiPolygon([square(20, 20, 60), square(30, 30, 10)]), 3_600),  # one part inside another
        (shapely.MultiPolygon([square(20, 20, 60), square(20, 20, 60)]), 3_600),  # the same part twice
        (shapely.MultiPolygon([square(20, 20, 60), square(80, 20, 60)]), 7_200),  # parts that share an edge
        (TWICE_ROUND, 100 * 50 + 70 * 50 + 40 * 20),  # a ring that covers 40 by 50 metres twice
        (Polygon([(400_000, 599_800), (400_100, 599_900), (400_100, 599_800), (400_000, 599_900)]), 5_000),  # bow tie
        (Polygon(square(0, 0, 100).exterior, [square(20, 20, 30).exterior, square(40, 40, 30).exterior]), 8_300),
        (Polygon(square(0, 0, 100).exterior, [square(80, 80, 40).exterior]), 9_600),  # a hole across the boundary
        (shapely.GeometryCollection([OVERLAPPING, Point(400_000, 599_900)]), 6_300),
        (shapely.GeometryCollection([shapely.GeometryCollection([OVERLAPPING])]), 6_300),
    ],
)
def test_repair_keeps_ground_covered_twice_and_holes(geometry: shapely.Geometry, area: float) -> None:
    found = extract_polygons(geometry)
    assert found is not None
    assert found.is_valid
    assert found.area == pytest.approx(area)


corners = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 19)), min_size=3, max_size=6, unique=True)


@settings(max_examples=60)
@given(st.lists(corners, min_size=2, max_size=4))
def test_multipolygon_covers_the_pixels_of_its_parts(rings: list[list[tuple[int, int]]]) -> None:
    # These offsets keep all edges away from the centres of pixels.
    parts = [Polygon([(400_003 + 10 * x, 599_800 + 10 * (y + 2**0.5 / 10)) for x, y in ring]) for ring in rings]
    each = [Polygons(np.array([extract_polygons(part)], object), 0, 0) for part in parts if extract_polygons(part)]
    whole = extract_polygons(shapely.MultiPolygon(parts))
    together = Polygons(np.array([whole] if whole else [], object), 0, 0).rasterise(GRID, all_touched=False)
    expected = np.zeros(GRID.shape, bool)
    for part in each:
        expected |= part.rasterise(GRID, all_touched=False)
    assert np.array_equal(together, expected)


def test_error_on_unclosed_ring_names_the_file(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs="EPSG:32618")
    frame.to_file(tmp_path / "inventory.shp")
    content = bytearray((tmp_path / "inventory.shp").read_bytes())
    content[-8:] = struct.pack("<d", 5)  # the last coordinate of the ring
    (tmp_path / "inventory.shp").write_bytes(content)
    with pytest.raises(SourceError, match=r"inventory\.shp: cannot be read as polygons"):
        Polygons.read(tmp_path / "inventory.shp", "inventory", CRS.from_epsg(32618))
