"""Tests of stacks of areas and of stacks for models."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import onnx
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.warp import transform
from rio_cogeo import cog_validate
from shapely.geometry import Polygon, box

import talud
from source_files import CORNER, UTM, write_project, write_raster
from talud.bands import band_named, groups_of
from talud.cli.main import main
from talud.contract import METADATA_KEY, BandContract, Contract, Measurements, ModelInput, ModelOrigin
from talud.data.stack import build_stack, build_stack_for_model, read_band_evidence
from talud.data.stack_record import check_current_stack
from talud.errors import MismatchError, OutputError, ParamsError, SourceError, TaludError
from talud.files import md5
from talud.params import Area
from talud.project import Project

LEFT, TOP = CORNER
SHAPE = (60, 80)  # 12.5 m: 1000 m by 750 m
EVERYTHING = ["red", "green", "blue", "elevation", "slope", "curvature", "vv_pre", "vv_post"]


def polygons(path: Path, *boxes: tuple[float, float, float, float], crs: str = UTM) -> Path:
    """Return rectangles given by left, bottom, right and top.

    They are in metres from the upper left corner; south is negative.
    """
    shapes = [box(LEFT + left, TOP + bottom, LEFT + right, TOP + top) for left, bottom, right, top in boxes]
    path.parent.mkdir(parents=True, exist_ok=True)
    geopandas.GeoDataFrame(geometry=shapes, crs=UTM).to_crs(crs).to_file(path)
    return path


def fill(folder: Path) -> Path:
    """Write all sources of an area, with a north-facing slope of 30 degrees."""
    random = np.random.default_rng(8)
    image = random.integers(200, 3000, (3, 75, 100)).astype(np.uint16)
    write_raster(folder / "optical.tif", image, 10, scale=1e-4, nodata=0)
    rows = np.arange(150)[:, None] * np.ones(200)
    write_raster(folder / "dtm.tif", (1000 + rows * 5 * np.tan(np.radians(30))).astype(np.float32), 5)
    for time in ("pre", "post"):
        amplitude = random.uniform(0.1, 0.9, (60, 80)).astype(np.float32)
        write_raster(folder / f"sar_{time}.tif", amplitude, units=("amplitude",))
    polygons(folder / "inventory.gpkg", (100, -200, 200, -100), (500, -500, 550, -400))
    return folder


AREA: dict[str, Any] = {"role": "training", "folder": "data/here"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project with one training area.

    It has an inventory and every source of a band.
    """
    fill(tmp_path / "data" / "here")
    dates = {"event": "2015-05-18", "acquired": {"optical": "2015-07-09", "sar_pre": "2015-05-11"}}
    return write_project(tmp_path, {"here": {**AREA, **dates}}, band_sets={"all": EVERYTHING})


def read(path: Path) -> dict[str, np.ndarray]:
    with rasterio.open(path) as dataset:
        return dict(zip(dataset.descriptions, dataset.read(), strict=True))


def test_stack_is_a_cog_with_bands_units_and_provenance(project: Project) -> None:
    record = build_stack(project, "here")
    for path in (project.stack("here"), project.mask("here")):
        assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(project.stack("here")) as dataset:
        assert dataset.descriptions == tuple(EVERYTHING)
        assert dataset.units == (*["reflectance"] * 3, "m", "degree", "1/100m", "dB", "dB")
        assert dataset.dtypes[0] == "float32"
        assert np.isnan(dataset.nodata)
        assert (dataset.crs.to_epsg(), dataset.transform) == (32618, Affine(12.5, 0, LEFT, 0, -12.5, TOP))
        assert dataset.shape == SHAPE
        tags = {key: value for key, value in dataset.tags().items() if key.startswith("TALUD")}
    assert tags == {
        "TALUD_AREA": "here",
        "TALUD_EVENT": "2015-05-18",
        "TALUD_ACQUIRED_OPTICAL": "2015-07-09",
        "TALUD_ACQUIRED_SAR_PRE": "2015-05-11",
        "TALUD_SLOPE": "zevenbergen_thorne",
        "TALUD_CURVATURE": "profile",
        "TALUD_SAR_UNIT": "db",
        "TALUD_LEE_WINDOW": "0",
        "TALUD_RESOLUTION": "12.5",
        "TALUD_BANDS_OF_OPTICAL": "red 1, green 2, blue 3 (by position, since the file does not name them)",
        "TALUD_BANDS_OF_SAR_PRE": "vv 1 (by position, since the file does not name them)",
        "TALUD_BANDS_OF_SAR_POST": "vv 1 (by position, since the file does not name them)",
        "TALUD_SOURCES": ", ".join(
            f"{name} {md5(project.root / f'data/here/{name}.tif')}"
            for name in ("dtm", "optical", "sar_post", "sar_pre")
        ),
    }
    content = json.loads(project.stack_record("here").read_text())
    assert content["stack_md5"] == record.stack_md5 == md5(project.stack("here"))
    assert content["mask_md5"] == md5(project.mask("here"))
    assert content["sources"]["optical"] == md5(project.root / "data" / "here" / "optical.tif")
    assert set(content["sources"]) == {"optical", "dtm", "sar_pre", "sar_post", "inventory"}
    assert content["dates"] == {
        "event": "2015-05-18", "optical": "2015-07-09", "sar_pre": "2015-05-11", "sar_post": None,
    }  # fmt: skip
    assert (content["polygons"], content["skipped_polygons"], content["landslide_pixels"]) == (2, 0, 64 + 32)


