"""Polygons of an area, and checks of their location."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from shapely import GeometryType
from shapely.geometry.base import BaseMultipartGeometry

from talud.data import warping
from talud.errors import SourceError
from talud.grid import Bounds, Grid
from talud.vector import check_supported_format, open_vector

# Polygons farther from an area than this cannot belong to its image; no satellite has a wider swath.
MAX_SWATH_METRES = 500_000.0
_GEOJSON = frozenset({".geojson", ".json"})
_WGS84 = CRS.from_epsg(4326)


@dataclass(frozen=True)
class Misplacement:
    """Location of polygons outside an area, and probable cause.

    Attributes:
        explanation: distance from the area and probable cause, for a message.
        metres: distance of the nearest polygon; infinite if none can be located in the area's CRS.
        wrong_coordinates: whether they would touch the area with swapped coordinates or another CRS than stated.
    """

    explanation: str
    metres: float
    wrong_coordinates: bool

    @property
    def impossible(self) -> bool:
        """True if the polygons cannot belong to an image."""
        return self.wrong_coordinates or self.metres > MAX_SWATH_METRES


def check_coordinates(path: Path, frame: geopandas.GeoDataFrame) -> None:
    """Check that a file's coordinates are valid in its CRS.

    Raises:
        SourceError: There is no CRS, or a coordinate is not finite or not a valid longitude or latitude.
    """
    if frame.crs is None:
        raise SourceError(f"{path}: no coordinate reference system; assign one, for example with ogr2ogr -a_srs")
    geometries = frame.geometry.to_numpy()
    points = shapely.get_coordinates(geometries)
    wrong = np.asarray(~np.isfinite(points).all(axis=1))
    if wrong.any():
        raise SourceError(
            f"{path}: {_count_features(geometries, wrong)} a coordinate that is not finite (NaN or infinite); "
            "draw it again, or delete it"
        )
    if not frame.crs.is_geographic:
        return
    quarter = math.pi / 2 / frame.crs.axis_info[0].unit_conversion_factor  # 90 degrees, or 100 gradians
    slack = quarter * 1e-6
    wrong = (np.abs(points[:, 0]) > 4 * quarter + slack) | (np.abs(points[:, 1]) > quarter + slack)
    if wrong.any():
        x, y = points[wrong][0]
        stated = (
            "a GeoJSON without another 'crs' must have (RFC 7946)"
            if path.suffix.lower() in _GEOJSON
            else f"its coordinate reference system ({_crs_name(frame.crs)}) has"
        )
        raise SourceError(
            f"{path}: {_count_features(geometries, wrong)} a coordinate such as ({x:.10g}, {y:.10g}), which is not a "
            f"longitude and latitude, as {stated}; export it again in the right CRS, or assign that: ogr2ogr "
            f"-a_srs EPSG:… right.gpkg {path.name}"
        )


def find_misplacement(
    geometries: NDArray[np.object_], unplaced: int, crs: CRS, extent: Bounds | None, grid: Grid
) -> Misplacement | None:
    """Explain why no polygon touches a grid.

    The result is None if one touches it, or there are no polygons.

    Args:
        geometries: polygons in the CRS of the grid.
        unplaced: number of polygons that cannot be expressed in that CRS.
        crs: CRS of the polygons' file.
        extent: left, bottom, right, top of all polygons in that CRS.
        grid: grid of the area.
    """
    area = shapely.box(*grid.bounds)
    if shapely.intersects(geometries, area).any() or extent is None or not (len(geometries) or unplaced):
        return None
    metres = float(shapely.distance(geometries, area).min(initial=math.inf)) * grid.metres_per_unit
    away = (
        f"the nearest is {_format_length(metres)} away"
        if math.isfinite(metres)
        else "they are on another side of Earth"
    )
    reason = _explain_misplacement(crs, extent, grid)
    return Misplacement(
        f"{away}; " + (reason or f"check its coordinate reference system, {_crs_name(crs)}"),
        metres,
        reason is not None,
    )


def _explain_misplacement(crs: CRS, extent: Bounds, grid: Grid) -> str | None:
    """Find coordinates or a CRS that fit a grid.

    Returns the explanation, or None.
    """
    left, bottom, right, top = extent
    if _touches(crs, (bottom, left, top, right), grid):
        return "its x and y are swapped: longitude comes before latitude, east before north; swap them"
    degrees = max(abs(left), abs(right)) <= 180 and max(abs(bottom), abs(top)) <= 90
    for other in ([_WGS84] if degrees else []) + [grid.crs, warping.utm_zone(*warping.centre(grid))]:
        if other != crs and _touches(other, extent, grid):
            return (
                f"its coordinates are those of {_crs_name(other)}, but it states {_crs_name(crs)}; assign the right "
                f"CRS: ogr2ogr -a_srs {_crs_name(other)}"
            )
        if degrees and other == _WGS84 and crs != _WGS84 and _touches(other, (bottom, left, top, right), grid):
            return (
                f"its coordinates are latitude and longitude, swapped, but it states {_crs_name(crs)}; export it again"
            )
    return None


def _touches(crs: CRS, extent: Bounds, grid: Grid) -> bool:
    """Check if an extent touches a grid."""
    try:
        west, south, east, north = warping.bounds_in(crs, grid)
    except SourceError:
        return False
    left, bottom, right, top = extent
    return west <= right and east >= left and south <= top and north >= bottom


def _count_features(geometries: NDArray[np.object_], wrong: NDArray[np.bool_]) -> str:
    """Return the number of features with a wrong coordinate.

    The text is the subject of a sentence, with "has" or "have".
    """
    _, owners = shapely.get_coordinates(geometries, return_index=True)
    count = len(np.unique(owners[wrong]))
    return f"{count} of {len(geometries)} feature(s) {'has' if count == 1 else 'have'}"


def _format_length(metres: float) -> str:
    return f"{metres / 1000:,.0f} km" if metres >= 10_000 else f"{metres:,.0f} m"


def _crs_name(crs: CRS | pyproj.CRS) -> str:
    """Return the code of a CRS, else its name."""
    known = pyproj.CRS.from_wkt(crs.to_wkt())
    authority = known.to_authority()
    return ":".join(authority) if authority else str(known.name)


@dataclass(frozen=True)
class Polygons:
    """Valid polygons in the CRS of a grid.

    Attributes:
        geometries: valid, non-empty polygons and multipolygons, shape (n,).
        repaired: number of these polygons that were invalid in the file.
        skipped: number of features without a polygon.
        unplaced: number of polygons that cannot be expressed in the CRS of the grid, such as on another side of the
            Earth.
        crs: CRS of the file.
        extent: left, bottom, right, top of all polygons in that CRS; None if there are none.
    """

    geometries: NDArray[np.object_]
    repaired: int
    skipped: int
    unplaced: int = 0
    crs: CRS | None = None
    extent: Bounds | None = None

    @classmethod
    def read(cls, path: Path, layer: str, crs: CRS, where: str | None = None) -> Polygons:
        """Read the polygons of a file into another CRS.

        Args:
            path: path of the file.
            layer: kind of polygons (inventory, boundary, cloud …); of several polygon layers, the one with this name is
                read.
            crs: CRS of the result.
            where: filter of the features, as an OGR SQL where clause.

        Raises:
            SourceError: The file cannot be read, has no CRS or invalid coordinates, or the filter does not fit it.
        """
        frame = _read_frame(path, layer, where)
        check_coordinates(path, frame)
        raw = frame.geometry.to_numpy()
        invalid = ~shapely.is_valid(raw) & ~shapely.is_missing(raw)
        frame.geometry = [extract_polygons(geometry) for geometry in shapely.force_2d(raw)]
        held = ~shapely.is_missing(frame.geometry.to_numpy())
        moved = frame.geometry.to_crs(crs.to_wkt()).to_numpy()
        usable = held & np.isfinite(shapely.bounds(moved)).all(axis=1)
        left, bottom, right, top = (float(edge) for edge in frame.total_bounds)
        return cls(
            moved[usable],
            int((invalid & usable).sum()),
            int((~held).sum()),
            int((held & ~usable).sum()),
            CRS.from_wkt(frame.crs.to_wkt()),
            (left, bottom, right, top) if held.any() else None,
        )

    def within(self, grid: Grid) -> Polygons:
        """Return the polygons that touch a grid's extent."""
        touching = shapely.intersects(self.geometries, shapely.box(*grid.bounds))
        return dataclasses.replace(self, geometries=self.geometries[touching])

    def find_misplacement(self, grid: Grid) -> Misplacement | None:
        """Explain why no polygon touches a grid.

        The result is None if one touches it, or there are no polygons.
        """
        return find_misplacement(self.geometries, self.unplaced, self.crs or grid.crs, self.extent, grid)

    def rasterise(self, grid: Grid, all_touched: bool) -> NDArray[np.bool_]:
        """Mark the pixels covered by polygons, (height, width).

        Args:
            grid: grid of the result.
            all_touched: whether to mark all pixels that a polygon touches, instead of those whose centre is inside.
        """
        near = self.within(grid).geometries
        if not len(near):
            return np.zeros(grid.shape, bool)
        burnt = rasterize(near, out_shape=grid.shape, transform=grid.transform, all_touched=all_touched, dtype="uint8")
        marked: NDArray[np.bool_] = burnt.astype(bool)
        return marked


