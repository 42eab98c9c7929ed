"""What the rasters say inside each polygon: one pass over windows, in memory that grows with the polygons alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.grid import Grid
from talud.mapping.reader import StackReader

_ZONE = 1024  # side of the windows in which polygons and rasters meet


def statistics(
    outlines: NDArray[np.object_], probability: Path, stack: StackReader, disagreement: Path | None = None
) -> dict[str, NDArray[np.float64]]:
    """Probability and terrain inside each polygon, as columns by name.

    `mean_probability` and `maximum_probability`; where there is one, the mean `disagreement`; where the stack has a
    slope, `mean_slope_degrees`; where it has an elevation, `minimum_elevation_m`, `maximum_elevation_m`, and
    `aspect_degrees`: the direction in which the ground falls on the whole, clockwise from north, which is that of the
    mean gradient. NaN where every pixel is invalid, or the ground does not fall.

    Args:
        outlines: polygons of whole pixels that do not overlap.
        probability: raster of the probabilities.
        stack: on the same grid.
        disagreement: raster of the probabilities' disagreement, with test-time augmentation.

    Raises:
        SourceError: the stack cannot be read.
    """
    maps = {"probability": probability} | ({"disagreement": disagreement} if disagreement else {})
    tallies = {name: _Tally(len(outlines)) for name in (*maps, "slope", "elevation", "east", "north")}
    with ExitStack() as opened:
        rasters = {name: opened.enter_context(rasterio.open(path)) for name, path in maps.items()}
        for window, owner in _zones(outlines, stack.grid):
            found = {name: raster.read(1, window=window) for name, raster in rasters.items()}
            for name, values in (found | _terrain(stack, window)).items():
                tallies[name].add(owner, values)
    columns = {
        "mean_probability": tallies["probability"].mean,
        "maximum_probability": tallies["probability"].maximum,
    }
    if disagreement:
        columns["disagreement"] = tallies["disagreement"].mean
    if stack.has("slope"):
        columns["mean_slope_degrees"] = tallies["slope"].mean
    if stack.has("elevation"):
        columns["aspect_degrees"] = _bearing(tallies["east"].mean, tallies["north"].mean)
        columns["minimum_elevation_m"] = tallies["elevation"].minimum
        columns["maximum_elevation_m"] = tallies["elevation"].maximum
    return columns


class _Tally:
    """Mean, minimum and maximum of the valid pixels of each polygon, gathered window by window."""

    def __init__(self, polygons: int) -> None:
        self._total, self._count = np.zeros(polygons), np.zeros(polygons)
        self._lowest, self._highest = np.full(polygons, np.inf), np.full(polygons, -np.inf)

    def add(self, owner: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Count a window: the number of each pixel's polygon, from 1, or 0; and its value, NaN where invalid."""
        valid = (owner > 0) & ~np.isnan(values)
        polygon, found = owner[valid] - 1, values[valid].astype(np.float64)
        self._total += np.bincount(polygon, found, len(self._total))
        self._count += np.bincount(polygon, minlength=len(self._count))
        np.minimum.at(self._lowest, polygon, found)
        np.maximum.at(self._highest, polygon, found)

    @property
    def mean(self) -> NDArray[np.float64]:
        return np.divide(self._total, self._count, out=np.full_like(self._total, np.nan), where=self._count > 0)

    @property
    def minimum(self) -> NDArray[np.float64]:
        return np.where(self._count > 0, self._lowest, np.nan)

    @property
    def maximum(self) -> NDArray[np.float64]:
        return np.where(self._count > 0, self._highest, np.nan)


def _zones(outlines: NDArray[np.object_], grid: Grid) -> Iterator[tuple[Window, NDArray[np.int32]]]:
    """The windows that polygons lie in, and the number of the polygon of each pixel, from 1; 0 where there is none."""
    tree = shapely.STRtree(outlines)
    for window in grid.windows(_ZONE):
        zone = grid.crop(window)
        near = np.sort(tree.query(shapely.box(*zone.bounds)))
        if len(near):
            shapes = zip(outlines[near], near + 1, strict=True)
            yield window, rasterio.features.rasterize(shapes, zone.shape, transform=zone.transform, dtype="int32")


def _terrain(stack: StackReader, window: Window) -> dict[str, NDArray[np.float32]]:
    """What the stack has of slope and elevation in a window, and with the elevation, the fall to the east and north."""
    layers = {"slope": stack.band("slope", window)} if stack.has("slope") else {}
    if stack.has("elevation"):
        whole = Window(0, 0, stack.grid.width, stack.grid.height)
        around = Window(window.col_off - 1, window.row_off - 1, window.width + 2, window.height + 2).intersection(whole)
        top, left = window.row_off - around.row_off, window.col_off - around.col_off
        inside = np.s_[top : top + window.height, left : left + window.width]
        elevation = stack.band("elevation", around)
        layers["elevation"] = elevation[inside]
        if min(elevation.shape) > 1:
            to_south, to_east = (np.gradient(elevation, axis=axis) for axis in (0, 1))
            layers |= {"east": -to_east[inside], "north": to_south[inside]}
    return layers


def _bearing(east: NDArray[np.float64], north: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction of a vector in degrees clockwise from north, 0 to 360; NaN for the zero vector."""
    degrees = np.degrees(np.arctan2(east, north)) % 360
    return np.where((east == 0) & (north == 0), np.nan, degrees)