def test_stack_bands_are_resampled_by_kind(project: Project) -> None:
    build_stack(project, "here")
    folder, bands = project.root / "data" / "here", read(project.stack("here"))
    with rasterio.open(folder / "optical.tif") as dataset:
        fine = np.kron(dataset.read(2) * 1e-4, np.ones((4, 4)))  # 2.5 m
    averages = fine.reshape(60, 5, 80, 5).mean(axis=(1, 3))
    assert bands["green"] == pytest.approx(averages, rel=1e-5)
    with rasterio.open(folder / "sar_post.tif") as dataset:
        assert bands["vv_post"] == pytest.approx(20 * np.log10(dataset.read(1)), abs=1e-4)
    inner = np.s_[1:-1, 1:-1]
    assert bands["slope"][inner] == pytest.approx(30, abs=1e-3)
    assert bands["curvature"][inner] == pytest.approx(0, abs=1e-2)
    rows = np.arange(60)[inner[0], None] + 0.5
    expected = 1000 + (rows * 12.5 - 2.5) * np.tan(np.radians(30)) + np.zeros((1, 78))
    assert bands["elevation"][inner] == pytest.approx(expected, abs=1)  # averages of 2.5 pixels


def test_sar_is_averaged_as_power(project: Project) -> None:
    coarse = write_project(
        project.root, {"here": AREA}, band_sets={"radar": ["vv_pre"]}, stack={"resolution": 25, "sar_unit": "amplitude"}
    )
    build_stack(coarse, "here")
    with rasterio.open(project.root / "data" / "here" / "sar_pre.tif") as dataset:
        power = dataset.read(1).astype(np.float64) ** 2
    expected = np.sqrt(power.reshape(30, 2, 40, 2).mean(axis=(1, 3)))
    assert read(coarse.stack("here"))["vv_pre"] == pytest.approx(expected, rel=1e-5)


def test_equal_sources_make_identical_stacks(project: Project) -> None:
    first = build_stack(project, "here")
    assert build_stack(project, "here") == first


def test_occlusion_masks_invalidate_their_own_bands(project: Project) -> None:
    folder = project.root / "data" / "here"
    cloud = np.zeros((75, 100), np.uint8)
    cloud[0, 0] = 3  # 10 m: within the first stack pixel
    cloud[10, 10] = 1  # from 100 m to 110 m: within pixel 8
    write_raster(folder / "cloud.tif", cloud, 10)
    polygons(folder / "sar_mask.geojson", (501, -20, 510, -13), crs="EPSG:4326")
    build_stack(project, "here")
    bands = read(project.stack("here"))
    expected = np.zeros(SHAPE, bool)
    expected[[0, 8], [0, 8]] = True
    for name in ("red", "green", "blue"):
        assert np.array_equal(np.isnan(bands[name]), expected)
    shadow = np.zeros(SHAPE, bool)
    shadow[1, 40] = True
    for name in ("vv_pre", "vv_post"):
        assert np.array_equal(np.isnan(bands[name]), shadow)
    assert np.isfinite(bands["slope"][[8, 1], [8, 40]]).all()
    assert list(bands) == [*EVERYTHING, "cloud", "sar_mask"]  # so that a map can state why pixels are unmapped
    assert np.array_equal(bands["cloud"], expected)
    assert np.array_equal(bands["sar_mask"], shadow)


