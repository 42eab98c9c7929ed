"""Tests of replacing an inventory by a corrected one."""

from __future__ import annotations

import os
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from source_files import CORNER, UTM, write_project, write_raster
from talud.data.inventory_revision import Revision, revise_inventory
from talud.data.stack import build_stack
from talud.errors import SourceError
from talud.project import Project

LEFT, TOP = CORNER
SIDE = 64  # pixels of 12.5 m: the area is 800 m wide and high
AREA = {"role": "training", "folder": "data/here"}


def square(column: float, row: float, side: float = 50) -> shapely.Polygon:
    """Return a square, with size and offset from the area's corner in metres."""
    return shapely.box(LEFT + column, TOP - row - side, LEFT + column + side, TOP - row)


FOUR = [square(100, 100), square(300, 100), square(100, 300), square(300, 300)]
OUTSIDE = square(5_000, 5_000)


def frame(
    geometries: list[shapely.Geometry | None], crs: str | None = UTM, **columns: object
) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=geometries, crs=crs)


def write(path: Path, geometries: list[shapely.Geometry | None], crs: str | None = UTM, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyogrio.write_dataframe(frame(geometries, crs, **columns), path)
    return path


def make_project(root: Path, file: str = "inventory.gpkg", **area: object) -> Project:
    folder = root / "data/here"
    pixels = np.random.default_rng(0).integers(30, 220, (3, SIDE, SIDE)).astype(np.uint8)
    write_raster(folder / "optical.tif", pixels)
    write(folder / file, [*FOUR, OUTSIDE], number=[1, 2, 3, 4, 5], note=["a", "b", "c", "d", "e"])
    return write_project(root, {"here": {**AREA, **area}})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def inventory(project: Project, file: str = "inventory.gpkg") -> geopandas.GeoDataFrame:
    return pyogrio.read_dataframe(project.root / "data/here" / file)


def counts(result: Revision) -> tuple[int, ...]:
    return tuple(getattr(result, name).polygons for name in ("added", "removed", "changed", "unchanged"))


@pytest.mark.parametrize("file", ["inventory.gpkg", "inventory.shp", "inventory.geojson"])
def test_changes_are_counted_and_other_features_kept(tmp_path: Path, file: str) -> None:
    project = make_project(tmp_path / "project", file)
    larger = square(300, 100, 60)
    edits = write(tmp_path / "edits.gpkg", [FOUR[0], larger, FOUR[3], square(500, 500, 20)], who=["x", "y", "z", "x"])
    result = revise_inventory(project, "here", edits)

    assert counts(result) == (1, 1, 1, 2)
    sizes = [result.before, result.after, result.added, result.removed, result.changed, result.unchanged]
    assert [round(tally.area) for tally in sizes] == [10_000, 9_000, 400, 2_500, 1_100, 5_000]
    assert result.written
    found = inventory(project, file)
    assert pyogrio.list_drivers()[pyogrio.read_info(result.path)["driver"]]
    assert (result.path.name, found.crs) == (file, UTM)
    by_area = found.set_index(found.area.round().astype(int))
    assert sorted(by_area.index) == [400, 2_500, 2_500, 2_500, 3_600]
    assert set(found.note.dropna()) == {"a", "d", "e"}  # unchanged features keep their attributes
    assert set(found.who.dropna()) == {"x", "y", "z"}
    assert found[found.note == "d"].number.item() == 4
    assert len(list(result.path.parent.iterdir())) == (2 if file != "inventory.shp" else 6)  # no other files are left
    assert build_stack(project, "here").polygons == 4


@pytest.mark.parametrize("file", ["inventory.gpkg", "inventory.shp", "inventory.geojson"])
@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_repeated_correction_changes_nothing(tmp_path: Path, file: str, crs: str) -> None:
    project = make_project(tmp_path / "project", file)
    corrected = frame([FOUR[0], square(300, 100, 60)], corrected_by=["x", None], when=["2015-06-01"] * 2).to_crs(crs)
    pyogrio.write_dataframe(corrected, tmp_path / "edits.gpkg")
    assert revise_inventory(project, "here", tmp_path / "edits.gpkg").written
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in (project.root / "data/here").iterdir()}
    again = revise_inventory(project, "here", tmp_path / "edits.gpkg")
    assert (again.written, counts(again)) == (False, (0, 0, 0, 2))
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in (project.root / "data/here").iterdir()} == before


