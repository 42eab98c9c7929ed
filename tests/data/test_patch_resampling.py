"""Tests of patches that are resampled to another pixel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject

from talud.data.patch_resampling import PatchResampling
from talud.params import StackOptions

UTM = CRS.from_epsg(32633)
ANYWHERE = Path("patch.tif")


def image(side: int, seed: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 250, (2, side, side)).astype(np.float32)


def warped(values: np.ndarray, size: float, target: float, side: int, method: Resampling) -> np.ndarray:
    """Return what GDAL makes of a patch whose corner is the origin of both grids."""
    result = np.full((len(values), side, side), np.nan, np.float32)
    grids = [Affine(one, 0, 500_000, 0, -one, 4_000_000) for one in (size, target)]
    options = {} if method is Resampling.average else {"XSCALE": 1, "YSCALE": 1}
    reproject(
        values, result, src_transform=grids[0], dst_transform=grids[1], src_crs=UTM, dst_crs=UTM,
        src_nodata=np.nan, dst_nodata=np.nan, resampling=method, **options,
    )  # fmt: skip
    return result


def shares(side: int, new_side: int, ratio: float) -> np.ndarray:
    """Return the length that each pixel of a row shares with each new pixel, (new pixels, pixels)."""
    low, high = np.arange(side), np.arange(side) + 1
    starts = ratio * np.arange(new_side)[:, np.newaxis]
    return np.clip(np.minimum(high, starts + ratio) - np.maximum(low, starts), 0, None)


def resampled(resampling: PatchResampling, values: np.ndarray) -> np.ndarray:
    cell = resampling.bands(values, ("red", "green"), ("DN", "DN"), ANYWHERE)
    assert cell.shape == (2, resampling.cell, resampling.cell)
    assert np.isnan(cell[:, resampling.new_side :]).all()
    assert np.isnan(cell[:, :, resampling.new_side :]).all()
    return cell[:, : resampling.new_side, : resampling.new_side]


@pytest.mark.parametrize(("side", "size", "new", "cell"), [(128, 3, 38, 64), (20, 3, 6, 32), (64, 10, 64, 64)])
def test_side_of_a_resampled_patch_is_rounded_and_padded(side: int, size: float, new: int, cell: int) -> None:
    resampling = PatchResampling(side, size, 10, "centre")
    assert (resampling.new_side, resampling.cell) == (new, cell)


def test_coarser_bands_are_the_averages_of_gdal() -> None:
    values = image(40)
    expected = warped(values, 3, 10, 12, Resampling.average)
    np.testing.assert_allclose(resampled(PatchResampling(40, 3, 10, "centre"), values), expected, rtol=1e-5)
    weights = shares(40, 12, 10 / 3)
    np.testing.assert_allclose(expected[0], weights @ values[0] @ weights.T * 0.09, rtol=1e-4)


def test_finer_bands_are_interpolated_as_by_gdal() -> None:
    values = image(16)
    found = resampled(PatchResampling(16, 10, 4, "centre"), values)
    expected = warped(values, 10, 4, 40, Resampling.bilinear)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pixel_is_valid_if_half_of_it_is_covered() -> None:
    values = image(40)
    values[:, :12, :9] = np.nan
    values[1, 30, 30] = np.nan
    found = resampled(PatchResampling(40, 3, 10, "centre"), values)
    weights = shares(40, 12, 10 / 3)
    for band, pixels in enumerate(values):
        covered = weights @ np.isfinite(pixels) @ weights.T * 0.09
        np.testing.assert_array_equal(np.isfinite(found[band]), covered >= 0.499)


def test_partly_covered_last_pixel_follows_the_same_rule() -> None:
    found = resampled(PatchResampling(42, 3, 10, "centre"), image(42))  # 126 m: 6 m of the last pixel
    assert found.shape[1:] == (13, 13)
    assert np.argwhere(np.isnan(found[0])).tolist() == [[12, 12]]  # 36 % of the corner is covered


@pytest.mark.parametrize("rule", ["centre", "all_touched"])
def test_mask_is_the_majority_of_known_pixels(rule: str) -> None:
    generator = np.random.default_rng(2)
    truth = (generator.random((40, 40)) < 0.5).astype(np.uint8)
    truth[20:] = 0
    truth[31, 31] = 1
    truth[:14, 5:22] = 255
    weights = shares(40, 12, 10 / 3)
    known, landslide = ((weights @ part @ weights.T) for part in (truth != 255, truth == 1))
    least = known / 2 if rule == "centre" else 1e-3
    expected = np.where(known < 0.4989 / 0.09, 255, landslide >= least - 1e-9)
    mask = PatchResampling(40, 3, 10, rule).mask(truth, ANYWHERE)
    np.testing.assert_array_equal(mask[:12, :12], expected)
    assert set(np.unique(mask)) == {0, 1, 255}
    assert (mask[12:] == 255).all()
    assert (mask[9, 9] == 1) == (rule == "all_touched")


def test_mask_of_finer_pixels_has_no_new_class() -> None:
    truth = np.kron(np.array([[1, 0], [255, 1]], np.uint8), np.ones((8, 8), np.uint8))
    mask = PatchResampling(16, 10, 5, "centre").mask(truth, ANYWHERE)
    np.testing.assert_array_equal(mask, np.kron(truth, np.ones((2, 2), np.uint8)))


@pytest.mark.parametrize(("unit", "power"), [("dB", lambda v: 10 ** (v / 10)), ("amplitude", np.square)])
def test_radar_is_averaged_as_power(unit: str, power: object) -> None:
    values = np.random.default_rng(0).uniform(1, 9, (1, 8, 8)).astype(np.float32)
    cell = PatchResampling(8, 5, 10, "centre").bands(values, ("vv_pre",), (unit,), ANYWHERE)
    averages = power(values[0].astype(float)).reshape(4, 2, 4, 2).mean(axis=(1, 3))  # type: ignore[operator]
    np.testing.assert_allclose(power(cell[0, :4, :4].astype(float)), averages, rtol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("rule", ["equal", "native", "resample"])
def test_patches_are_resampled_only_on_request(rule: str) -> None:
    options = StackOptions(resolution=10, pixel_sizes=rule)
    assert (PatchResampling.of(128, 3, options) is not None) == (rule == "resample")
    assert PatchResampling.of(128, 10, options) is None
