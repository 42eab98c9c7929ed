"""Polygons of a map: landslides and unmapped parts.

Landslides are 8-connected: with 4-connectivity, a debris flow that crosses the grid at an angle would be split into
dozens of polygons.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import shapely
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.errors import OutputError
from talud.grid import Grid
from talud.mapping.reader import StackReader
from talud.metrics import LANDSLIDE
from talud.products.rasters import qgis_style
from talud.vector import FIXED_DATE, Columns, write_layer

# Version of the GeoPackage standard. Older releases of QGIS and GDAL warn about later versions.
GEOPACKAGE_VERSION = "1.2"
# GDAL's time zone flag for UTC.
GDAL_UTC = 100
SMOOTHING_ROUNDS = 2
# Side of the windows in which the zonal statistics are computed.
WINDOW_SIDE_PIXELS = 1024
# Relative tolerance of an area, which is a sum of floating-point numbers.
_AREA_TOLERANCE = 1e-9
_LENGTH_TOLERANCE_PIXELS = 1e-6
# GeoJSON geometry and pixel value.
_Shape = tuple[dict[str, Any], float]


@dataclass(frozen=True)
class Landslides:
    """Landslides of a map, largest first.

    Attributes:
        outlines: polygons or multipolygons along the edges of pixels, in the CRS of the map.
        area: areas in m².
        perimeter: perimeters in m along the pixel edges, including holes.
        left_out: number of landslides below the minimum area, which are not included.
    """

    outlines: NDArray[np.object_]
    area: NDArray[np.float64]
    perimeter: NDArray[np.float64]
    left_out: int = 0


@dataclass(frozen=True)
class NotMapped:
    """Unmapped parts of a map.

    Attributes:
        outlines: polygons or multipolygons, in the CRS of the map.
        area: areas in m².
        reason: reasons as text.
    """

    outlines: NDArray[np.object_]
    area: NDArray[np.float64]
    reason: NDArray[np.object_]


def trace_polygons(
    parts: Path, classes: Path, reasons: Mapping[int, str], minimum_area: float = 0, patch: int | None = None
) -> tuple[Landslides, NotMapped]:
    """Trace the landslides and unmapped parts of a map.

    Memory grows with the number of polygons, not with the size of the raster.

    Args:
        parts: path of a raster of 0 (background), 1 (landslide) and 1 + code (not mapped).
        classes: path of a uint8 raster on the same grid, with 0 at the same pixels as `parts`.
        reasons: text of each code.
        minimum_area: minimum mapping unit in m²; smaller landslides are left out.
        patch: side in pixels of the patches of a patch stack; polygons do not cross patch borders.
    """
    with rasterio.open(parts) as dataset, rasterio.open(classes) as mask:
        grid = Grid.of(dataset)
        shapes = list(_shapes(dataset, mask, grid.windows(patch) if patch else None))
    values = np.array([value for _, value in shapes], dtype=np.int64)
    outlines = _make_valid(np.array([shapely.geometry.shape(shape) for shape, _ in shapes], dtype=np.object_))
    metre = grid.metres_per_unit
    area = shapely.area(outlines) * metre**2
    order = _largest_first(outlines, area)
    values, outlines, area = values[order], outlines[order], area[order]
    slides, rest = values == LANDSLIDE, values > LANDSLIDE
    kept = slides & (area >= minimum_area * (1 - _AREA_TOLERANCE))
    why = np.array([reasons[int(value) - 1] for value in values[rest]], dtype=np.object_)
    perimeter = shapely.length(outlines[kept]) * metre
    landslides = Landslides(outlines[kept], area[kept], perimeter, int(slides.sum() - kept.sum()))
    return landslides, NotMapped(outlines[rest], area[rest], why)


def _shapes(dataset: DatasetReader, mask: DatasetReader, windows: Sequence[Window] | None) -> Iterator[_Shape]:
    """Yield the outlines and values of connected pixels, optionally by window."""
    if windows is None:
        bands = rasterio.band(dataset, 1), rasterio.band(mask, 1)
        yield from rasterio.features.shapes(*bands, connectivity=8, transform=dataset.transform)
        return
    for window in windows:
        values, shown = (raster.read(1, window=window) for raster in (dataset, mask))
        transform = dataset.window_transform(window)
        yield from rasterio.features.shapes(values, shown, connectivity=8, transform=transform)


def write_geopackage(
    path: Path,
    landslides: Landslides,
    attributes: Columns,
    not_mapped: NotMapped,
    grid: Grid,
    tags: Mapping[str, str],
) -> None:
    """Write both layers and their QGIS styles as one GeoPackage.

    Equal content gives equal bytes.

    Args:
        path: path of the file.
        landslides: content of the layer `landslides`.
        attributes: columns of that layer besides id, area and perimeter.
        not_mapped: content of the layer `not_mapped`.
        grid: grid of the map.
        tags: metadata of the file.

    Raises:
        OutputError: The file cannot be written.
    """
    slides = _columns(landslides, attributes)
    rest: Columns = {"reason": not_mapped.reason, "area_m2": not_mapped.area}
    common = {"driver": "GPKG", "dataset_metadata": dict(tags), "dataset_options": {"VERSION": GEOPACKAGE_VERSION}}
    spatial = common | {"geometry_type": "MultiPolygon", "promote_to_multi": True, "crs": grid.crs.to_wkt()}
    write_layer(path, shapely.to_wkb(landslides.outlines), slides, layer="landslides", **spatial)
    write_layer(path, shapely.to_wkb(not_mapped.outlines), rest, layer="not_mapped", **spatial)
    styles = _style_rows("landslides", "not_mapped")
    utc = {"update_time": np.full(len(styles["update_time"]), GDAL_UTC)}
    # The GeoPackage standard requires milliseconds.
    precise = {"DATETIME_PRECISION": "MILLISECOND"}
    write_layer(path, None, styles, layer="layer_styles", gdal_tz_offsets=utc, layer_options=precise, **common)


def write_geojson(path: Path, landslides: Landslides, attributes: Columns, grid: Grid) -> None:
    """Write the landslides as GeoJSON in longitude and latitude (RFC 7946).

    Raises:
        OutputError: The file cannot be written.
    """
    write_layer(
        path,
        shapely.to_wkb(landslides.outlines),
        _columns(landslides, attributes),
        driver="GeoJSON",
        layer="landslides",
        # With this option GDAL converts the coordinates.
        layer_options={"RFC7946": "YES"},
        geometry_type="MultiPolygon",
        promote_to_multi=True,
        crs=grid.crs.to_wkt(),
    )
    with path.open("rb") as stream:
        stream.seek(-2, os.SEEK_END)
        # GDAL reports no error if the disk is full.
        if stream.read() != b"}\n":
            raise OutputError(f"{path}: cannot be written: the file is incomplete; is the disk full?")


def _columns(landslides: Landslides, attributes: Columns) -> Columns:
    ids = np.arange(1, len(landslides.area) + 1)
    return {"id": ids, "area_m2": landslides.area, "perimeter_m": landslides.perimeter} | dict(attributes)


def _style_rows(*layers: str) -> Columns:
    """Return the rows of QGIS's table of layer styles."""
    count = len(layers)

    def same(value: str) -> NDArray[np.object_]:
        return np.full(count, value, np.object_)

    names = np.array(layers, np.object_)
    return {
        "f_table_catalog": same(""),
        "f_table_schema": same(""),
        "f_table_name": names,
        "f_geometry_column": same("geom"),
        "styleName": names,
        "styleQML": np.array([qgis_style(layer) for layer in layers], np.object_),
        "styleSLD": same(""),
        "useAsDefault": np.ones(count, np.bool_),
        "description": same("talud"),
        "owner": same(""),
        "ui": same(""),
        "update_time": np.full(count, np.datetime64(FIXED_DATE.removesuffix("Z"), "ms")),
    }


