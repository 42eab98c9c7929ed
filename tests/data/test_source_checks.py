"""Tests of the warnings about suspicious sources."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from source_files import write_raster
from talud.data import sources
from talud.data.band_names import BandNumbers
from talud.data.source_checks import acquisition_date, warn_about_sources
from talud.data.stack_spec import StackSpec
from talud.errors import TaludWarning
from talud.params import Area, StackOptions

RANDOM = np.random.default_rng(6)


def warnings_about(files: Mapping[str, Path], bands: int = 1, **area: object) -> list[str]:
    """Return the warnings about sources."""
    numbers = BandNumbers.of({f"b{number}": number for number in range(1, bands + 1)}, "as given")
    taken = {source: numbers for source in files if source != "dtm"}
    described = Area.create(role="transfer", folder=".", **area)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_about_sources(StackSpec("here", described, files, StackOptions(), (), taken))
    assert all(one.category is TaludWarning for one in caught)
    return [str(one.message) for one in caught]


def mountains(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 10_000).reshape(100, 100).astype(np.float32)


def scene(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-12, 3, (100, 100)).astype(np.float32)


@pytest.mark.parametrize("fill", [0, -9999, -32768, 32767])
def test_undeclared_fill_in_a_dtm_is_reported_with_its_share(tmp_path: Path, fill: int) -> None:
    heights = mountains(1400, 2600)
    heights[:, :12] = fill
    path = write_raster(tmp_path / "dtm.tif", heights)
    (text,) = warnings_about({"dtm": path})
    assert f"12.0% of its pixels are {fill}, " in text
    assert text.endswith(f"gdal_edit.py -a_nodata {fill} {path}")
    assert warnings_about({"dtm": write_raster(tmp_path / "declared.tif", heights, nodata=fill)}) == []
    (text,) = warnings_about({"dtm": write_raster(tmp_path / "other.tif", heights, nodata=-1)})
    assert f"it declares -1 to be nodata: change {fill} to that" in text


@pytest.mark.parametrize("integer", [False, True])
def test_sea_at_zero_is_not_reported_as_fill(tmp_path: Path, integer: bool) -> None:
    heights = np.maximum(mountains(-300, 900), 0)
    path = write_raster(tmp_path / "dtm.tif", heights.astype(np.int16) if integer else heights)
    assert warnings_about({"dtm": path}) == []


@pytest.mark.parametrize("fill", [0, -9999])
def test_undeclared_fill_in_decibels_is_reported(tmp_path: Path, fill: int) -> None:
    pre, post = scene(1), scene(2)
    post[:25] = fill
    files = {"sar_pre": write_raster(tmp_path / "a.tif", pre), "sar_post": write_raster(tmp_path / "b.tif", post)}
    (text,) = warnings_about(files, sar_unit="db")
    assert f"b.tif: 25.0% of its pixels are {fill}, " in text


def test_zero_power_is_not_reported_as_fill(tmp_path: Path) -> None:
    power = np.power(10, scene() / 10)
    power[:25] = 0
    assert warnings_about({"sar_pre": write_raster(tmp_path / "a.tif", power)}, sar_unit="power") == []


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_undeclared_border_of_an_image_is_reported(tmp_path: Path, dtype: str) -> None:
    image = RANDOM.integers(20, 240, (3, 100, 100)).astype(np.float64)
    image = (image / 1000 if dtype == "float32" else image).astype(dtype)
    image[:, :, :10] = 0
    (text,) = warnings_about({"optical": write_raster(tmp_path / "a.tif", image)}, bands=3)
    assert "10.0% of its pixels are 0, " in text


def test_dark_pixels_are_not_reported_as_fill(tmp_path: Path) -> None:
    shadows = RANDOM.integers(0, 4, (3, 100, 100)).astype(np.uint8)
    assert warnings_about({"optical": write_raster(tmp_path / "a.tif", shadows)}, bands=3) == []
    clipped = RANDOM.integers(20, 240, (3, 100, 100)).astype(np.uint8)
    clipped[:, 40:60, 40:60] = 0  # a shadow in the middle
    assert warnings_about({"optical": write_raster(tmp_path / "b.tif", clipped)}, bands=3) == []


def test_equal_scenes_before_and_after_are_reported(tmp_path: Path) -> None:
    first = write_raster(tmp_path / "a.tif", scene())
    copy = write_raster(tmp_path / "b.tif", scene(), compress="DEFLATE")
    for other in (first, copy):
        (text,) = warnings_about({"sar_pre": first, "sar_post": other}, sar_unit="db")
        assert "have the same pixels, so no change can be seen" in text


BEFORE, AFTER = "S1A_IW_GRDH_1SDV_20150511T101010_20150511T101035.tif", "vv_2015-05-23.tif"


@pytest.mark.parametrize(
    ("pre", "post", "area", "texts"),
    [
        (BEFORE, AFTER, {"event": "2015-05-18"}, []),
        (BEFORE, AFTER, {}, []),
        ("a.tif", "b.tif", {"event": "2015-05-18"}, []),
        (AFTER, BEFORE, {}, ["is of 2015-05-23, not earlier than the one after it, of 2015-05-11"]),
        (BEFORE, "x_20150511.tif", {}, ["is of 2015-05-11, not earlier than the one after it, of 2015-05-11"]),
        (BEFORE, AFTER, {"event": "2015-06-01"}, ["2015-05-23, before the event of 2015-06-01"]),
        (BEFORE, AFTER, {"event": "2015-05-01"}, ["2015-05-11, not before the event of 2015-05-01"]),
        (AFTER, BEFORE, {"acquired": {"sar_pre": "2015-05-11", "sar_post": "2015-05-23"}},
         ["state 2015-05-23, but its given date is 2015-05-11", "state 2015-05-11, but its given date is 2015-05-23"]),
    ],
)  # fmt: skip
def test_scenes_in_the_wrong_order_are_reported(
    tmp_path: Path, pre: str, post: str, area: dict[str, object], texts: list[str]
) -> None:
    files = {
        "sar_pre": write_raster(tmp_path / pre, scene(1)),
        "sar_post": write_raster(tmp_path / post, scene(2)),
    }
    found = warnings_about(files, sar_unit="db", **area)
    assert len(found) == len(texts), found
    for text, expected in zip(found, texts, strict=True):
        assert expected in text


@pytest.mark.parametrize(
    ("name", "tags", "day"),
    [
        ("OPERA_L2_RTC-S1_T137-292321-IW2_20231215T015913Z_20231216T143038Z_S1A_30_v1.0_VV", {}, "2023-12-15"),
        ("pair_20150511_20150523", {}, None),
        ("LC08_L2SP_007056_20150110_20200910_02_T1", {}, "2015-01-10"),
        ("scene", {"ZERO_DOPPLER_START_TIME": "2023-12-15T01:59:13.5"}, "2023-12-15"),
        ("scene_20150231", {}, None),
        ("tile_12345678_9", {}, None),
    ],
)
def test_acquisition_date_follows_tags_or_name(
    tmp_path: Path, name: str, tags: dict[str, str], day: str | None
) -> None:
    with sources.open_source(write_raster(tmp_path / f"{name}.tif", scene(), tags=tags)) as dataset:
        found = acquisition_date(dataset)
    assert (found and found.isoformat()) == day