def test_occlusion_mask_of_a_missing_group_is_not_stacked(project: Project) -> None:
    folder = project.root / "data" / "here"
    polygons(folder / "cloud.gpkg", (0, -50, 50, 0))
    polygons(folder / "sar_mask.gpkg", (0, -50, 50, 0))
    files = {"dtm": folder / "dtm.tif", "cloud": folder / "cloud.gpkg", "sar_mask": folder / "sar_mask.gpkg"}
    like = contract("slope")
    build_stack_for_model(like, Area.create(role="transfer", folder="."), files, project.root / "new.tif")
    assert list(read(project.root / "new.tif")) == ["slope"]
    (folder / "optical.tif").unlink()
    radar = write_project(project.root, {"here": AREA}, band_sets={"radar": ["vv_pre", "vv_post"]})
    build_stack(radar, "here")
    assert list(read(radar.stack("here")))[3:] == ["vv_pre", "vv_post", "sar_mask"]


@pytest.mark.slow
def test_mask_is_unknown_outside_the_boundary(project: Project) -> None:
    polygons(project.root / "data" / "here" / "boundary.shp", (0, -250, 500, 0))
    record = build_stack(project, "here")
    mask = read(project.mask("here"))["landslide"]
    expected = np.full(SHAPE, 255)
    expected[:20, :40] = 0
    expected[8:16, 8:16] = 1
    assert np.array_equal(mask, expected)
    assert (record.landslide_pixels, record.polygons) == (64, 2)


@pytest.mark.slow
def test_mask_of_an_unlabelled_area_is_unknown(project: Project) -> None:
    (project.root / "data" / "here" / "inventory.gpkg").unlink()
    unlabelled = write_project(project.root, {"here": {**AREA, "role": "transfer"}})
    record = build_stack(unlabelled, "here")
    assert np.array_equal(np.unique(read(unlabelled.mask("here"))["landslide"]), [255])
    assert (record.polygons, record.landslide_pixels) == (None, None)


