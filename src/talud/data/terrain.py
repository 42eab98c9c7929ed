"""Slope and curvature from a digital terrain model (DTM).

Elevation z in a 3 × 3 window is written, with x to the east, y to the north, and pixels of dx by dy:

    z1 z2 z3
    z4 z5 z6
    z7 z8 z9

Its partial derivatives (Zevenbergen and Thorne 1987) are

    p = ∂z/∂x   = (z6 − z4) / 2dx              r = ∂²z/∂x²  = (z4 − 2 z5 + z6) / dx²
    q = ∂z/∂y   = (z2 − z8) / 2dy              t = ∂²z/∂y²  = (z2 − 2 z5 + z8) / dy²
                                               s = ∂²z/∂x∂y = (z3 + z7 − z1 − z9) / 4dx dy

Curvature is positive where the ground is convex (a ridge, a spur), negative where it is concave (a hollow).

Sources: L. W. Zevenbergen and C. R. Thorne, Quantitative analysis of land surface topography, Earth Surface
Processes and Landforms 12 (1987) 47-56; B. K. P. Horn, Hill shading and the reflectance map, Proceedings of the
IEEE 69 (1981) 14-47; J. Minár, I. S. Evans and M. Jenčo, A comprehensive system of definitions of land surface
(topographic) curvatures, Earth-Science Reviews 211 (2020) 103414, for the curvatures and their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.bands import TERRAIN_BANDS
from talud.data import sources, warping
from talud.data.sources import SourceLayer
from talud.errors import SourceError
from talud.grid import Grid
from talud.params import CurvatureKind, SlopeMethod
from talud.text import counted

Elevation = NDArray[np.float64]
_ELEVATION, _SLOPE, _CURVATURE = TERRAIN_BANDS
_PER_100_M = 100.0


@dataclass(frozen=True)
class Derivatives:
    """Partial derivatives of elevation at inner pixels.

    Each is (height - 2, width - 2).
    """

    p: Elevation
    q: Elevation
    r: Elevation
    s: Elevation
    t: Elevation


def derivatives(elevation: Elevation, dx: float, dy: float) -> Derivatives:
    """Compute the partial derivatives of elevation (Zevenbergen and Thorne).

    Args:
        elevation: (height, width) in metres, north up.
        dx: width of a pixel in metres.
        dy: height of a pixel in metres.
    """
    z1, z2, z3 = elevation[:-2, :-2], elevation[:-2, 1:-1], elevation[:-2, 2:]
    z4, z5, z6 = elevation[1:-1, :-2], elevation[1:-1, 1:-1], elevation[1:-1, 2:]
    z7, z8, z9 = elevation[2:, :-2], elevation[2:, 1:-1], elevation[2:, 2:]
    return Derivatives(
        p=(z6 - z4) / (2 * dx),
        q=(z2 - z8) / (2 * dy),
        r=(z4 - 2 * z5 + z6) / dx**2,
        s=(z3 + z7 - z1 - z9) / (4 * dx * dy),
        t=(z2 - 2 * z5 + z8) / dy**2,
    )


def slope(elevation: Elevation, dx: float, dy: float, method: SlopeMethod) -> Elevation:
    """Compute slope in degrees at inner pixels.

    It is arctan √(p² + q²).

    Args:
        elevation: (height, width) in metres, north up.
        dx: width of a pixel in metres.
        dy: height of a pixel in metres.
        method: "zevenbergen_thorne": p and q of the module, from the four neighbours. "horn" (1981): from all eight, p
            = (z3 + 2 z6 + z9 − z1 − 2 z4 − z7) / 8dx and q = (z1 + 2 z2 + z3 − z7 − 2 z8 − z9) / 8dy, smoother.
    """
    if method == "horn":
        east = elevation[:-2, 2:] + 2 * elevation[1:-1, 2:] + elevation[2:, 2:]
        west = elevation[:-2, :-2] + 2 * elevation[1:-1, :-2] + elevation[2:, :-2]
        north = elevation[:-2, :-2] + 2 * elevation[:-2, 1:-1] + elevation[:-2, 2:]
        south = elevation[2:, :-2] + 2 * elevation[2:, 1:-1] + elevation[2:, 2:]
        p, q = (east - west) / (8 * dx), (north - south) / (8 * dy)
    else:
        first = derivatives(elevation, dx, dy)
        p, q = first.p, first.q
    degrees: Elevation = np.degrees(np.arctan(np.hypot(p, q)))
    return degrees


def curvature(elevation: Elevation, dx: float, dy: float, kind: CurvatureKind) -> Elevation:
    """Compute curvature per 100 m, positive where convex.

    It is defined at inner pixels.

    Values are limited to ±100 per 100 m (a radius of 1 m), which contour curvature exceeds on nearly flat ground, where
    its denominator vanishes. On level ground profile and contour curvature are undefined, and set to 0.

    Args:
        elevation: (height, width) in metres, north up.
        dx: width of a pixel in metres.
        dy: height of a pixel in metres.
        kind: "profile", the true curvature of the normal section along the fall line, −(p² r + 2 p q s + q² t) / ((p² +
            q²) (1 + p² + q²)^1.5); "contour", the true curvature of the contour line (plan curvature), −(q² r − 2 p q s
            + p² t) / (p² + q²)^1.5; "total", −(r + t), the sum that ArcGIS calls standard and SAGA general curvature.
    """
    d = derivatives(elevation, dx, dy)
    steepness = d.p**2 + d.q**2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if kind == "profile":
            bend = d.p**2 * d.r + 2 * d.p * d.q * d.s + d.q**2 * d.t
            value = -bend / (steepness * (1 + steepness) ** 1.5)
        elif kind == "contour":
            bend = d.q**2 * d.r - 2 * d.p * d.q * d.s + d.p**2 * d.t
            value = -bend / steepness**1.5
        else:
            value = -(d.r + d.t)
    if kind != "total":
        value = np.where(steepness == 0, 0.0, value)
    value = np.where(np.isfinite(d.r + d.s + d.t), np.nan_to_num(value, nan=0.0), np.nan)
    bounded: Elevation = np.clip(value * _PER_100_M, _CURVATURE.lowest, _CURVATURE.highest)
    return bounded


def patch_terrain(elevation: Elevation, pixel_size: float, slope_method: SlopeMethod, kind: CurvatureKind) -> Elevation:
    """Compute slope and curvature of a patch, (2, height, width).

    A patch has no surroundings, so elevation is continued by one pixel on each side with the slope between the last two
    pixels. First derivatives at the border are thus one-sided, and the ground counts as straight across it. Pixels next
    to an invalid one are NaN.

    Args:
        elevation: (height, width) in metres, NaN where invalid, with at least 2 pixels a side, north up.
        pixel_size: side of a pixel in metres.
        slope_method: method of the slope's derivatives.
        kind: kind of curvature.
    """
    for _ in range(2):
        first, last = 2 * elevation[:1] - elevation[1:2], 2 * elevation[-1:] - elevation[-2:-1]
        elevation = np.concatenate([first, elevation, last]).T
    return np.stack(
        [slope(elevation, pixel_size, pixel_size, slope_method), curvature(elevation, pixel_size, pixel_size, kind)]
    )


def terrain_layer(dataset: DatasetReader, target: Grid, slope_method: SlopeMethod, kind: CurvatureKind) -> SourceLayer:
    """Return the layer of elevation, slope and curvature.

    It is computed on the DTM's own grid if its CRS is metric with true lengths on the ground. Other DTMs (geographic,
    Web Mercator, feet) are first projected, by cubic resampling, to the CRS of `target` at their own resolution.

    Raises:
        SourceError: The file is not a DTM in metres.
    """
    count = sources.count_bands_without_alpha(dataset)
    if count != 1:
        raise SourceError(
            f"{dataset.name}: has {counted(count, 'band')}, but a DTM has one, elevation; "
            "extract it with gdal_translate -b"
        )
    if not is_metre(dataset.units[0]):
        raise SourceError(f"{dataset.name}: elevation in '{dataset.units[0]}'; convert it to metres")
    grid, elevation = _metric_elevation(dataset, target)
    dx, dy = grid.transform.a, -grid.transform.e

    def read(window: Window) -> NDArray[np.floating]:
        z = elevation(sources.expand_window(window, 1))
        values = np.stack([z[1:-1, 1:-1], slope(z, dx, dy, slope_method), curvature(z, dx, dy, kind)])
        values[:, ~np.isfinite(values).all(axis=0)] = np.nan
        return values

    names = tuple(band.name for band in TERRAIN_BANDS)
    units = tuple(band.unit or "" for band in TERRAIN_BANDS)
    return SourceLayer(Path(dataset.name), grid, names, units, read)


def mask_elevation(metres: Elevation) -> Elevation:
    """Set elevations that do not occur on Earth to NaN.

    They are undeclared nodata values, such as -32768.
    """
    plausible = (metres >= _ELEVATION.lowest) & (metres <= _ELEVATION.highest)
    return np.where(plausible, metres, np.nan)


def is_metre(unit: str | None) -> bool:
    """Return true if a unit is metres, or not stated."""
    return (unit or "m").lower() in {"m", "metre", "metres", "meter", "meters"}


def _metric_elevation(dataset: DatasetReader, target: Grid) -> tuple[Grid, Callable[[Window], Elevation]]:
    """Return a metric grid and a reader of elevation."""
    own = Grid.of(dataset)

    def measured(window: Window) -> Elevation:
        z = sources.read_values(dataset, (1,), window)
        return mask_elevation(z)

    if warping.has_true_scale(own.crs, *warping.centre(target)):
        return own, lambda window: measured(window)[0]
    raw = SourceLayer(Path(dataset.name), own, ("elevation",), ("m",), measured, resampling=Resampling.cubic)
    projected = Grid.from_bounds(target.crs, target.bounds, warping.pixel_side(own, target))
    return projected, lambda window: warping.resample(raw, projected.crop(window), 1.0)[0].astype(np.float64)
