"""Tests of the grids and extents of areas, and of their overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
from shapely.geometry import box

from source_files import CORNER, write_project, write_raster
from talud.cli.main import main
from talud.data.stack import build_stack
from talud.errors import ParamsError
from talud.project import Project

LEFT, TOP = CORNER
TERRAIN = {"terrain": ["elevation", "slope"]}


def terrain(path: Path, shape: tuple[int, int] = (40, 60), corner: tuple[float, float] = CORNER, **more: Any) -> Path:
    """Write an elevation model with 10 m pixels and random heights."""
    heights = np.random.default_rng(4).uniform(900, 1500, shape).astype(np.float32)
    return write_raster(path, heights, 10, corner, **more)


def inventory(path: Path, *boxes: tuple[float, float, float, float]) -> None:
    """Write rectangles given by left, bottom, right and top in metres from CORNER."""
    shapes = [box(LEFT + left, TOP + bottom, LEFT + right, TOP + top) for left, bottom, right, top in boxes]
    geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:32618").to_file(path)


def bands(path: Path) -> dict[str, np.ndarray]:
    with rasterio.open(path) as dataset:
        return dict(zip(dataset.descriptions, dataset.read(), strict=True))


def halves(root: Path, west: list[float] | None, east: list[float] | None, **changes: Any) -> Project:
    """Create a project with a training and a transfer area.

    They share one elevation model of 60 × 40 pixels.
    """
    folder = root / "data"
    folder.mkdir(exist_ok=True)
    if not (folder / "dtm.tif").exists():
        terrain(folder / "dtm.tif", corner=(LEFT + 3.7, TOP - 1.2))
        inventory(folder / "inventory.gpkg", (100, -200, 200, -100), (400, -200, 500, -100))
    shared: dict[str, Any] = {"folder": str(folder)}
    areas = {
        "west": {**shared, "role": "training"} | ({"bounds": west} if west else {}),
        "east": {**shared, "role": "transfer"} | ({"bounds": east} if east else {}),
    }
    stack = {"resolution": 10, **changes.pop("stack", {})}
    return write_project(root, areas, band_sets=TERRAIN, stack=stack, **changes)


# --- the grid ----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_slope_of_a_stack_equals_the_arcgis_slope_of_la_arenosa(tmp_path: Path, real_data: Path) -> None:
    folder = real_data / "la_arenosa"
    area = {"role": "transfer", "folder": str(folder), "files": {"dtm": "dem.tif"}}
    project = write_project(tmp_path, {"here": area}, band_sets=TERRAIN, stack={"resolution": 10, "slope": "horn"})
    build_stack(project, "here")
    stack = bands(project.stack("here"))
    with rasterio.open(folder / "slope_deg_arcgis.tif") as dataset:
        expected = dataset.read(1)
    interior = np.isfinite(stack["slope"])
    assert interior.sum() == 97_210
    assert np.abs(stack["slope"] - expected)[interior].max() < 0.001


@pytest.mark.parametrize("corner", [(LEFT, TOP), (LEFT + 3.7, TOP - 1.2), (LEFT + 5, TOP + 9.99)])
def test_source_at_the_stack_resolution_keeps_its_values(tmp_path: Path, corner: tuple[float, float]) -> None:
    source = terrain(tmp_path / "data" / "dtm.tif", corner=corner)
    area = {"role": "transfer", "folder": "data"}
    project = write_project(tmp_path, {"here": area}, band_sets=TERRAIN, stack={"resolution": 10})
    build_stack(project, "here")
    with rasterio.open(source) as dataset, rasterio.open(project.stack("here")) as stack:
        assert stack.transform == dataset.transform
        assert np.array_equal(stack.read(1)[1:-1, 1:-1], dataset.read(1)[1:-1, 1:-1])


def test_grid_follows_the_terrain_model_if_the_image_is_coarser(tmp_path: Path) -> None:
    image = np.random.default_rng(2).integers(1, 255, (3, 20, 30)).astype(np.uint8)
    write_raster(tmp_path / "data" / "optical.tif", image, 20)
    source = terrain(tmp_path / "data" / "dtm.tif", (41, 61), (LEFT - 6.3, TOP + 6.3))
    area = {"role": "transfer", "folder": "data"}
    project = write_project(tmp_path, {"here": area}, band_sets=TERRAIN, stack={"resolution": 10})
    build_stack(project, "here")
    with rasterio.open(source) as dataset, rasterio.open(project.stack("here")) as stack:
        assert (stack.transform.c - dataset.transform.c) % 10 == pytest.approx(0, abs=1e-6)
        elevation = stack.read(stack.descriptions.index("elevation") + 1)
        column, row = map(round, ~dataset.transform * stack.transform * (0, 0))
        expected = dataset.read(1)[row : row + stack.height, column : column + stack.width]
        known = np.isfinite(elevation[: len(expected), : expected.shape[1]])
        assert known.mean() > 0.9
        assert np.array_equal(elevation[: len(expected), : expected.shape[1]][known], expected[known])


@pytest.mark.parametrize("resolution", [12.5, 10.01])
def test_grid_of_another_resolution_starts_at_a_multiple(tmp_path: Path, resolution: float) -> None:
    terrain(tmp_path / "data" / "dtm.tif", corner=(LEFT + 3.7, TOP - 1.2))
    area = {"role": "transfer", "folder": "data"}
    project = write_project(tmp_path, {"here": area}, band_sets=TERRAIN, stack={"resolution": resolution})
    build_stack(project, "here")
    with rasterio.open(project.stack("here")) as stack:
        for corner in (stack.transform.c, stack.transform.f):
            assert corner / resolution == pytest.approx(round(corner / resolution), abs=1e-6)


def test_grid_origin_follows_params(tmp_path: Path) -> None:
    project = halves(tmp_path, None, None, stack={"origin": [4, 2.5], "overlap": "allow"})
    build_stack(project, "west")
    with rasterio.open(project.stack("west")) as stack:
        assert (stack.transform.c % 10, stack.transform.f % 10) == (4, 2.5)


@pytest.mark.parametrize("origin", ["here", [1], [1, 2, 3], ["a", 2], [True, 2], [float("nan"), 0], None])
def test_invalid_grid_origin_is_refused(tmp_path: Path, origin: object) -> None:
    with pytest.raises(ParamsError, match=r"stack\.origin"):
        halves(tmp_path, None, None, stack={"origin": origin})


# --- no pixel in two areas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [300.0, 298.7, 303.7, 308.7, 306.123])
def test_areas_with_a_common_edge_share_no_pixel(tmp_path: Path, split: float) -> None:
    west, east = [LEFT, TOP - 401.2, LEFT + split, TOP], [LEFT + split, TOP - 401.2, LEFT + 603.7, TOP]
    project = halves(tmp_path, west, east)
    for area in ("west", "east"):
        build_stack(project, area)
    parts = [bands(project.stack(area))["elevation"] for area in ("west", "east")]
    with rasterio.open(tmp_path / "data" / "dtm.tif") as dataset:
        whole = dataset.read(1)
    assert np.array_equal(np.hstack(parts)[1:-1, 1:-1], whole[1:-1, 1:-1])
    with rasterio.open(project.stack("west")) as left, rasterio.open(project.stack("east")) as right:
        assert left.bounds.right == right.bounds.left


@pytest.mark.parametrize("columns", [1, 3])
def test_overlap_of_roles_is_refused_with_its_pixel_count(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    west, east = [LEFT, TOP - 500, LEFT + 303.7 + 10 * columns, TOP], [LEFT + 303.7, TOP - 500, LEFT + 700, TOP]
    project = halves(tmp_path, west, east)
    monkeypatch.chdir(project.root)
    monkeypatch.setattr("sys.argv", ["talud", "stack", "east"])
    with pytest.raises(SystemExit, match="1"):
        main()
    said = capsys.readouterr().err
    # The two outermost of the 40 rows have no slope.
    assert f"overlap: {38 * columns} pixels are in both" in said
    assert said.count("\n") == 1
    assert not project.stack("east").exists()


def test_overlap_is_allowed_by_params(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"2,204 pixels are in both"):  # 58 × 38
        build_stack(halves(tmp_path, None, None), "west")
    allowed = halves(tmp_path, None, None, stack={"overlap": "allow"})
    assert build_stack(allowed, "west").height == build_stack(allowed, "east").height == 40


def test_overlap_is_counted_across_reference_systems(tmp_path: Path) -> None:
    terrain(tmp_path / "a" / "dtm.tif")
    inventory(tmp_path / "a" / "inventory.gpkg", (100, -200, 200, -100))
    # The raster is rotated in the neighbouring UTM zone; both have the same centre.
    (x,), (y,) = rasterio.warp.transform("EPSG:32618", "EPSG:32617", [LEFT + 300], [TOP - 200])
    terrain(tmp_path / "b" / "dtm.tif", (20, 30), (x - 150, y + 100), crs="EPSG:32617")
    areas = {"a": {"role": "training", "folder": "a"}, "b": {"role": "gate", "folder": "b", "crs": "EPSG:32617"}}
    inventory(tmp_path / "b" / "inventory.gpkg", (250, -250, 350, -150))
    project = write_project(tmp_path, areas, band_sets=TERRAIN, stack={"resolution": 10})
    found = {}
    for area in areas:
        with pytest.raises(ParamsError, match="overlap") as error:
            build_stack(project, area)
        found[area] = int(str(error.value).split("overlap: ")[1].split(" ")[0])
    expected = 28 * 18  # pixels of `b` that have a slope
    assert all(0.95 * expected < pixels < 1.05 * expected for pixels in found.values()), found


def test_touching_basins_may_have_overlapping_rectangles(tmp_path: Path) -> None:
    heights = np.random.default_rng(1).uniform(900, 1500, (40, 40)).astype(np.float32)
    rows, columns = np.mgrid[:40, :40]
    for name, inside in (("a", rows > columns), ("b", rows <= columns)):
        write_raster(tmp_path / name / "dtm.tif", np.where(inside, heights, -9999), 10, nodata=-9999)
        inventory(tmp_path / name / "inventory.gpkg", (50, -350, 350, -50))
    areas = {"a": {"role": "training", "folder": "a"}, "b": {"role": "gate", "folder": "b"}}
    project = write_project(tmp_path, areas, band_sets=TERRAIN, stack={"resolution": 10})
    for area in areas:
        assert build_stack(project, area).landslide_pixels


def test_boundaries_separate_areas_of_one_raster(tmp_path: Path) -> None:
    for name, right in (("a", 300.0), ("b", 320.0)):
        terrain(tmp_path / name / "dtm.tif")
        inventory(tmp_path / name / "inventory.gpkg", (100, -300, 500, -100))
        sides = (0, -400, right, 0) if name == "a" else (right, -400, 600, 0)
        inventory(tmp_path / name / "boundary.gpkg", sides)
    areas = {"a": {"role": "training", "folder": "a"}, "b": {"role": "gate", "folder": "b"}}
    project = write_project(tmp_path, areas, band_sets=TERRAIN, stack={"resolution": 10})
    for area in areas:
        build_stack(project, area)
    inventory(tmp_path / "b" / "boundary.gpkg", (280, -400, 600, 0))
    with pytest.raises(ParamsError, match="76 pixels are in both"):  # 2 × 38
        build_stack(project, "a")


def test_training_areas_may_not_overlap_but_transfer_areas_may(tmp_path: Path) -> None:
    terrain(tmp_path / "data" / "dtm.tif")
    inventory(tmp_path / "data" / "inventory.gpkg", (100, -200, 200, -100))
    for role, refused in (("training", True), ("transfer", False)):
        areas = {name: {"role": role, "folder": "data"} for name in ("a", "b")}
        project = write_project(tmp_path, areas, band_sets=TERRAIN, stack={"resolution": 10})
        if refused:
            with pytest.raises(ParamsError, match="2,204 pixels are in both"):
                build_stack(project, "a")
        else:
            build_stack(project, "a")


def test_missing_sources_of_one_area_do_not_stop_another(tmp_path: Path) -> None:
    terrain(tmp_path / "data" / "dtm.tif")
    areas = {"a": {"role": "transfer", "folder": "data"}, "b": {"role": "gate", "folder": "elsewhere"}}
    project = write_project(tmp_path, areas, band_sets=TERRAIN, stack={"resolution": 10})
    assert build_stack(project, "a").width == 60
