from __future__ import annotations

from itertools import combinations, pairwise

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
def test_grid_exceeds_its_bounds_by_less_than_a_pixel(
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


def test_bounds_on_the_lattice_are_not_extended() -> None:
    assert Grid.from_bounds(UTM, (125.0, 250.0, 1125.0, 750.0), 12.5).shape == (40, 80)


@given(
    st.lists(coordinate, min_size=3, max_size=5, unique=True),
    st.lists(coordinate, min_size=3, max_size=5, unique=True),
    st.sampled_from([10.0, 12.5, 28.554923494199286, 1 / 3]),
    st.tuples(coordinate, coordinate),
)
def test_adjacent_areas_share_no_pixel(
    xs: list[float], ys: list[float], resolution: float, origin: tuple[float, float]
) -> None:
    xs, ys = sorted(xs), sorted(ys)
    owned: list[tuple[range, range]] = []
    for left, right in pairwise(xs):
        for bottom, top in pairwise(ys):
            try:
                grid = Grid.from_centres(UTM, (left, bottom, right, top), resolution, origin)
            except SourceError:  # narrower than a pixel
                continue
            column = round((grid.transform.c - origin[0]) / resolution)
            row = round((origin[1] - grid.transform.f) / resolution)
            owned.append((range(column, column + grid.width), range(row, row + grid.height)))
    for (columns, rows), (others, other_rows) in combinations(owned, 2):
        apart = max(columns[0], others[0]) > min(columns[-1], others[-1])
        assert apart or max(rows[0], other_rows[0]) > min(rows[-1], other_rows[-1])
    if min(b - a for values in (xs, ys) for a, b in pairwise(values)) > 2 * resolution:
        whole = Grid.from_centres(UTM, (xs[0], ys[0], xs[-1], ys[-1]), resolution, origin)
        assert sum(len(columns) * len(rows) for columns, rows in owned) == whole.width * whole.height


def test_grid_contains_pixels_whose_centres_are_in_bounds() -> None:
    grid = Grid.from_centres(UTM, (1008.0, 2002.0, 1041.0, 2029.0), 10, (3.0, 7.0))
    # Centres at x = 1008 (on the left edge: inside) … 1038, and at y = 2022 … 2002 (on the bottom edge: outside).
    assert grid.bounds == (1003, 2007, 1043, 2027)


@pytest.mark.slow
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 128))
def test_windows_cover_every_pixel_once(height: int, width: int, size: int) -> None:
    count = np.zeros((height, width), int)
    for window in Grid(UTM, Affine(10, 0, 0, 0, -10, 0), height, width).windows(size):
        count[window.toslices()] += 1
    assert (count == 1).all()


def test_crop_agrees_with_rasterio_window_transform() -> None:
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
        (UTM, Affine(0, 10, 500, 10, 0, 900), "rotated"),
        (UTM, Affine(10, 0, 500, 0, 10, 900), r"upside down \(south up\)"),
        (UTM, Affine(-10, 0, 500, 0, -10, 900), r"mirrored \(east to west\)"),
        (UTM, Affine(-10, 0, 500, 0, 10, 900), r"mirrored \(east to west\) and upside down"),
        (UTM, Affine(10, 0, 500, 0, 0, 900), "pixels have no width or height"),
    ],
)
def test_raster_without_georeference_is_refused(crs: CRS | None, transform: Affine, said: str) -> None:
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", height=4, width=4, count=1, dtype="uint8", crs=crs, transform=transform):
            pass
        with memory.open() as dataset, pytest.raises(SourceError, match=said) as caught:
            Grid.of(dataset)
        assert str(caught.value).startswith(f"{memory.name}: ")
