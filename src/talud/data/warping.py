"""Resampling between grids, and coordinate systems."""

from __future__ import annotations

import math

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from talud.data.sources import SourceLayer
from talud.errors import SourceError
from talud.grid import Bounds, Grid
from talud.raster import translate_read_errors

# Share by which a metre of a CRS may differ from a metre on the ground.
_SCALE_TOLERANCE = 0.02
# Interpolates between neighbours even if the target is coarser in one direction, where GDAL would average.
_NO_WIDENING = {"XSCALE": 1, "YSCALE": 1}
# Source pixels around a window in addition to the span of the resampling kernel.
_EXTRA_PIXELS = 3


def pixel_side(source: Grid, target: Grid) -> float:
    """Return a source pixel's side in the target's units.

    It is measured at the centre of `target`.

    Raises:
        SourceError: `target` cannot be located in the CRS of `source`.
    """
    left, bottom, right, top = target.bounds
    (x,), (y,) = transform(target.crs, source.crs, [(left + right) / 2], [(bottom + top) / 2])
    steps_x, steps_y = [x, x + source.transform.a, x], [y, y, y + source.transform.e]
    xs, ys = transform(source.crs, target.crs, steps_x, steps_y)
    area = abs((xs[1] - xs[0]) * (ys[2] - ys[0]) - (xs[2] - xs[0]) * (ys[1] - ys[0]))
    if not (math.isfinite(area) and area > 0):
        raise SourceError(f"the area cannot be located in {source.crs}, the CRS of a source")
    return math.sqrt(area)


def bounds_in(crs: CRS, grid: Grid) -> Bounds:
    """Return the bounds of a grid in another CRS.

    Raises:
        SourceError: They cannot be expressed in that CRS.
    """
    if grid.crs == crs:
        return grid.bounds
    try:
        left, bottom, right, top = transform_bounds(grid.crs, crs, *grid.bounds, densify_pts=21)
    except (RasterioError, CRSError) as error:
        raise SourceError(f"an extent in {grid.crs} cannot be expressed in {crs}: {error}") from error
    if not (all(map(math.isfinite, (left, bottom, right, top))) and left < right and bottom < top):
        raise SourceError(
            f"an extent in {grid.crs} cannot be expressed in {crs}, since it crosses the edge of that CRS; reproject it"
        )
    return left, bottom, right, top


def resample(layer: SourceLayer, target: Grid, ratio: float) -> NDArray[np.float32]:
    """Resample a layer to a grid.

    Returns float32 (bands, height, width).

    If the pixels of the target are pixels of the layer, their values are copied. Coarser pixels are area-weighted
    averages of the valid source pixels that they touch; equal or finer ones are interpolated. A pixel is valid if valid
    source pixels cover at least half of it.

    Args:
        layer: layer of the source.
        target: a grid, or a window of one.
        ratio: side of a pixel of the whole target grid in source pixels, which determines the method.
    """
    offset = target.offset_in(layer.grid)
    if offset is not None:
        values = layer.finish(layer.read(Window(*offset, target.width, target.height)))
        return np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    left, bottom, right, top = bounds_in(layer.grid.crs, target)
    into_pixels = ~layer.grid.transform
    (first_column, first_row), (last_column, last_row) = into_pixels * (left, top), into_pixels * (right, bottom)
    margin = math.ceil(2 * ratio) + _EXTRA_PIXELS
    column, row = math.floor(first_column) - margin, math.floor(first_row) - margin
    window = Window(column, row, math.ceil(last_column) + margin - column, math.ceil(last_row) + margin - row)
    values = layer.read(window)
    coarser = ratio > 1.001  # grids of equal resolution may differ by rounding
    source = layer.grid.crop(window)
    valid = np.isfinite(values[:1])
    if not valid.any():
        return np.full((len(values), *target.shape), np.nan, np.float32)
    method = Resampling.average if coarser else layer.resampling
    with translate_read_errors(layer.path):
        warped = layer.finish(_warp(values, source, target, method))
    if not valid.all():
        covered = _warp(
            valid.astype(np.float32), source, target, Resampling.average if coarser else Resampling.bilinear
        )
        warped[:, ~(covered[0] >= 0.499)] = np.nan  # less than half, with a margin for rounding
    warped[~np.isfinite(warped)] = np.nan
    return warped.astype(np.float32)


def _warp(values: NDArray[np.floating], source: Grid, target: Grid, method: Resampling) -> NDArray[np.floating]:
    """Warp values from grid to grid.

    NaN is nodata.

    Coordinates are exact, whereas `rasterio.warp.reproject` rounds them.
    """
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=len(values),
            height=source.height,
            width=source.width,
            dtype=values.dtype,
            crs=source.crs,
            transform=source.transform,
            nodata=np.nan,
        ) as writer:
            writer.write(values)
        with (
            memory.open() as dataset,
            WarpedVRT(
                dataset,
                crs=target.crs,
                transform=target.transform,
                height=target.height,
                width=target.width,
                resampling=method,
                tolerance=1e-6,
                nodata=np.nan,
                **({} if method is Resampling.average else _NO_WIDENING),
            ) as warped,
        ):
            result: NDArray[np.floating] = warped.read()
    return result


def has_true_scale(crs: CRS, longitude: float, latitude: float) -> bool:
    """Check if a CRS has true metres at a place.

    This holds in UTM, and does not in geographic CRSs and Web Mercator.
    """
    if not crs.is_projected or not math.isclose(crs.linear_units_factor[1], 1):
        return False
    factors = pyproj.Proj(pyproj.CRS.from_wkt(crs.to_wkt())).get_factors(longitude, latitude)
    scales = (float(factors.meridional_scale), float(factors.parallel_scale))
    return all(abs(scale - 1) < _SCALE_TOLERANCE for scale in scales)


def utm_zone(longitude: float, latitude: float) -> CRS:
    """Return the UTM zone of a place in degrees."""
    zone = min(int((longitude + 180) // 6) + 1, 60)
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def centre(grid: Grid) -> tuple[float, float]:
    """Return a grid's centre in degrees.

    They are longitude and latitude in WGS 84.

    Raises:
        SourceError: The centre has no longitude and latitude.
    """
    left, bottom, right, top = grid.bounds
    (longitude,), (latitude,) = transform(grid.crs, CRS.from_epsg(4326), [(left + right) / 2], [(bottom + top) / 2])
    if not (math.isfinite(longitude) and math.isfinite(latitude)):
        raise SourceError(f"the centre of the extent in {grid.crs} has no longitude and latitude")
    return longitude, latitude
