"""Checks of coordinates, and likely reasons why polygons miss an area."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from talud.data import sources
from talud.errors import SourceError
from talud.grid import Bounds, Grid

# Polygons farther from an area than this cannot belong to its image: no satellite's swath is as wide.
SAME_IMAGE_METRES = 500_000.0
_GEOJSON = frozenset({".geojson", ".json"})
_WGS84 = CRS.from_epsg(4326)


@dataclass(frozen=True)
class Elsewhere:
    """The location of polygons that do not touch an area.

    Attributes:
        words: how far away they lie, and what the reason may be.
        metres: the distance of the nearest; infinite where they cannot be placed in the area's CRS.
        mistaken: whether they would touch the area with other coordinates or another CRS than the file states.
    """

    words: str
    metres: float
    mistaken: bool

    @property
    def impossible(self) -> bool:
        """Return whether the polygons cannot belong to an image of the area."""
        return self.mistaken or self.metres > SAME_IMAGE_METRES


def check_coordinates(path: Path, frame: geopandas.GeoDataFrame) -> None:
    """Check that the coordinates of a file are valid in its CRS.

    Raises:
        SourceError: it has no CRS, a coordinate is NaN or infinite, or degrees are none.
    """
    if frame.crs is None:
        raise SourceError(f"{path}: no coordinate reference system; assign one, for example with ogr2ogr -a_srs")
    geometries = frame.geometry.to_numpy()
    points = shapely.get_coordinates(geometries)
    wrong = np.asarray(~np.isfinite(points).all(axis=1))
    if wrong.any():
        raise SourceError(
            f"{path}: {_features(geometries, wrong)} a coordinate that is no number (NaN or infinite); draw it again, "
            "or delete it"
        )
    if not frame.crs.is_geographic:
        return
    quarter = math.pi / 2 / frame.crs.axis_info[0].unit_conversion_factor  # 90 degrees, or 100 gradians
    slack = quarter * 1e-6
    wrong = (np.abs(points[:, 0]) > 4 * quarter + slack) | (np.abs(points[:, 1]) > quarter + slack)
    if wrong.any():
        x, y = points[wrong][0]
        stated = (
            "a GeoJSON without another 'crs' holds (RFC 7946)"
            if path.suffix.lower() in _GEOJSON
            else f"its coordinate reference system ({_name(frame.crs)}) has"
        )
        raise SourceError(
            f"{path}: {_features(geometries, wrong)} a coordinate such as ({x:.10g}, {y:.10g}), which is no longitude "
            f"and latitude, as {stated}; export it again in the right system, or assign that: ogr2ogr -a_srs EPSG:… "
            f"right.gpkg {path.name}"
        )


def elsewhere(
    geometries: NDArray[np.object_], unplaced: int, crs: CRS, extent: Bounds | None, grid: Grid
) -> Elsewhere | None:
    """Return the location of polygons that do not touch a grid.

    None where one touches it, or there are no polygons.

    Args:
        geometries: in the CRS of the grid.
        unplaced: how many cannot be expressed in it.
        crs: the one of their file.
        extent: left, bottom, right, top of all of them in that CRS.
        grid: the area's.
    """
    area = shapely.box(*grid.bounds)
    if shapely.intersects(geometries, area).any() or extent is None or not (len(geometries) or unplaced):
        return None
    metres = float(shapely.distance(geometries, area).min(initial=math.inf)) * grid.metre
    away = f"the nearest lies {_length(metres)} away" if math.isfinite(metres) else "they lie on another side of Earth"
    reason = _reason(crs, extent, grid)
    return Elsewhere(
        f"{away}; " + (reason or f"look at its coordinate reference system, {_name(crs)}"), metres, reason is not None
    )


def _reason(crs: CRS, extent: Bounds, grid: Grid) -> str | None:
    """Explain which other coordinates or CRS would move an extent to a grid."""
    left, bottom, right, top = extent
    if _touches(crs, (bottom, left, top, right), grid):
        return "its x and y are swapped: longitude comes before latitude, east before north; swap them"
    degrees = max(abs(left), abs(right)) <= 180 and max(abs(bottom), abs(top)) <= 90
    for other in ([_WGS84] if degrees else []) + [grid.crs, sources.utm(*sources.centre(grid))]:
        if other != crs and _touches(other, extent, grid):
            return (
                f"its coordinates are those of {_name(other)}, but it says {_name(crs)}; assign the right one: ogr2ogr "
                f"-a_srs {_name(other)}"
            )
        if degrees and other == _WGS84 and crs != _WGS84 and _touches(other, (bottom, left, top, right), grid):
            return f"its coordinates are latitude and longitude, swapped, but it says {_name(crs)}; export it again"
    return None


def _touches(crs: CRS, extent: Bounds, grid: Grid) -> bool:
    """Check whether an extent in a CRS touches a grid."""
    try:
        west, south, east, north = sources.bounds_in(crs, grid)
    except SourceError:
        return False
    left, bottom, right, top = extent
    return west <= right and east >= left and south <= top and north >= bottom


def _features(geometries: NDArray[np.object_], wrong: NDArray[np.bool_]) -> str:
    """Return the number of features with a wrong coordinate.

    The text is the subject of a sentence.
    """
    _, owners = shapely.get_coordinates(geometries, return_index=True)
    count = len(np.unique(owners[wrong]))
    return f"{count} of {len(geometries)} feature(s) {'has' if count == 1 else 'have'}"


def _length(metres: float) -> str:
    return f"{metres / 1000:,.0f} km" if metres >= 10_000 else f"{metres:,.0f} m"


def _name(crs: CRS | pyproj.CRS) -> str:
    """Return the code of a CRS, or else its name."""
    known = pyproj.CRS.from_wkt(crs.to_wkt())
    authority = known.to_authority()
    return ":".join(authority) if authority else str(known.name)