@pytest.mark.slow
def test_skipped_and_repaired_polygons_are_recorded(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bow = Polygon([(LEFT + x, TOP + y) for x, y in ((0, -100), (100, 0), (100, -100), (0, 0))])
    frame = geopandas.GeoDataFrame(
        geometry=[bow, Polygon(), box(LEFT + 300, TOP - 300, LEFT + 400, TOP - 200)], crs=UTM
    )
    frame.to_file(project.root / "data" / "here" / "inventory.gpkg")
    assert run(project, monkeypatch, "stack", "here") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("here: stacks/here.tif, ")
    for part in ("2 polygons", "1 invalid polygon repaired", "1 feature without a polygon skipped"):
        assert part in said
    content = json.loads(project.stack_record("here").read_text())
    assert (content["polygons"], content["repaired_polygons"], content["skipped_polygons"]) == (2, 1, 1)


@pytest.mark.slow
def test_record_exists_in_the_folder_of_its_role_only(project: Project) -> None:
    build_stack(project, "here")
    moved = write_project(project.root, {"here": {**AREA, "role": "gate"}}, band_sets={"all": EVERYTHING})
    build_stack(moved, "here")
    found = [str(path.relative_to(project.root)) for path in project.root.glob("stacks/*/*.json")]
    assert found == ["stacks/gate/here.json"]


def test_geographic_sources_are_stacked_in_utm(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = random.integers(1, 255, (3, 60, 60)).astype(np.uint8)
    write_raster(tmp_path / "data" / "here" / "optical.tif", image, 1e-4, (-75.01, 6.01), "EPSG:4326")
    project = write_project(tmp_path, {"here": {**AREA, "role": "transfer"}})
    build_stack(project, "here")
    with rasterio.open(project.stack("here")) as dataset:
        values = dataset.read(1)
        assert dataset.crs.to_epsg() == 32618
        assert dataset.transform.c % 12.5 == dataset.transform.f % 12.5 == 0
        rows, columns = 20, 30
        x, y = dataset.xy(rows, columns)
    (longitude,), (latitude,) = transform("EPSG:32618", "EPSG:4326", [x], [y])
    column, row = (longitude + 75.01) / 1e-4, (6.01 - latitude) / 1e-4
    half = 12.5 / 2 / 110_574 / 1e-4  # half a stack pixel in source pixels

    def cover(at: float) -> np.ndarray:
        """Return the share of each source pixel that a stack pixel covers on one axis."""
        return np.clip(np.minimum(np.arange(60) + 1, at + half) - np.maximum(np.arange(60), at - half), 0, None)

    expected = (cover(row)[:, None] * cover(column) * image[0]).sum() / (cover(row).sum() * cover(column).sum())
    assert values[rows, columns] == pytest.approx(expected, abs=2)
    assert np.isfinite(values).mean() > 0.95


def test_area_may_set_its_resolution(project: Project) -> None:
    build_stack(project, "here")
    with rasterio.open(project.stack("here")) as whole, rasterio.open(project.mask("here")) as mask:
        shape, bounds, landslides = whole.shape, whole.bounds, (mask.read(1) == 1).sum()
    finer = write_project(project.root, {"here": {**AREA, "resolution": 6.25}}, stack={"resolution": 12.5})
    record = build_stack(finer, "here")
    with rasterio.open(finer.stack("here")) as stack:
        assert (stack.transform.a, stack.bounds, stack.tags()["TALUD_RESOLUTION"]) == (6.25, bounds, "6.25")
        assert stack.shape == (2 * shape[0], 2 * shape[1])
    assert record.landslide_pixels == pytest.approx(4 * landslides, rel=0.1)
    assert check_current_stack(finer, "here") == finer.stack("here")


@pytest.mark.slow
def test_bounds_let_two_areas_share_files(project: Project) -> None:
    halves = {
        "west": {**AREA, "bounds": [LEFT, TOP - 750, LEFT + 450, TOP]},
        "east": {**AREA, "role": "transfer", "bounds": [LEFT + 450, TOP - 750, LEFT + 1000, TOP]},
    }
    whole = write_project(
        project.root,
        {"here": AREA, **halves},
        band_sets={"all": EVERYTHING},
        stack={"resolution": 12.5, "overlap": "allow"},
    )
    for area in whole.params.areas:
        build_stack(whole, area)
    parts = [read(whole.stack(area)) for area in ("west", "east")]
    together = {name: np.hstack([part[name] for part in parts]) for name in EVERYTHING}
    for name, values in read(whole.stack("here")).items():
        assert together[name] == pytest.approx(values, rel=1e-5, abs=1e-3, nan_ok=True)


# --- bad input ---------------------------------------------------------------------------------------------------


def no_crs(folder: Path) -> None:
    write_raster(folder / "dtm.tif", np.ones((150, 200), np.float32), 5, crs=None)


def elsewhere(folder: Path) -> None:
    write_raster(folder / "dtm.tif", np.ones((150, 200), np.float32), 5, (LEFT + 9000, TOP))


def all_nodata(folder: Path) -> None:
    write_raster(folder / "sar_post.tif", np.full((60, 80), -1, np.float32), units=("amplitude",), nodata=-1)


def cut_short(folder: Path) -> None:
    whole = write_raster(folder / "whole.tif", np.random.default_rng(0).random((600, 800)).astype(np.float32), 1.25)
    rasterio.shutil.copy(whole, folder / "dtm.tif", driver="COG", overviews="NONE")  # a COG starts with its directory
    content = (folder / "dtm.tif").read_bytes()
    (folder / "dtm.tif").write_bytes(content[: int(len(content) * 0.9)])


def mask_as_image(folder: Path) -> None:
    write_raster(folder / "optical.tif", np.eye(75, 100, dtype=np.uint8), 10)


def no_raster(folder: Path) -> None:
    (folder / "optical.tif").write_text("not a raster")


def no_inventory(folder: Path) -> None:
    (folder / "inventory.gpkg").unlink()


def empty_inventory(folder: Path) -> None:
    polygons(folder / "inventory.gpkg")


def inventory_elsewhere(folder: Path) -> None:
    polygons(folder / "inventory.gpkg", (5000, 5000, 6000, 6000))


def inventory_too_fine(folder: Path) -> None:
    polygons(folder / "inventory.gpkg", (100, -103, 103, -100))


def unreadable_inventory(folder: Path) -> None:
    (folder / "inventory.gpkg").write_text("not a vector")


def unreadable_cloud(folder: Path) -> None:
    (folder / "cloud.geojson").write_text("{")


def no_unit(folder: Path) -> None:
    write_raster(folder / "sar_pre.tif", np.ones((60, 80), np.float32))


def no_sar(folder: Path) -> None:
    (folder / "sar_pre.tif").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_crs, r"dtm\.tif: no coordinate reference system"),
        (elsewhere, r"dtm\.tif: does not overlap area 'here'"),
        (all_nodata, r"sar_post\.tif: has no valid pixel"),
        (cut_short, r"dtm\.tif: cannot be read"),
        (mask_as_image, r"optical\.tif: has 1 band"),
        (no_raster, r"optical\.tif: cannot be read as a raster"),
        (no_inventory, "area 'here' has the role training but no inventory"),
        (empty_inventory, r"inventory\.gpkg: has no polygons"),
        (inventory_elsewhere, r"none of its 1 polygons is in area 'here'"),
        (inventory_too_fine, "covers no pixel inside the boundary by the rule 'centre'"),
        (unreadable_inventory, r"inventory\.gpkg: cannot be read as polygons"),
        (unreadable_cloud, r"cloud\.geojson: cannot be read as polygons"),
        (no_unit, r"sar_pre\.tif: neither its unit nor its tags"),
        (no_sar, "area 'here' has no sar_pre, but band set 'all' needs its band vv_pre"),
    ],
)
def test_unusable_source_is_refused_and_old_results_kept(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Any,
    said: str,
) -> None:
    build_stack(project, "here")
    before = {path: path.read_bytes() for path in project.root.glob("stacks/**/*") if path.is_file()}
    spoil(project.root / "data" / "here")
    with pytest.raises(SourceError, match=said):
        build_stack(project, "here")
    assert run(project, monkeypatch, "stack", "here") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("talud: ")
    assert captured.err.count("\n") == 1
    assert {path: path.read_bytes() for path in project.root.glob("stacks/**/*") if path.is_file()} == before