def test_changed_attribute_is_written(project: Project, tmp_path: Path) -> None:
    result = revise_inventory(project, "here", write(tmp_path / "edits.gpkg", FOUR, note=["a", "b", "seen", "d"]))
    assert (result.written, counts(result)) == (True, (0, 0, 0, 4))
    assert set(inventory(project).note) == {"a", "b", "seen", "d", "e"}


def test_import_of_the_inventory_itself_changes_nothing(project: Project) -> None:
    path = project.root / "data/here/inventory.gpkg"
    result = revise_inventory(project, "here", path)
    assert (result.written, result.outside, counts(result)) == (False, 1, (0, 0, 0, 4))


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_link_into_the_dvc_cache_is_replaced(project: Project, tmp_path: Path, link: object) -> None:
    path, cached = project.root / "data/here/inventory.gpkg", tmp_path / "cache"
    path.rename(cached)
    cached.chmod(0o444)
    link(cached, path)  # type: ignore[operator]
    before = cached.read_bytes()
    assert revise_inventory(project, "here", write(tmp_path / "edits.gpkg", FOUR[:1])).written
    assert cached.read_bytes() == before
    assert not path.is_symlink()
    assert path.stat().st_ino != cached.stat().st_ino
    assert path.stat().st_mode & 0o200  # the user can edit it
    assert len(inventory(project)) == 2


def test_first_polygons_of_an_area_are_imported(project: Project, tmp_path: Path) -> None:
    write(project.root / "data/here/inventory.gpkg", [OUTSIDE], number=[5])
    result = revise_inventory(project, "here", write(tmp_path / "edits.gpkg", FOUR[:2]))
    assert (counts(result), result.before.polygons) == ((2, 0, 0, 0), 0)
    found = inventory(project)
    assert (len(found), found.number.dropna().tolist()) == (3, [5])


def test_other_layers_of_a_geopackage_are_kept(project: Project, tmp_path: Path) -> None:
    path = project.root / "data/here/inventory.gpkg"
    pyogrio.write_dataframe(frame([shapely.Point(LEFT, TOP)], name=["a spring"]), path, layer="springs")
    revise_inventory(project, "here", write(tmp_path / "edits.gpkg", FOUR[:2]))
    assert dict(pyogrio.list_layers(path)) == {"inventory": "Polygon", "springs": "Point"}
    assert list(pyogrio.read_dataframe(path, layer="springs").name) == ["a spring"]


