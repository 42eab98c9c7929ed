"""Tests of smoothed outlines."""

from __future__ import annotations

import numpy as np
import rasterio.features
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stack_files import grid_of
from talud.products.polygons import smooth_outlines

PIXEL = 12.5


def outlines(mask: np.ndarray) -> np.ndarray:
    """Return the 8-connected polygons of a mask, as in a map."""
    shapes = rasterio.features.shapes(mask, mask=mask > 0, connectivity=8, transform=grid_of(1, 1).transform)
    return shapely.make_valid(np.array([shapely.geometry.shape(shape) for shape, _ in shapes], np.object_))


def rings(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of parts and holes of each polygon."""
    parts, owner = shapely.get_parts(polygons, return_index=True)
    holes = np.bincount(owner, shapely.get_num_interior_rings(parts), minlength=len(polygons))
    return shapely.get_num_geometries(polygons), holes


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)))
def test_smoothing_keeps_parts_holes_and_position(mask: np.ndarray) -> None:
    before = outlines(mask)
    after = smooth_outlines(before, PIXEL)
    assert len(after) == len(before)
    assert shapely.is_valid(after).all()
    assert not shapely.is_empty(after).any()
    parts, holes = rings(before)
    assert np.array_equal(rings(after), (parts, holes))
    distance = [shapely.hausdorff_distance(*pair, densify=0.1) for pair in zip(before, after, strict=True)]
    assert max(distance, default=0) <= PIXEL * np.sqrt(2) / 8 * (1 + 1e-9)
    # Each ring loses 5/32 pixel: at each of four corners the first round cuts 1/32 and the second 1/128.
    lost = shapely.area(before) - shapely.area(after)
    assert np.allclose(lost, (parts - holes) * 5 / 32 * PIXEL**2, atol=1e-6 * PIXEL**2)


def test_straight_edges_are_kept_without_extra_points() -> None:
    [rounded] = smooth_outlines(outlines(np.ones((30, 400), np.uint8)), PIXEL)
    assert rounded.bounds == outlines(np.ones((30, 400), np.uint8))[0].bounds
    assert shapely.get_num_coordinates(rounded) <= 4 * 4 + 2


def test_smoothing_limits_the_angles_of_a_staircase() -> None:
    """Angles of 90 degrees become at most 27 degrees."""
    [stairs] = outlines(np.tri(20, dtype=np.uint8))
    [curve] = shapely.get_parts(smooth_outlines(np.array([stairs], np.object_), PIXEL))
    steps = np.diff(shapely.get_coordinates(curve), axis=0)
    bearing = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
    turns = np.abs((np.diff(np.append(bearing, bearing[0])) + 180) % 360 - 180)
    assert turns.max() < 27


def test_smoothing_accepts_no_polygons() -> None:
    assert len(smooth_outlines(np.array([], np.object_), PIXEL)) == 0
