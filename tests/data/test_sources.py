"""Tests of finding, reading and resampling sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from source_files import CORNER, write_raster
from talud.data import sources, warping
from talud.errors import SourceError
from talud.grid import Grid

UTM = CRS.from_epsg(32618)


def layer_of(values: np.ndarray, side: float, corner: tuple[float, float] = CORNER) -> sources.SourceLayer:
    """Return a layer from an array (height, width)."""

    def read(window: Window) -> np.ndarray:
        rows = np.arange(window.row_off, window.row_off + window.height)
        columns = np.arange(window.col_off, window.col_off + window.width)
        inside = ((rows >= 0) & (rows < values.shape[0]))[:, None] & ((columns >= 0) & (columns < values.shape[1]))
        picked = values[np.ix_(rows.clip(0, values.shape[0] - 1), columns.clip(0, values.shape[1] - 1))]
        return np.where(inside, picked, np.nan)[None]

    grid = Grid(UTM, Affine(side, 0, corner[0], 0, -side, corner[1]), *values.shape)
    return sources.SourceLayer(Path("x.tif"), grid, ("x",), ("",), read)


def test_sources_are_found_by_name_next_to_sidecars(tmp_path: Path) -> None:
    for name in (
        "optical.TIF", "optical.TIF.aux.xml", "optical.tfw", "dtm.img", "inventory.shp", "inventory.dbf",
        "inventory.prj", "cloud.geojson", "sar_mask.tif", "notes.txt", "Boundary.gpkg",
    ):  # fmt: skip
        (tmp_path / name).touch()
    found = sources.find_sources(tmp_path, {})
    assert {source: path.name for source, path in found.items()} == {
        "optical": "optical.TIF",
        "dtm": "dtm.img",
        "inventory": "inventory.shp",
        "boundary": "Boundary.gpkg",
        "cloud": "cloud.geojson",
        "sar_mask": "sar_mask.tif",
    }


def test_named_file_takes_precedence(tmp_path: Path) -> None:
    for name in ("dtm.tif", "other.tif"):
        (tmp_path / name).touch()
    assert sources.find_sources(tmp_path, {"dtm": "other.tif"})["dtm"].name == "other.tif"
    with pytest.raises(SourceError, match=r"gone\.tif: no such file, though params\.yaml names it as dtm"):
        sources.find_sources(tmp_path, {"dtm": "gone.tif"})
    (tmp_path / "dtm.img").touch()
    with pytest.raises(SourceError, match=r"dtm.img, dtm.tif could all be dtm"):
        sources.find_sources(tmp_path, {})
    with pytest.raises(SourceError, match="no such folder"):
        sources.find_sources(tmp_path / "nowhere", {})


def test_reading_applies_scale_offset_and_nodata(tmp_path: Path) -> None:
    values = np.array([[[100, 7, 300]], [[10, 20, 30]]], np.uint16)
    path = write_raster(tmp_path / "a.tif", values, scale=0.01, offset=-1, nodata=7)
    with sources.open_source(path) as dataset:
        read = sources.read_values(dataset, (2, 1), Window(-1, 0, 5, 1))
    nan = np.nan
    assert read == pytest.approx(np.array([[[nan, -0.9, nan, -0.7, nan]], [[nan, 0, nan, 2, nan]]]), nan_ok=True)
    path = write_raster(tmp_path / "b.tif", np.array([[1, np.inf, -np.inf, np.nan]], np.float32))
    with sources.open_source(path) as dataset:
        assert np.array_equal(
            sources.read_values(dataset, (1,), Window(0, 0, 4, 1)), [[[1, nan, nan, nan]]], equal_nan=True
        )


def test_nodata_zero_must_occur_in_all_bands(tmp_path: Path) -> None:
    values = np.array([[[0, 0, 5]], [[0, 9, 5]], [[0, 0, 5]]], np.uint8)
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    with sources.open_source(path) as dataset:
        read = sources.read_values(dataset, (1, 2, 3), Window(0, 0, 3, 1))
    assert np.array_equal(read[:, 0], [[np.nan, 0, 5], [np.nan, 9, 5], [np.nan, 0, 5]], equal_nan=True)


def test_alpha_band_is_a_mask_and_not_a_source_band(tmp_path: Path) -> None:
    values = np.full((4, 2, 2), 50, np.uint8)
    values[3] = [[255, 0], [255, 255]]
    path = write_raster(tmp_path / "a.tif", values, photometric="RGB", alpha="YES")
    with sources.open_source(path) as dataset:
        assert sources.count_bands_without_alpha(dataset) == 3
        assert np.array_equal(
            np.isnan(sources.read_values(dataset, (1,), Window(0, 0, 2, 2)))[0], [[False, True], [False] * 2]
        )
        with pytest.raises(SourceError, match=r"has 4 bands, but optical_bands expects nir in band 5"):
            sources.optical_layer(dataset, {"red": 1, "nir": 5})


def with_alpha(path: Path, colours: np.ndarray, alpha: np.ndarray, **changes: object) -> Path:
    """Write a file whose last band is alpha by its colour interpretation."""
    values = np.concatenate([colours, alpha[np.newaxis].astype(colours.dtype)])
    write_raster(path, values, **changes)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (*(ColorInterp.undefined,) * len(colours), ColorInterp.alpha)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("nodata", [None, 7])
def test_alpha_band_masks_files_of_any_number_of_bands(
    tmp_path: Path, dtype: str, bands: int, nodata: int | None
) -> None:
    colours = np.random.default_rng(4).integers(20, 200, (bands, 6, 8)).astype(dtype)
    alpha = np.full((6, 8), 255)
    alpha[:, :3], alpha[0, 5] = 0, 1  # transparent and nearly transparent
    colours[:, 5, 7] = 7
    path = with_alpha(tmp_path / "a.tif", colours, alpha, nodata=nodata)
    expected = colours.astype(float)
    expected[:, alpha == 0] = np.nan
    if nodata:
        expected[:, 5, 7] = np.nan
    with sources.open_source(path) as dataset:
        read = sources.read_values(dataset, tuple(range(1, bands + 1)), Window(0, 0, 8, 6))
        assert sources.count_bands_without_alpha(dataset) == bands
    np.testing.assert_array_equal(read, expected)


def test_alpha_band_is_combined_with_a_mask_file(tmp_path: Path) -> None:
    alpha, mask = np.full((6, 8), 255), np.full((6, 8), 255, np.uint8)
    alpha[:, :3], mask[:2] = 0, 0
    path = with_alpha(tmp_path / "a.tif", np.full((4, 6, 8), 50, np.uint8), alpha)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert path.with_suffix(".tif.msk").exists()
    with sources.open_source(path) as dataset:
        valid = np.isfinite(sources.read_values(dataset, (1, 4), Window(0, 0, 8, 6))[1])
    np.testing.assert_array_equal(valid, (alpha > 0) & (mask > 0))


@pytest.mark.parametrize("way", ["described", "read", "numbered"])
def test_named_band_is_not_treated_as_alpha(tmp_path: Path, way: str) -> None:
    values = np.full((4, 4, 4), 50, np.uint8)
    values[3, :2] = 0  # near infrared of water, in the band that GDAL declares as alpha
    names = ("red", "green", "blue", "nir") if way == "described" else ()
    path = write_raster(tmp_path / "a.tif", values, photometric="RGB", alpha="YES", descriptions=names)
    with sources.open_source(path) as dataset:
        indexes, named = {"described": ((1,), ()), "read": ((1, 4), ()), "numbered": ((1,), (4,))}[way]
        assert np.isfinite(sources.read_values(dataset, indexes, Window(0, 0, 4, 4), named)).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.eye(8, dtype=np.uint8)[None], "expects green in band 2"),
        (np.stack([np.eye(8, dtype=np.uint8)] * 3), "only the values 0 and 1, like a mask"),
        (np.stack([np.eye(8, dtype=np.uint8) * 255] * 3), "only the values 0 and 255, like a mask"),
    ],
)
def test_mask_is_refused_as_optical_image(tmp_path: Path, values: np.ndarray, said: str) -> None:
    path = write_raster(tmp_path / "optical.tif", values)
    with sources.open_source(path) as dataset, pytest.raises(SourceError, match=said):
        sources.optical_layer(dataset, {"red": 1, "green": 2, "blue": 3})


@pytest.mark.parametrize(
    ("changes", "unit"), [({}, "DN"), ({"scale": 1e-4}, "reflectance"), ({"units": ("W/m2",)}, "W/m2")]
)
def test_optical_layer_states_the_unit_of_its_bands(tmp_path: Path, changes: dict, unit: str) -> None:
    path = write_raster(tmp_path / "a.tif", np.full((1, 4, 4), 9, np.uint16), **changes)
    with sources.open_source(path) as dataset:
        assert sources.optical_layer(dataset, {"red": 1}).units == (unit,)


def test_resampling_to_coarser_pixels_averages_by_area() -> None:
    values = np.arange(20.0).reshape(4, 5) ** 2
    target = Grid(UTM, Affine(12.5, 0, *CORNER[:1], 0, -12.5, CORNER[1]), 3, 4)
    coarse = warping.resample(layer_of(values, 10), target, 1.25)
    fine = np.kron(values, np.ones((4, 4)))[:15, :20]  # 2.5 m
    for row in range(3):
        for column in range(4):
            expected = fine[row * 5 : row * 5 + 5, column * 5 : column * 5 + 5].mean()
            assert coarse[0, row, column] == pytest.approx(expected, rel=1e-6)


def test_coarser_pixel_is_valid_if_half_of_it_is_valid() -> None:
    values = np.ones((8, 8))
    values[:4, 1:4] = np.nan  # 4 of 16 pixels are valid in the first target pixel
    values[4:, :1] = np.nan  # and 12 of 16 in the one below
    target = Grid(UTM, Affine(40, 0, CORNER[0], 0, -40, CORNER[1]), 2, 2)
    assert np.array_equal(
        np.isnan(warping.resample(layer_of(values, 10), target, 4.0)[0]), [[True, False], [False] * 2]
    )


def test_resampling_interpolates_finer_and_copies_equal_pixels() -> None:
    values = np.random.default_rng(1).random((6, 7))
    same = Grid(UTM, Affine(30, 0, CORNER[0], 0, -30, CORNER[1]), 6, 7)
    assert warping.resample(layer_of(values, 30), same, 1.0)[0] == pytest.approx(values, rel=1e-6)
    half = Grid(UTM, Affine(15, 0, CORNER[0], 0, -15, CORNER[1]), 12, 14)
    fine = warping.resample(layer_of(values, 30), half, 0.5)[0]
    expected = (9 * values[2, 3] + 3 * values[2, 4] + 3 * values[3, 3] + values[3, 4]) / 16
    assert fine[5, 7] == pytest.approx(expected, rel=1e-6)


def test_pixels_outside_the_source_are_invalid() -> None:
    target = Grid(UTM, Affine(10, 0, CORNER[0] - 50, 0, -10, CORNER[1] + 50), 20, 20)
    valid = np.isfinite(warping.resample(layer_of(np.ones((10, 10)), 10), target, 1.0)[0])
    expected = np.zeros((20, 20), bool)
    expected[5:15, 5:15] = True
    assert np.array_equal(valid, expected)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(5, 40), st.floats(3, 40), st.floats(-15, 15), st.integers(0, 2**31))
def test_resampled_windows_equal_the_whole(size: int, side: float, shift: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.random((24, 25))
    values[random.random(values.shape) < 0.1] = np.nan
    layer = layer_of(values, side, (CORNER[0] + shift, CORNER[1] + shift))
    target = Grid(UTM, Affine(12.5, 0, CORNER[0], 0, -12.5, CORNER[1]), 30, 31)
    whole = warping.resample(layer, target, 12.5 / side)
    pieces = np.full_like(whole, 9)
    for window in target.windows(size):
        pieces[(slice(None), *window.toslices())] = warping.resample(layer, target.crop(window), 12.5 / side)
    assert pieces == pytest.approx(whole, nan_ok=True, rel=1e-5)


def test_true_scale_is_recognised() -> None:
    assert warping.has_true_scale(CRS.from_epsg(32618), -75, 6)
    assert warping.has_true_scale(CRS.from_epsg(9377), -75, 6)  # MAGNA-SIRGAS, Colombia's national grid
    assert not warping.has_true_scale(CRS.from_epsg(3857), 12, 47)
    assert not warping.has_true_scale(CRS.from_epsg(4326), -75, 6)
    assert not warping.has_true_scale(CRS.from_epsg(2263), -74, 40.7)  # US survey feet
    assert not warping.has_true_scale(CRS.from_epsg(32618), 30, 6)


@given(st.floats(-180, 180), st.floats(-80, 84))
def test_utm_zone_contains_the_place(longitude: float, latitude: float) -> None:
    crs = warping.utm_zone(longitude, latitude)
    assert crs.to_dict()["proj"] == "utm"
    central = crs.to_dict()["zone"] * 6 - 183
    assert abs(longitude - central) <= 3 + 1e-9
    assert bool(crs.to_dict().get("south")) == (latitude < 0)


def test_truncated_file_is_refused_when_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((600, 600)).astype(np.float32)
    path = tmp_path / "a.tif"
    rasterio.shutil.copy(
        write_raster(tmp_path / "whole.tif", values), path, driver="COG"
    )  # a COG starts with its directory
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with sources.open_source(path) as dataset, pytest.raises(SourceError, match=r"a\.tif: cannot be read"):
        sources.read_values(dataset, (1,), Window(0, 500, 600, 100))


def test_complex_values_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "slc.tif", np.ones((3, 3), np.complex64))
    with rasterio.open(path), sources.open_source(path) as dataset, pytest.raises(SourceError, match="single-look"):
        sources.read_values(dataset, (1,), Window(0, 0, 3, 3))