def test_only_features_that_match_the_filter_are_replaced(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", inventory_filter="number < 3")
    edits = write(tmp_path / "edits.gpkg", [FOUR[0], square(500, 500)], number=[1, 7])
    result = revise_inventory(project, "here", edits)
    assert (counts(result), result.filtered) == ((0, 1, 0, 1), 1)
    assert sorted(inventory(project).number) == [1, 3, 4, 5]
    with pytest.raises(SourceError, match=r"edits\.gpkg: cannot be read as polygons with .*'number < 3'"):
        revise_inventory(project, "here", write(tmp_path / "edits.gpkg", FOUR))


def spike(at: shapely.Polygon) -> shapely.Polygon:
    """Return a square with a spike of no width: an invalid polygon of equal area."""
    x, y = at.exterior.coords[0]
    return shapely.Polygon([*at.exterior.coords[:-1], (x, y), (x + 30, y), (x, y)])


def test_polygons_are_repaired_if_their_area_stays(project: Project, tmp_path: Path) -> None:
    assert not spike(FOUR[1]).is_valid
    result = revise_inventory(project, "here", write(tmp_path / "edits.gpkg", [FOUR[0], spike(FOUR[1]), *FOUR[2:]]))
    assert len(result.repaired) == 1
    assert inventory(project).is_valid.all()


def test_overlapping_parts_of_a_correction_are_united(project: Project, tmp_path: Path) -> None:
    parts = shapely.MultiPolygon([square(100, 100), square(130, 130)])  # 20 m by 20 m are in both
    result = revise_inventory(project, "here", write(tmp_path / "edits.gpkg", [parts, *FOUR[1:]]))
    assert len(result.repaired) == 1
    assert sorted(inventory(project).area.round()) == [2_500, 2_500, 2_500, 2_500, 2 * 2_500 - 400]


BOWTIE = shapely.Polygon([(LEFT + 10, TOP - 10), (LEFT + 90, TOP - 90), (LEFT + 90, TOP - 10), (LEFT + 10, TOP - 90)])


@pytest.mark.parametrize(
    ("geometries", "crs", "said"),
    [
        ([FOUR[0], BOWTIE], UTM, r"feature 2: crosses itself, and repairing it would change its area"),
        ([FOUR[0], None], UTM, r"feature 2: not a polygon, or empty"),
        ([FOUR[0], shapely.Polygon()], UTM, r"feature 2: not a polygon, or empty"),
        ([FOUR[0]], None, r"no coordinate reference system"),
        ([OUTSIDE], UTM, r"none of its 1 polygons is in area 'here'"),
        (FOUR, "EPSG:32617", r"none of its 4 polygons is in area 'here'"),
        ([shapely.Point(LEFT + 10, TOP - 10)], UTM, r"has no layer of polygons"),
        ([], UTM, r"none of its 0 polygons"),
    ],
    ids=["bowtie", "missing", "empty", "no crs", "elsewhere", "other zone", "points", "nothing"],
)
@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_unusable_correction_is_refused_without_writing(
    project: Project, tmp_path: Path, geometries: list[shapely.Geometry | None], crs: str | None, said: str
) -> None:
    before = (project.root / "data/here/inventory.gpkg").read_bytes()
    kind = "Polygon" if not geometries or geometries[0].geom_type == "Polygon" else "Point"
    pyogrio.write_dataframe(frame(geometries, crs), tmp_path / "edits.gpkg", geometry_type=kind)
    with pytest.raises(SourceError, match=said) as refused:
        revise_inventory(project, "here", tmp_path / "edits.gpkg")
    assert "\n" not in str(refused.value)
    assert (project.root / "data/here/inventory.gpkg").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"\7" * 500, b"no database"])
def test_damaged_correction_is_refused(project: Project, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "edits.gpkg").write_bytes(content)
    with pytest.raises(SourceError, match=r"edits\.gpkg: "):
        revise_inventory(project, "here", tmp_path / "edits.gpkg")
    with pytest.raises(SourceError, match="no such file"):
        revise_inventory(project, "here", tmp_path / "elsewhere.gpkg")


places = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([20, 50, 80])), min_size=1, max_size=12, unique=True
)


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=places, after=places)
def test_totals_before_plus_changes_equal_totals_after(
    tmp_path_factory: pytest.TempPathFactory, before: list, after: list
) -> None:
    folder = tmp_path_factory.mktemp("any")
    project = make_project(folder / "project")
    was, now = ([square(100 * x, 100 * y, side) for x, y, side in each] for each in (before, after))
    write(project.root / "data/here/inventory.gpkg", was)
    result = revise_inventory(project, "here", write(folder / "edits.gpkg", now))
    added, removed, changed, unchanged = counts(result)
    assert (len(was), len(now)) == (removed + changed + unchanged, added + changed + unchanged)
    expected = result.before.area + result.added.area - result.removed.area + result.changed.area
    assert result.after.area == pytest.approx(expected, abs=1)
    assert unchanged == len(set(before) & set(after))
    assert result.written == (set(before) != set(after))