def _read_frame(path: Path, layer: str, where: str | None) -> geopandas.GeoDataFrame:
    clause = f" with the filter {where!r}" if where else ""
    with open_vector(path, f" as polygons{clause}") as whole, warnings.catch_warnings():
        # OGR's warnings, such as on the ring order of a Shapefile, concern polygons that are repaired and counted here.
        warnings.simplefilter("ignore", RuntimeWarning)
        # OGR's filter can only use columns that are read.
        columns: list[str] | None = None if where else []
        return pyogrio.read_dataframe(whole, layer=find_polygon_layer(path, layer), where=where, columns=columns)


def find_polygon_layer(path: Path, wanted: str) -> str:
    """Return the layer `wanted`, or the only polygon layer.

    Raises:
        SourceError: There is no such layer, there are several, or the format is not supported.
    """
    check_supported_format(path)
    kinds = ("Poly", "Geometry", "Unknown")
    with open_vector(path, " as polygons") as whole:
        found = [(str(name), str(kind)) for name, kind in pyogrio.list_layers(whole)]
        layers = [name for name, kind in found if any(word in kind for word in kinds)]
        # The folders of a KML are layers without a geometry type.
        if wanted not in layers and len(layers) > 1:
            layers = [
                name for name, kind in found if name in layers and ("Poly" in kind or _may_hold_polygons(whole, name))
            ]
    if wanted in layers:
        return wanted
    if not layers:
        raise SourceError(f"{path}: has no layer of polygons")
    if len(layers) > 1:
        names = ", ".join(layers)
        raise SourceError(
            f"{path}: has {len(layers)} layers of polygons ({names}); keep one, or rename the right one to '{wanted}'"
        )
    return layers[0]


