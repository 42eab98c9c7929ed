from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from talud.errors import SourceError
from talud.grid import Grid

UTM = CRS.from_epsg(32618)
coordinate = st.floats(-1e6, 1e6, allow_nan=False)
length = st.floats(20, 3e4, allow_nan=False)


@given(coordinate, coordinate, length, length, st.sampled_from([10.0, 12.5, 30.0]))
def test_a_grid_covers_its_bounds_with_less_than_a_pixel_to_spare(
    left: float, bottom: float, width: float, height: float, resolution: float
) -> None:
    bounds = (left, bottom, left + width, bottom + height)
    grid = Grid.from_bounds(UTM, bounds, resolution)
    outer = grid.bounds
    slack = 1e-4 * resolution
    assert outer[0] <= bounds[0] + slack
    assert outer[1] <= bounds[1] + slack
    assert outer[2] >= bounds[2] - slack
    assert outer[3] >= bounds[3] - slack
    for outside, inside in zip(outer, bounds, strict=True):
        assert abs(outside - inside) < resolution + slack
        assert abs(outside / resolution - round(outside / resolution)) < 1e-6


def test_bounds_on_the_lattice_gain_no_pixel() -> None:
    assert Grid.from_bounds(UTM, (125.0, 250.0, 1125.0, 750.0), 12.5).shape == (40, 80)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_windows_cover_every_pixel_once(height: int, width: int, size: int) -> None:
    count = np.zeros((height, width), int)
    for window in Grid(UTM, Affine(10, 0, 0, 0, -10, 0), height, width).windows(size):
        count[window.toslices()] += 1
    assert (count == 1).all()


def test_a_crop_lies_where_rasterio_puts_the_window() -> None:
    grid = Grid(UTM, Affine(10, 0, 500, 0, -10, 900), 40, 30)
    window = rasterio.windows.Window(3, 5, 7, 11)
    crop = grid.crop(window)
    assert crop.shape == (11, 7)
    assert crop.bounds == pytest.approx(rasterio.windows.bounds(window, grid.transform))


@pytest.mark.parametrize(
    ("crs", "transform", "said"),
    [
        (None, Affine(10, 0, 0, 0, -10, 0), "no coordinate reference system"),
        (UTM, Affine(10, 2, 0, 2, -10, 0), "rotated"),
    ],
)
def test_a_raster_without_a_place_is_refused(crs: CRS | None, transform: Affine, said: str) -> None:
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", height=4, width=4, count=1, dtype="uint8", crs=crs, transform=transform):
            pass
        with memory.open() as dataset, pytest.raises(SourceError, match=said):
            Grid.of(dataset)