def test_no_output_is_replaced_if_one_cannot_be_written(project: Project) -> None:
    build_stack(project, "here")
    before = project.stack("here").read_bytes()
    project.mask("here").unlink()
    project.mask("here").mkdir()
    write_raster(project.root / "data" / "here" / "sar_pre.tif", np.full((60, 80), -9, np.float32), units=("dB",))
    with pytest.raises(OutputError, match=r"here\.mask\.tif: cannot be written"):
        build_stack(project, "here")
    assert project.stack("here").read_bytes() == before
    assert not list(project.root.glob("stacks/.*"))


def test_unwritable_folder_is_an_output_error(project: Project) -> None:
    (project.root / "stacks").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        build_stack(project, "here")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crs": "EPSG:4326"}, "are not true metres at the area; use its UTM zone, EPSG:32618"),
        ({"crs": "EPSG:nonsense"}, "is not a coordinate reference system"),
        ({"bounds": [0, 0, 100, 100]}, "does not overlap area 'here'.*the bounds that params.yaml sets"),
        ({"optical_bands": {"red": 1}}, "band set 'rgb' needs green, but optical_bands does not state which band"),
    ],
)
def test_invalid_area_is_refused(project: Project, changes: dict[str, Any], said: str) -> None:
    wrong = write_project(project.root, {"here": {**AREA, **changes}})
    with pytest.raises(TaludError, match=said):
        build_stack(wrong, "here")


def test_optical_band_cannot_have_the_name_of_another_source(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="'slope' is not an optical band"):
        write_project(tmp_path, {"here": {**AREA, "optical_bands": {"slope": 1}}})
    with pytest.raises(ParamsError, match="'cloud' is not an optical band"):
        write_project(tmp_path, {"here": {**AREA, "optical_bands": {"cloud": 1}}})
    with pytest.raises(ParamsError, match=r"band_sets\.clear lists cloud, a mask of other bands"):
        write_project(tmp_path, {"here": AREA}, band_sets={"clear": ["red", "cloud"]})


# --- the stack that a model asks for -----------------------------------------------------------------------------


def contract(*names: str, unit: str = "reflectance", **stack: str) -> Contract:
    """Return a contract with these bands."""
    optical = {"optical": unit, "sar": {"db": "dB"}.get(stack.get("sar_unit", "db"), stack.get("sar_unit"))}
    bands = [
        BandContract(
            name=name,
            group=band_named(name).group,
            unit=band_named(name).unit or optical[band_named(name).group],
            lowest=-1e9,
            highest=1e9,
            mean=0,
            deviation=1,
            minimum=0,
            maximum=1,
        )
        for name in names
    ]
    return Contract(
        input=ModelInput(
            bands=tuple(bands), required_groups=groups_of(names), pixel_size=25.0, halo=0, alignment=1, stack=stack
        ),
        origin=ModelOrigin(
            name="asked", weights="", data_version="", areas=(), commit="", run_id="", hyperparameters={}
        ),
        measured=Measurements(threshold=0.5, scores={}),
    )