def _may_hold_polygons(path: Path, layer: str) -> bool:
    """Check if a layer may contain polygons."""
    kinds = shapely.get_type_id(pyogrio.read_dataframe(path, layer=layer, columns=[]).geometry.to_numpy())
    areal = (GeometryType.POLYGON, GeometryType.MULTIPOLYGON, GeometryType.GEOMETRYCOLLECTION)
    return bool(np.isin(kinds, areal).any())


def extract_polygons(geometry: shapely.Geometry | None) -> shapely.Geometry | None:
    """Return the repaired polygons of a geometry, or None.

    Each part is repaired by itself, and overlapping parts are united. A ring that covers some ground twice keeps it;
    GEOS's default method would make a hole of such an overlap.
    """
    if geometry is None or shapely.is_empty(geometry):
        return None
    parts = _polygons([geometry])
    if not shapely.is_valid(geometry):
        repaired = shapely.make_valid(parts, method="structure", keep_collapsed=False)
        parts = _polygons([shapely.unary_union(_polygons(repaired))])
    polygons = [part for part in parts if part.area > 0]
    if not polygons:
        return None
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def _polygons(geometries: Iterable[shapely.Geometry]) -> list[shapely.Polygon]:
    """Return the polygons within geometries, including nested collections."""
    found: list[shapely.Polygon] = []
    for geometry in geometries:
        if isinstance(geometry, shapely.Polygon):
            found.append(geometry)
        elif isinstance(geometry, BaseMultipartGeometry):
            found += _polygons(shapely.get_parts(geometry))
    return found