def _make_valid(outlines: NDArray[np.object_]) -> NDArray[np.object_]:
    """Split rings that touch themselves at a corner."""
    broken = ~shapely.is_valid(outlines)
    outlines[broken] = shapely.make_valid(outlines[broken])
    return outlines


def _largest_first(outlines: NDArray[np.object_], area: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the order of polygons, largest first.

    Polygons of equal area are ordered from north to south, then from west to east.
    """
    left, _, _, top = shapely.bounds(outlines).reshape(-1, 4).T
    return np.lexsort((left, -top, -area))


def smooth_outlines(outlines: NDArray[np.object_], pixel: float) -> NDArray[np.object_]:
    """Smooth polygons of whole pixels by cutting their corners.

    No polygon vanishes, and all stay valid. The method is that of G. M. Chaikin (An algorithm for high-speed curve
    generation, Computer Graphics and Image Processing 3, 1974): each segment is replaced by its middle half. For
    segments of one pixel, the limit is a quadratic B-spline, which passes each corner at a distance of √2/8 pixel and
    does not move straight edges. A ring has four more convex than concave corners, so its area shrinks by 1/6 pixel
    in the limit (5/32 after two rounds), whatever its size; the same holds for a hole. No point moves by more than a
    fifth of a pixel. Outlines that touch at a corner are separated.

    Args:
        outlines: polygons or multipolygons along the edges of pixels.
        pixel: side of a pixel, in the units of the outlines.

    Returns:
        The smoothed polygons.
    """
    if not len(outlines):
        return outlines
    steps = shapely.segmentize(outlines, pixel * (1 + _LENGTH_TOLERANCE_PIXELS))
    parts, owners = shapely.get_parts(steps, return_index=True)
    whole = np.asarray(shapely.multipolygons(parts, indices=owners), np.object_)
    _, points, (ends, polygons, wholes) = shapely.to_ragged_array(whole)
    rings = ends.astype(np.int64)
    for _ in range(SMOOTHING_ROUNDS):
        points, rings = _cut_corners(points, rings)
    curves = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, points, (rings, polygons, wholes))
    # Simplifying drops the points on straight edges.
    return np.asarray(shapely.simplify(curves, pixel * _LENGTH_TOLERANCE_PIXELS), np.object_)


def _cut_corners(
    points: NDArray[np.float64], rings: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut the corners of closed rings once.

    Args:
        points: coordinates of all rings, (points, 2); each ring ends with its first point.
        rings: index of the first point of each ring, followed by the number of points.

    Returns:
        New points and rings.
    """
    last = np.zeros(len(points), np.bool_)
    last[rings[1:] - 1] = True
    begin, end = points[~last], points[1:][~last[:-1]]
    halves = np.stack([0.75 * begin + 0.25 * end, 0.25 * begin + 0.75 * end], axis=1).reshape(-1, 2)
    # Starts of the rings in `halves`, which contains no closing points.
    starts = 2 * (rings - np.arange(len(rings)))
    closed = np.insert(halves, starts[1:], halves[starts[:-1]], axis=0)
    return closed, starts + np.arange(len(rings))


def zonal_statistics(
    outlines: NDArray[np.object_], probability: Path, stack: StackReader, disagreement: Path | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return the statistics of probability and terrain by polygon.

    Args:
        outlines: polygons of whole pixels that do not overlap.
        probability: path of the probability raster.
        stack: stack on the same grid.
        disagreement: path of the disagreement raster, if test-time augmentation is used.

    Returns:
        Columns by name: `mean_probability` and `maximum_probability`; `disagreement` (the mean), if given;
        `mean_slope_degrees`, if the stack has a slope; `minimum_elevation_m`, `maximum_elevation_m` and
        `aspect_degrees`, if it has an elevation. The aspect is the downslope direction of the mean gradient, clockwise
        from north. Values are NaN if all pixels are invalid; the aspect also if the mean gradient is zero.

    Raises:
        SourceError: The stack cannot be read.
    """
    maps = {"probability": probability} | ({"disagreement": disagreement} if disagreement else {})
    zonal = {name: _ZonalStatistics(len(outlines)) for name in (*maps, "slope", "elevation", "east", "north")}
    with ExitStack() as opened:
        rasters = {name: opened.enter_context(rasterio.open(path)) for name, path in maps.items()}
        for window, owner in _polygon_windows(outlines, stack.grid):
            found = {name: raster.read(1, window=window) for name, raster in rasters.items()}
            for name, values in (found | _terrain_layers(stack, window)).items():
                zonal[name].add(owner, values)
    columns = {
        "mean_probability": zonal["probability"].mean,
        "maximum_probability": zonal["probability"].maximum,
    }
    if disagreement:
        columns["disagreement"] = zonal["disagreement"].mean
    if stack.has_band("slope"):
        columns["mean_slope_degrees"] = zonal["slope"].mean
    if stack.has_band("elevation"):
        columns["aspect_degrees"] = _compass_bearing(zonal["east"].mean, zonal["north"].mean)
        columns["minimum_elevation_m"] = zonal["elevation"].minimum
        columns["maximum_elevation_m"] = zonal["elevation"].maximum
    return columns


class _ZonalStatistics:
    """Mean, minimum and maximum by polygon, accumulated over windows."""

    def __init__(self, polygons: int) -> None:
        self._total, self._count = np.zeros(polygons), np.zeros(polygons)
        self._lowest, self._highest = np.full(polygons, np.inf), np.full(polygons, -np.inf)

    def add(self, owner: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Add the pixels of a window.

        Args:
            owner: number of each pixel's polygon, starting at 1; 0 outside polygons.
            values: value of each pixel; NaN if invalid.
        """
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


def _polygon_windows(outlines: NDArray[np.object_], grid: Grid) -> Iterator[tuple[Window, NDArray[np.int32]]]:
    """Yield the windows that contain polygons, with polygon numbers.

    Numbers start at 1; 0 is outside polygons.
    """
    tree = shapely.STRtree(outlines)
    for window in grid.windows(WINDOW_SIDE_PIXELS):
        zone = grid.crop(window)
        near = np.sort(tree.query(shapely.box(*zone.bounds)))
        if len(near):
            shapes = zip(outlines[near], near + 1, strict=True)
            yield window, rasterio.features.rasterize(shapes, zone.shape, transform=zone.transform, dtype="int32")


def _terrain_layers(stack: StackReader, window: Window) -> dict[str, NDArray[np.float32]]:
    """Return the available terrain layers of a window.

    The layers are `slope`, `elevation`, and the descent per pixel to the `east` and `north`.
    """
    layers = {"slope": stack.read_band("slope", window)} if stack.has_band("slope") else {}
    if stack.has_band("elevation"):
        whole = Window(0, 0, stack.grid.width, stack.grid.height)
        around = Window(window.col_off - 1, window.row_off - 1, window.width + 2, window.height + 2).intersection(whole)
        top, left = window.row_off - around.row_off, window.col_off - around.col_off
        inside = np.s_[top : top + window.height, left : left + window.width]
        elevation = stack.read_band("elevation", around)
        layers["elevation"] = elevation[inside]
        if min(elevation.shape) > 1:
            to_south, to_east = (np.gradient(elevation, axis=axis) for axis in (0, 1))
            layers |= {"east": -to_east[inside], "north": to_south[inside]}
    return layers


def _compass_bearing(east: NDArray[np.float64], north: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the compass bearing of vectors in degrees; NaN for zero vectors."""
    degrees = np.degrees(np.arctan2(east, north)) % 360
    return np.where((east == 0) & (north == 0), np.nan, degrees)
