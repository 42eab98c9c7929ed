"""Tests of SAR units and the Lee filter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window
from scipy.ndimage import map_coordinates

from source_files import write_project, write_raster
from talud.data import sar, sources
from talud.data.stack import build_stack
from talud.errors import SourceError


@given(st.floats(1e-6, 1e3), st.sampled_from(["amplitude", "power", "db"]))
def test_sar_units_convert_both_ways(power: float, unit: str) -> None:
    values = np.array([[power]])
    assert sar.to_power(sar.from_power(values, unit), unit) == pytest.approx(values)


def test_sar_units_follow_their_definitions() -> None:
    assert sar.from_power(np.array([0.01, 1, 100]), "db") == pytest.approx([-20, 0, 20])
    assert sar.from_power(np.array([0.04]), "amplitude") == pytest.approx([0.2])
    assert sar.to_power(np.array([-3.0103]), "db") == pytest.approx([0.5], rel=1e-5)
    for unit in ("amplitude", "power"):
        assert np.isnan(sar.to_power(np.array([0.0, -0.1]), unit)).all()


def test_lee_filter_equals_the_formula_at_each_pixel() -> None:
    power = np.random.default_rng(5).gamma(4.4, 0.1 / 4.4, (12, 14))
    power[3:6, 4] = np.nan
    expected = np.full(power.shape, np.nan)
    for row, column in zip(*np.nonzero(np.isfinite(power)), strict=True):
        near = power[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        mean, variance = np.nanmean(near), np.nanvar(near)
        weight = (1 - mean**2 / variance / 4.4) / (1 + 1 / 4.4)
        expected[row, column] = mean + np.clip(weight, 0, 1) * (power[row, column] - mean)
    assert sar.lee_filter(power, 5) == pytest.approx(expected, nan_ok=True, rel=1e-9)


def test_lee_filter_reduces_speckle_and_keeps_an_edge() -> None:
    speckle = np.random.default_rng(7).gamma(4.4, 1 / 4.4, (60, 60))
    power = speckle * np.where(np.arange(60) < 30, 0.01, 1.0)
    filtered = sar.lee_filter(power, 7)
    dark, bright = filtered[5:-5, 5:20], filtered[5:-5, 40:55]
    assert np.mean(bright) == pytest.approx(1, abs=0.05)
    assert np.std(bright) < 0.3 * np.std(power[5:-5, 40:55])
    assert np.mean(filtered[5:-5, 29]) < 0.3
    assert np.mean(dark) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("units", "tags", "unit"),
    [
        (("dB",), {}, "db"),
        (("Amplitude",), {}, "amplitude"),
        ((), {"SAR_UNIT": "power"}, "power"),
        ((), {"OUTPUT_BACKSCATTER_EXPRESSION_CONVENTION": "linear backscatter intensity"}, "power"),
        (("m",), {}, None),
        ((), {}, None),
    ],
)
def test_sar_unit_is_read_from_the_file(
    tmp_path: Path, units: tuple[str, ...], tags: dict[str, str], unit: str | None
) -> None:
    path = write_raster(tmp_path / "s.tif", np.ones((4, 4), np.float32), units=units, tags=tags)
    with sources.open_source(path) as dataset:
        assert (sar.stated_unit(dataset, 1) or (None,))[0] == unit


def test_lee_filter_does_not_depend_on_the_window(tmp_path: Path) -> None:
    power = np.random.default_rng(3).gamma(4.4, 0.1, (40, 50)).astype(np.float32)
    path = write_raster(tmp_path / "s.tif", power)
    with sources.open_source(path) as dataset:
        layer = sar.sar_layer(dataset, {"vv": 1}, "pre", "power", "db", 7)
        whole = layer.read(Window(0, 0, 50, 40))
        part = layer.read(Window(11, 13, 20, 9))
    assert part == pytest.approx(whole[:, 13:22, 11:31])


def test_error_on_missing_sar_unit_names_the_setting(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "s.tif", np.ones((4, 4), np.float32))
    with sources.open_source(path) as dataset, pytest.raises(SourceError, match="set sar_unit"):
        sar.sar_layer(dataset, {"vv": 1}, "pre", None, "db", 0)
    with sources.open_source(path) as dataset, pytest.raises(SourceError, match="vh is expected in band 2"):
        sar.sar_layer(dataset, {"vh": 2}, "pre", "db", "db", 0)


@pytest.mark.parametrize(
    ("changes", "unit", "said"),
    [
        ({"units": ("dB",)}, "power", r"s\.tif: states dB .band unit., but sar_unit is power"),
        ({"tags": {"SAR_UNIT": "dB"}}, "amplitude", r"states dB .tag SAR_UNIT., but sar_unit is amplitude"),
        ({"descriptions": ("Gamma0_VV_db",)}, "power", r"states dB .description., but sar_unit is power"),
        ({"units": ("power",)}, "db", "states power .band unit., but sar_unit is dB"),
        (
            {"units": ("dB",), "descriptions": ("Amplitude_VV",)},
            None,
            "states two units for band 1: dB .* and amplitude",
        ),
        ({}, "power", "100% of its values are negative, which power cannot be; they look like dB"),
        ({}, "amplitude", "negative, which amplitude cannot be"),
    ],
)
def test_sar_unit_that_contradicts_the_file_is_refused(
    tmp_path: Path, changes: dict[str, object], unit: str | None, said: str
) -> None:
    decibels = np.random.default_rng(0).uniform(-20, -5, (20, 20)).astype(np.float32)
    path = write_raster(tmp_path / "s.tif", decibels, **changes)
    with sources.open_source(path) as dataset, pytest.raises(SourceError, match=said):
        sar.sar_layer(dataset, {"vv": 1}, "pre", unit, "db", 0)


def test_decibels_without_negative_values_are_refused(tmp_path: Path) -> None:
    power = np.random.default_rng(0).gamma(4.4, 0.02, (20, 20)).astype(np.float32)
    path = write_raster(tmp_path / "s.tif", power)
    with sources.open_source(path) as dataset, pytest.raises(SourceError, match="none below 0, which backsc"):
        sar.sar_layer(dataset, {"vv": 1}, "pre", "db", "db", 0)


@pytest.mark.parametrize(("unit", "stated"), [("db", "Decibels"), (None, "dB"), ("power", "Linear power")])
def test_sar_unit_that_fits_the_file_is_accepted(tmp_path: Path, unit: str | None, stated: str) -> None:
    values = np.full((4, 4), 0.1 if unit == "power" else -10, np.float32)
    values[0, 0] = -0.001 if unit == "power" else 0.5  # from the subtraction of noise, or a bright corner
    path = write_raster(tmp_path / "s.tif", values, units=(stated,), descriptions=("Gamma0_VV",))
    with sources.open_source(path) as dataset:
        layer = sar.sar_layer(dataset, {"vv": 1}, "pre", unit, "db", 0)
        assert layer.finish(layer.read(Window(0, 0, 4, 4)))[0, 2, 2] == pytest.approx(-10)


def test_raw_sar_scene_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "grd.tif"
    points = [
        rasterio.control.GroundControlPoint(row, col, -75 + col / 9e3, 6 - row / 9e3)
        for row, col in ((0, 0), (0, 9), (9, 0))
    ]
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=9, width=9, dtype="uint16", gcps=points, crs="EPSG:4326"
    ) as writer:
        writer.write(np.ones((1, 9, 9), np.uint16))
    with pytest.raises(SourceError, match="terrain-correct it first"), sources.open_source(path):
        pass


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("unit", ["db", "amplitude"])
def test_stacked_burst_equals_the_result_of_numpy(tmp_path: Path, real_data: Path, unit: str) -> None:
    folder = real_data / "sentinel1_opera"
    pre, post = sorted(folder.glob("*IW2_20231227*"))[0], sorted(folder.glob("*IW2_20250102*"))[0]
    area = {"role": "transfer", "folder": str(folder), "files": {"sar_pre": pre.name, "sar_post": post.name}}
    project = write_project(
        tmp_path / "p",
        {"burst": {**area, "sar_unit": "power", "acquired": {"sar_pre": "2023-12-27", "sar_post": "2025-01-02"}}},
        band_sets={"radar": ["vv_pre", "vv_post"]},
        stack={"resolution": 12.5, "sar_unit": unit},
    )
    build_stack(project, "burst")
    with rasterio.open(project.stack("burst")) as dataset:
        stack, grid = dataset.read(), dataset.transform
        assert dataset.descriptions == ("vv_pre", "vv_post")
        assert dataset.units == ({"db": "dB"}.get(unit, unit),) * 2
        assert dataset.tags()["TALUD_ACQUIRED_SAR_POST"] == "2025-01-02"
    for band, path in zip(stack, (pre, post), strict=True):
        with rasterio.open(path) as dataset:
            power, own = dataset.read(1).astype(np.float64), dataset.transform
        rows, columns = np.indices(band.shape) + 0.5
        x, y = grid.c + columns * 12.5, grid.f - rows * 12.5
        at = np.stack([(own.f - y) / 30 - 0.5, (x - own.c) / 30 - 0.5])
        expected = map_coordinates(np.where(power > 0, power, np.nan), at, order=1, cval=np.nan)
        expected = 10 * np.log10(expected) if unit == "db" else np.sqrt(expected)
        inner = np.isfinite(expected)
        assert inner.mean() > 0.9
        assert band[inner] == pytest.approx(expected[inner], abs=1e-4)
