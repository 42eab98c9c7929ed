"""Tests of slope and curvature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform
from scipy import ndimage

from source_files import write_raster
from talud.data import sources, terrain, warping
from talud.errors import SourceError
from talud.grid import Grid

gradients = st.floats(-3, 3)
sides = st.floats(0.5, 90)


def surface(height: int, width: int, dx: float, dy: float) -> tuple[np.ndarray, np.ndarray]:
    """Return elevation as a function of x (east) and y (north) from the centre."""
    rows, columns = np.indices((height, width))
    return (columns - width // 2) * dx, (height // 2 - rows) * dy


@given(gradients, gradients, sides, sides, st.sampled_from(["horn", "zevenbergen_thorne"]))
def test_plane_has_the_slope_of_its_gradient_and_no_curvature(
    p: float, q: float, dx: float, dy: float, method: str
) -> None:
    x, y = surface(5, 6, dx, dy)
    z = 100 + p * x + q * y
    assert terrain.slope(z, dx, dy, method) == pytest.approx(np.degrees(np.arctan(np.hypot(p, q))), abs=1e-6)
    for kind in ("profile", "total"):
        assert terrain.curvature(z, dx, dy, kind) == pytest.approx(0, abs=1e-6)


def test_horn_slope_equals_the_sobel_gradient() -> None:
    z = np.random.default_rng(2).random((30, 40)) * 50
    p, q = ndimage.sobel(z, axis=1) / (8 * 10), -ndimage.sobel(z, axis=0) / (8 * 20)
    expected = np.degrees(np.arctan(np.hypot(p, q)))[1:-1, 1:-1]
    assert terrain.slope(z, 10, 20, "horn") == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_curvature_of_a_sphere_follows_its_radius() -> None:
    radius = 1000.0
    x, y = surface(401, 401, 2, 2)
    dome = np.sqrt(radius**2 - x**2 - y**2)
    beside_the_top = np.s_[:, 260:]
    profile = terrain.curvature(dome, 2, 2, "profile")[beside_the_top]
    assert profile == pytest.approx(100 / radius, rel=1e-3)
    bowl = terrain.curvature(-dome, 2, 2, "profile")[beside_the_top]
    assert bowl == pytest.approx(-100 / radius, rel=1e-3)
    distance = np.hypot(x, y)[1:-1, 1:-1][beside_the_top]
    contour = terrain.curvature(dome, 2, 2, "contour")[beside_the_top]
    assert contour == pytest.approx(100 / distance, rel=1e-3)
    slope = terrain.slope(dome, 2, 2, "zevenbergen_thorne")[beside_the_top]
    assert slope == pytest.approx(np.degrees(np.arcsin(distance / radius)), abs=0.01)


def test_total_curvature_equals_the_laplacian() -> None:
    x, y = surface(9, 9, 5, 4)
    z = 0.01 * x**2 - 0.03 * y**2 + 0.02 * x * y
    assert terrain.curvature(z, 5, 4, "total") == pytest.approx(-100 * (2 * 0.01 - 2 * 0.03))


def test_cone_has_contour_but_no_profile_curvature() -> None:
    x, y = surface(201, 201, 1, 1)
    distance = np.hypot(x, y)
    away = distance[1:-1, 1:-1] > 40
    cone = -0.7 * distance
    assert terrain.curvature(cone, 1, 1, "profile")[away] == pytest.approx(0, abs=2e-3)
    contour = terrain.curvature(cone, 1, 1, "contour")[away]
    assert contour == pytest.approx(100 / distance[1:-1, 1:-1][away], rel=2e-3)


def test_contour_curvature_is_limited_on_nearly_flat_ground() -> None:
    x, y = surface(21, 21, 10, 10)
    summit = -1e-3 * ((x - 0.01) ** 2 + y**2)
    assert terrain.curvature(summit, 10, 10, "contour").max() == 100
    for kind in ("profile", "contour", "total"):
        assert np.array_equal(terrain.curvature(np.zeros((3, 3)), 10, 10, kind), [[0]])


def test_void_invalidates_only_its_neighbours(tmp_path: Path) -> None:
    z = np.full((9, 9), 250, np.int16)
    z[4, 4] = -32768  # undeclared
    path = write_raster(tmp_path / "dtm.tif", z)
    with sources.open_source(path) as dataset:
        layer = terrain.terrain_layer(dataset, Grid.of(dataset), "horn", "profile")
        values = layer.read(rasterio.windows.Window(0, 0, 9, 9))
    expected = np.zeros((9, 9), bool)
    expected[1:-1, 1:-1] = True
    expected[3:6, 3:6] = False
    assert np.array_equal(np.isfinite(values), np.stack([expected] * 3))


@pytest.mark.parametrize(("crs", "off"), [("EPSG:4326", 0.001), ("EPSG:3857", 1.1)])  # 20.5 m pixels are averaged
def test_dtm_without_true_scale_is_projected_first(tmp_path: Path, crs: str, off: float) -> None:
    target = Grid(CRS.from_epsg(32632), Affine(25, 0, 500_000, 0, -25, 5_200_000), 40, 40)  # at 47° north
    left, _, _, top = warping.bounds_in(CRS.from_string(crs), target)
    side = 1 / 3600 if crs == "EPSG:4326" else 30.0
    height, width = (80, 100) if crs == "EPSG:4326" else (80, 80)
    corner = left - 12 * side, top + 12 * side
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    xs, ys = corner[0] + columns * side, corner[1] - rows * side
    east, north = transform(crs, target.crs, xs.ravel(), ys.ravel())
    plane = 0.4 * (np.reshape(east, xs.shape) - 500_000) + 0.3 * (np.reshape(north, xs.shape) - 5_200_000) + 2000
    path = write_raster(tmp_path / "dtm.tif", plane, side, corner, crs)
    with sources.open_source(path) as dataset:
        layer = terrain.terrain_layer(dataset, target, "zevenbergen_thorne", "profile")
        assert layer.grid.crs == target.crs
        own = warping.pixel_side(Grid.of(dataset), target)
        assert layer.grid.resolution == pytest.approx(own)
        elevation, slope, curvature = warping.resample(layer, target, target.resolution / layer.grid.resolution)
    assert slope == pytest.approx(np.degrees(np.arctan(0.5)), abs=0.001)
    assert curvature == pytest.approx(0, abs=0.001)
    rows, columns = np.indices(target.shape) + 0.5
    assert elevation == pytest.approx(2000 + 0.4 * columns * 25 - 0.3 * rows * 25, abs=off)


@pytest.mark.parametrize(
    ("values", "unit", "said"),
    [(np.zeros((5, 4, 4)), "", "has 5 bands"), (np.zeros((4, 4)), "ft", "'ft'")],
)
def test_dtm_must_be_one_band_in_metres(tmp_path: Path, values: np.ndarray, unit: str, said: str) -> None:
    path = write_raster(tmp_path / "dtm.tif", values, units=(unit,))
    with sources.open_source(path) as dataset, pytest.raises(SourceError, match=said):
        terrain.terrain_layer(dataset, Grid.of(dataset), "horn", "profile")


@pytest.mark.real
def test_slope_and_curvatures_of_ecuador_equal_those_of_saga(real_data: Path) -> None:
    with rasterio.open(real_data / "ecuador" / "ta.tif") as dataset:
        bands = dict(zip(dataset.descriptions, dataset.read().astype(np.float64), strict=True))
    z = bands["elev"]
    expected = {name: band[1:-1, 1:-1] for name, band in bands.items()}
    slope = terrain.slope(z, 10, 10, "zevenbergen_thorne")
    profile, contour = (terrain.curvature(z, 10, 10, kind) / 100 for kind in ("profile", "contour"))
    inner = np.isfinite(slope + profile) & np.isfinite(expected["slope"] + expected["cprof"])
    assert inner.sum() > 156_000
    assert np.abs(slope - expected["slope"])[inner].max() < 0.001
    assert np.abs(profile - expected["cprof"])[inner].max() < 5e-5
    # On 0.07 % of the pixels contour curvature is beyond the limit of 1/m.
    bounded = np.clip(expected["cplan"], -1, 1)
    assert np.abs(contour - bounded)[inner].max() < 5e-5
    assert (np.abs(expected["cplan"]) > 1)[inner].mean() < 1e-3
    horn = terrain.slope(z, 10, 10, "horn")
    assert np.nanmax(np.abs(horn - expected["slope"])) == pytest.approx(14.3, abs=0.05)


def test_terrain_of_a_patch_is_one_sided_at_its_border() -> None:
    z = np.random.default_rng(4).normal(500, 30, (9, 7))
    south, east = np.gradient(z, 10.0)
    slope, _ = terrain.patch_terrain(z, 10.0, "zevenbergen_thorne", "profile")
    np.testing.assert_allclose(slope, np.degrees(np.arctan(np.hypot(south, east))), rtol=1e-9)
    x, y = surface(6, 6, 10, 10)
    for method in ("horn", "zevenbergen_thorne"):
        plane = terrain.patch_terrain(700 + 0.3 * x - 0.4 * y, 10.0, method, "total")
        np.testing.assert_allclose(plane[0], np.degrees(np.arctan(0.5)), rtol=1e-9)
        np.testing.assert_allclose(plane[1], 0, atol=1e-9)
    bowl = terrain.patch_terrain(3e-3 * x**2, 10.0, "horn", "total")[1]
    np.testing.assert_allclose(bowl[:, 1:-1], -100 * 6e-3, rtol=1e-9)
    np.testing.assert_allclose(bowl[:, [0, -1]], 0, atol=1e-9)


def test_terrain_of_a_patch_equals_that_of_its_raster() -> None:
    wide = np.random.default_rng(2).normal(500, 30, (14, 14))
    inner = wide[1:-1, 1:-1]
    for kind in ("profile", "contour", "total"):
        slope, curvature = terrain.patch_terrain(inner, 12.5, "horn", kind)
        np.testing.assert_array_equal(slope[1:-1, 1:-1], terrain.slope(inner, 12.5, 12.5, "horn"))
        np.testing.assert_array_equal(curvature[1:-1, 1:-1], terrain.curvature(inner, 12.5, 12.5, kind))
    inner = inner.copy()
    inner[5, 5] = np.nan
    holes = np.isnan(terrain.patch_terrain(inner, 12.5, "horn", "profile"))
    assert holes[1].sum() == 9
    assert not holes[:, [0, -1]].any()