def test_stack_for_a_model_ignores_the_project_grid_origin(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", np.ones((40, 60), np.float32), 25, (LEFT + 3.7, TOP - 1.2))
    asked = contract("slope", origin="[4, 2.5]", overlap="allow", slope="horn")
    build_stack_for_model(asked, Area.create(role="transfer", folder="."), {"dtm": source}, tmp_path / "new.tif")
    with rasterio.open(source) as dataset, rasterio.open(tmp_path / "new.tif") as stack:
        assert stack.transform == dataset.transform


def test_stack_for_a_model_has_its_bands_and_options(project: Project, tmp_path: Path) -> None:
    folder, out = project.root / "data" / "here", tmp_path / "out" / "new.tif"
    files = {name: folder / f"{name}.tif" for name in ("optical", "dtm", "sar_pre", "sar_post")}
    asked = contract(
        "vv_post", "slope", "blue", slope="horn", curvature="contour", sar_unit="amplitude", lee_window="5"
    )
    area = Area.create(role="transfer", folder=".", event="2015-05-18")
    build_stack_for_model(asked, area, files, out)
    with rasterio.open(out) as dataset:
        assert dataset.descriptions == ("vv_post", "slope", "blue")
        assert dataset.units == ("amplitude", "degree", "reflectance")
        assert dataset.res == (25, 25)
        tags = dataset.tags()
    expected = {"SLOPE": "horn", "CURVATURE": "contour", "SAR_UNIT": "amplitude", "LEE_WINDOW": "5", "RESOLUTION": "25"}
    assert {key: tags[f"TALUD_{key}"] for key in expected} == expected
    assert tags["TALUD_EVENT"] == "2015-05-18"


def test_stack_for_a_model_equals_that_of_its_project(project: Project, tmp_path: Path) -> None:
    same = write_project(project.root, {"here": AREA}, band_sets={"all": EVERYTHING}, stack={"resolution": 25})
    build_stack(same, "here")
    folder = project.root / "data" / "here"
    files = {name: folder / f"{name}.tif" for name in ("optical", "dtm", "sar_pre", "sar_post")}
    build_stack_for_model(contract(*EVERYTHING), Area.create(role="transfer", folder="."), files, tmp_path / "new.tif")
    for (name, ours), theirs in zip(read(tmp_path / "new.tif").items(), read(same.stack("here")).values(), strict=True):
        assert np.array_equal(ours, theirs, equal_nan=True), name


def test_image_bands_are_found_by_description(tmp_path: Path) -> None:
    image = np.arange(1, 5, dtype=np.uint8)[:, None, None] * np.ones((4, 8, 8), np.uint8)
    named = write_raster(tmp_path / "named.tif", image, 25, descriptions=("Blue", "Green", "Red", "NIR"))
    area = Area.create(role="transfer", folder=".")
    build_stack_for_model(contract("red", "nir", unit="DN"), area, {"optical": named}, tmp_path / "out.tif")
    assert {name: values[4, 4] for name, values in read(tmp_path / "out.tif").items()} == {"red": 3, "nir": 4}
    bare = write_raster(tmp_path / "bare.tif", image, 25)
    build_stack_for_model(contract("blue", unit="DN"), area, {"optical": bare}, tmp_path / "out.tif")
    assert read(tmp_path / "out.tif")["blue"][4, 4] == 3
    with pytest.raises(SourceError, match="set the band numbers with --optical-bands"):
        build_stack_for_model(contract("red", "nir", unit="DN"), area, {"optical": bare}, tmp_path / "out.tif")
    told = Area.create(role="transfer", folder=".", optical_bands={"red": 2, "nir": 1})
    build_stack_for_model(contract("red", "nir", unit="DN"), told, {"optical": bare}, tmp_path / "out.tif")
    assert read(tmp_path / "out.tif")["red"][4, 4] == 2


def test_project_and_model_use_the_same_described_bands(tmp_path: Path) -> None:
    image = np.arange(1, 5, dtype=np.uint16)[:, None, None] * np.ones((4, 60, 80), np.uint16)
    for descriptions, expected in (
        (("blue", "green", "red", "nir"), {"red": 3, "green": 2, "blue": 1, "nir": 4}),
        (("B02", "B03", "B04", "B08"), {"red": 3, "green": 2, "blue": 1, "nir": 4}),
    ):
        optical = write_raster(tmp_path / "data/here/optical.tif", image, descriptions=descriptions)
        project = write_project(
            tmp_path, {"here": {**AREA, "role": "transfer"}}, band_sets={"all": ["red", "green", "blue", "nir"]}
        )
        build_stack(project, "here")
        area = Area.create(role="transfer", folder=".")
        build_stack_for_model(
            contract("red", "green", "blue", "nir", unit="DN"), area, {"optical": optical}, tmp_path / "new.tif"
        )
        for stack in (project.stack("here"), tmp_path / "new.tif"):
            assert {name: values[4, 4] for name, values in read(stack).items()} == expected
            assert read_band_evidence(stack)["optical"].startswith("red 3, green 2, blue 1, nir 4 (by description")


def test_scenes_may_order_their_polarisations_differently(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    decibels = random.uniform(-20, -5, (2, 2, 60, 80)).astype(np.float32)
    for scene, time, names in zip(decibels, ("pre", "post"), (("VV", "VH"), ("VH", "VV")), strict=True):
        write_raster(tmp_path / f"data/here/sar_{time}.tif", scene, units=("dB", "dB"), descriptions=names)
    project = write_project(
        tmp_path, {"here": {**AREA, "role": "transfer"}}, band_sets={"all": ["vv_pre", "vh_pre", "vv_post", "vh_post"]}
    )
    build_stack(project, "here")
    bands = read(project.stack("here"))
    for name, expected in (("vv_pre", decibels[0, 0]), ("vh_pre", decibels[0, 1]), ("vv_post", decibels[1, 1])):
        assert bands[name] == pytest.approx(expected, abs=1e-4)


def test_numbers_in_params_override_descriptions_with_a_warning(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.arange(1, 4, dtype=np.uint16)[:, None, None] * np.ones((3, 60, 80), np.uint16)
    write_raster(project.root / "data/here/optical.tif", image, descriptions=("blue", "green", "red"))
    write_project(project.root, {"here": {**AREA, "optical_bands": {"red": 1, "green": 2, "blue": 3}}})
    assert run(project, monkeypatch, "stack", "here") == 0
    said = capsys.readouterr()
    assert "bands of optical: blue 3, green 2, red 1 (as given)\n" in said.out
    assert said.err.count("talud: warning: ") == said.err.count("\n") == 1
    assert "band 1 as red, which the file describes as blue" in said.err
    assert read(project.stack("here"))["red"][4, 4] == 1


SCALING = ("--optical-scale", "0.0001", "--optical-offset", "-0.1")


def write_model(path: Path, like: Path, unit: str) -> Path:
    """Write the tiny model with another unit in its contract."""
    model = onnx.load(like)
    entry = next(prop for prop in model.metadata_props if prop.key == METADATA_KEY)
    entry.value = entry.value.replace('"unit":"DN"', f'"unit":"{unit}"')
    onnx.save(model, path)
    return path


def test_scale_and_offset_convert_numbers_to_reflectance(
    project: Project, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(project.root / "model.onnx", tiny_model, "reflectance")
    image = np.random.default_rng(1).integers(1100, 4000, (3, 60, 80)).astype(np.uint16)
    write_raster(project.root / "dn.tif", image, descriptions=("B04", "B03", "B02"))
    arguments = ("stack", "--like", str(model), "--out", "new.tif", "--optical")
    assert run(project, monkeypatch, *arguments, "dn.tif") == 1
    err = capsys.readouterr().err
    for part in ("red is in DN", "--optical-scale", "0.0001", "January 2022, -0.1", "0.0000275 and -0.2"):
        assert part in err
    assert run(project, monkeypatch, *arguments, "dn.tif", *SCALING) == 0
    with rasterio.open(project.root / "new.tif") as dataset:
        assert dataset.read() == pytest.approx(image * 0.0001 - 0.1, abs=1e-6)
        assert dataset.units == ("reflectance",) * 3
    write_raster(project.root / "stated.tif", image, descriptions=("B04", "B03", "B02"), scale=0.0001, offset=-0.1)
    assert run(project, monkeypatch, *arguments, "stated.tif", *SCALING) == 0
    with rasterio.open(project.root / "new.tif") as dataset:
        assert dataset.read() == pytest.approx(image * 0.0001 - 0.1, abs=1e-6)
    capsys.readouterr()
    assert run(project, monkeypatch, *arguments, "stated.tif", "--optical-scale", "0.0000275") == 1
    assert "states scale 0.0001 and offset -0.1 for band 1, but optical_scale" in capsys.readouterr().err


def test_area_may_set_scale_and_offset(project: Project) -> None:
    image = np.random.default_rng(1).integers(8000, 20_000, (3, 60, 80)).astype(np.uint16)
    write_raster(project.root / "data/here/optical.tif", image)
    changed = write_project(project.root, {"here": {**AREA, "optical_scale": 0.0000275, "optical_offset": -0.2}})
    build_stack(changed, "here")
    with rasterio.open(changed.stack("here")) as dataset:
        assert dataset.read((1, 2, 3)) == pytest.approx(image * 0.0000275 - 0.2, abs=1e-6)
        assert dataset.units[:3] == ("reflectance",) * 3


@pytest.mark.real
@pytest.mark.slow
def test_real_sentinel_2_scene_is_converted_to_reflectance(tmp_path: Path, real_data: Path) -> None:
    scene = real_data / "chattogram_s2/s2_rgbn_dn.tif"
    area = Area.create(role="transfer", folder=".", optical_scale=0.0001)
    build_stack_for_model(contract("red", "green", "blue"), area, {"optical": scene}, tmp_path / "new.tif")
    with rasterio.open(scene) as dataset:
        dn = dataset.read(1, masked=True)
    with rasterio.open(tmp_path / "new.tif") as dataset:
        red = dataset.read(1, masked=True)
        assert dataset.units == ("reflectance",) * 3
    assert float(red.mean()) == pytest.approx(float(dn.mean()) * 0.0001, rel=0.01)
    assert red.count() * 625 == pytest.approx(dn.count() * 92, rel=0.1)  # of about 9.2 m × 10 m


def test_missing_or_unreadable_band_of_a_model_is_reported(project: Project, tmp_path: Path) -> None:
    folder, area = project.root / "data" / "here", Area.create(role="transfer", folder=".")
    with pytest.raises(SourceError, match="needs vv_pre: give --sar-pre FILE"):
        build_stack_for_model(contract("slope", "vv_pre"), area, {"dtm": folder / "dtm.tif"}, tmp_path / "out.tif")
    with pytest.raises(MismatchError, match="red is in reflectance, but the model 'asked' was trained on DN"):
        build_stack_for_model(
            contract("red", unit="DN"), area, {"optical": folder / "optical.tif"}, tmp_path / "out.tif"
        )
    assert not (tmp_path / "out.tif").exists()


# --- the command -------------------------------------------------------------------------------------------------


def run(project: Project, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Return the exit code of `talud ARGUMENTS` in a project."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(sys, "argv", ["talud", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_stack_like_works_outside_a_project(
    project: Project, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(1).integers(1, 250, (4, 60, 80)).astype(np.uint8)
    write_raster(project.root / "image.tif", image)
    arguments = ("stack", "--optical", "image.tif", "--like", str(tiny_model), "--out", "new.tif")
    assert (
        run(project, monkeypatch, *arguments, "--optical-bands", "red=4,green=3,blue=2", "--event", "2015-05-18") == 0
    )
    assert "red, green, blue; 80 columns × 60 rows of 12.5 m" in capsys.readouterr().out
    bands = read(project.root / "new.tif")
    assert tuple(bands) == talud.load_model(tiny_model).contract.input.band_names
    assert np.array_equal(np.stack(list(bands.values())), image[[3, 2, 1]])


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("here", "--like", "x.onnx", "--out", "new.tif"),
        ("--like", "x.onnx"),
        ("--like", "x.onnx", "--out", "new.tif", "--sar-unit", "volts"),
        ("--like", "x.onnx", "--out", "new.tif", "--event", "yesterday"),
        ("--like", "x.onnx", "--out", "new.tif", "--optical-bands", "3,2,1"),
    ],
)
def test_usage_errors_exit_with_2(
    project: Project, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    assert run(project, monkeypatch, "stack", *arguments) == 2


def test_dates_out_of_order_are_reported(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--like", "x.onnx", "--out", "new.tif", "--event", "2015-05-18", "--sar-pre-date", "2015-05-20")
    assert run(project, monkeypatch, "stack", *arguments) == 1
    assert "sar_pre was acquired on 2015-05-20, not before the event" in capsys.readouterr().err


@pytest.mark.slow
def test_stack_memory_does_not_grow_with_the_area(tmp_path: Path) -> None:
    peaks = []
    for pixels in (600, 1700):
        folder = tmp_path / str(pixels)
        write_raster(folder / "dtm.tif", np.random.default_rng(0).random((pixels, pixels), np.float32), tiled=True)
        area = {"role": "transfer", "folder": str(folder)}
        project = write_project(tmp_path / f"p{pixels}", {"here": area}, band_sets={"terrain": ["slope"]})
        tracemalloc.start()
        build_stack(project, "here")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.real
def test_kashmir_areas_share_their_files(tmp_path: Path, real_data: Path) -> None:
    shared = {"folder": str(real_data / "kashmir"), "files": {"dtm": "AW3D30.tif", "inventory": "landslides.shp"}}
    west = {"role": "training", **shared, "bounds": [342_000, 3_819_300, 349_800, 3_843_500]}
    east = {"role": "transfer", **shared, "bounds": [349_800, 3_819_300, 357_500, 3_843_500]}
    project = write_project(
        tmp_path,
        {"west": west, "east": east},
        band_sets={"terrain": ["slope", "curvature"]},
        stack={"resolution": 50, "inventory_rule": "all_touched"},
    )
    records = [build_stack(project, area) for area in ("west", "east")]
    frame = geopandas.read_file(real_data / "kashmir" / "landslides.shp")
    for record, area in zip(records, (west, east), strict=True):
        assert record.polygons == frame.intersects(box(*area["bounds"])).sum()
        assert record.skipped_polygons == 0
        slope = read(project.stack(record.area))["slope"]
        assert np.isfinite(slope).mean() > 0.97
        assert 25 < np.nanmean(slope) < 35
    together = sum(record.polygons or 0 for record in records)
    assert len(frame) <= together < len(frame) + 100  # polygons on the border are in both
