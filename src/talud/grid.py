"""Pixel grid of a raster: CRS, transform, height and width."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyproj
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.transform import array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from talud.errors import SourceError

Bounds = tuple[float, float, float, float]
# Tolerance for coordinates on a line or centre of the lattice, as a share of a pixel.
_ROUNDING = 1e-6
# Difference below which two grids have the same pixels, as a share of a pixel.
_SAME_PIXEL = 0.01


@dataclass(frozen=True)
class Grid:
    """CRS, transform, height and width of a raster.

    The raster is north up and has square pixels.
    """

    crs: CRS
    transform: Affine
    height: int
    width: int

    @classmethod
    def of(cls, dataset: DatasetReader | WarpedVRT) -> Grid:
        """Return the grid of an open dataset.

        Raises:
            SourceError: The dataset has no CRS or no geotransform, is rotated, or upside down (south up).
        """
        if dataset.crs is None:
            raise SourceError(
                f"{dataset.name}: no coordinate reference system; assign one, for example with gdal_edit.py -a_srs"
            )
        if dataset.transform.is_identity or not all(map(math.isfinite, dataset.transform)):
            raise SourceError(
                f"{dataset.name}: has no geotransform; if it has ground control points, warp it with gdalwarp, else "
                "assign its corners, for example with gdal_edit.py -a_ullr"
            )
        if orientation := _describe_orientation(dataset.transform):
            raise SourceError(f"{dataset.name}: the raster is {orientation}; warp it to north up with gdalwarp")
        return cls(dataset.crs, dataset.transform, dataset.height, dataset.width)

    @classmethod
    def from_bounds(cls, crs: CRS, bounds: Bounds, resolution: float) -> Grid:
        """Return the smallest grid that covers the bounds.

        Its corners are multiples of `resolution`.

        Args:
            crs: CRS of the bounds.
            bounds: (left, bottom, right, top).
            resolution: side of a pixel, in units of the CRS.
        """
        left, bottom, right, top = bounds
        columns = math.floor(left / resolution + _ROUNDING), math.ceil(right / resolution - _ROUNDING)
        rows = math.floor(-top / resolution + _ROUNDING), math.ceil(-bottom / resolution - _ROUNDING)
        return cls._on_lattice(crs, (0.0, 0.0), resolution, columns, rows)

    @classmethod
    def from_centres(cls, crs: CRS, bounds: Bounds, resolution: float, origin: tuple[float, float]) -> Grid:
        """Return the grid of pixels whose centres are in bounds.

        A centre on the left or top edge is inside, one on the right or bottom edge is outside. Areas that share an edge
        and a lattice therefore share no pixel.

        Args:
            crs: CRS of the bounds and the origin.
            bounds: (left, bottom, right, top).
            resolution: side of a pixel, in units of the CRS.
            origin: corner of any pixel of the lattice.

        Raises:
            SourceError: The bounds contain no pixel centre.
        """
        left, bottom, right, top = bounds
        x, y = origin
        first_column, after_columns = (math.ceil((edge - x) / resolution - 0.5 - _ROUNDING) for edge in (left, right))
        first_row, after_rows = (math.ceil((y - edge) / resolution - 0.5 - _ROUNDING) for edge in (top, bottom))
        return cls._on_lattice(crs, origin, resolution, (first_column, after_columns), (first_row, after_rows))

    @classmethod
    def _on_lattice(
        cls, crs: CRS, origin: tuple[float, float], resolution: float, columns: tuple[int, int], rows: tuple[int, int]
    ) -> Grid:
        """Return the grid of a range of lattice columns and rows.

        Columns and rows are counted from the origin of the lattice.

        Raises:
            SourceError: The range is empty.
        """
        if columns[1] <= columns[0] or rows[1] <= rows[0]:
            raise SourceError(f"the bounds contain no pixel of {resolution:g} {crs.linear_units}")
        x, y = origin
        transform = Affine(resolution, 0, x + columns[0] * resolution, 0, -resolution, y - rows[0] * resolution)
        return cls(crs, transform, rows[1] - rows[0], columns[1] - columns[0])

    def offset_in(self, other: Grid) -> tuple[int, int] | None:
        """Return the column and row offset in another grid.

        The result is None if the grids have different pixels. Pixels are equal if no corner differs by a hundredth of a
        pixel or more.
        """
        if self.crs != other.crs:
            return None
        into = ~other.transform * self.transform
        column, row = round(into.c), round(into.f)
        drift = max(abs(into.a - 1) * self.width, abs(into.e - 1) * self.height)
        apart = max(abs(into.c - column), abs(into.f - row)) + drift
        return (column, row) if apart < _SAME_PIXEL else None

    @property
    def bounds(self) -> Bounds:
        """Bounds (left, bottom, right, top) in units of the CRS."""
        left, bottom, right, top = array_bounds(self.height, self.width, self.transform)
        return left, bottom, right, top

    @property
    def resolution(self) -> float:
        """Side of a pixel, in units of the CRS."""
        return float(self.transform.a)

    @property
    def pixel_area(self) -> float:
        """Area of a pixel, in squared units of the CRS."""
        return float(abs(self.transform.a * self.transform.e))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def is_local(self) -> bool:
        """True if the CRS has no location on Earth.

        Patches have such a CRS.
        """
        known = self.crs.is_projected or self.crs.is_geographic
        return not known and pyproj.CRS.from_wkt(self.crs.to_wkt()).is_engineering

    @property
    def metres_per_unit(self) -> float:
        """Metres per unit of a projected or local CRS."""
        if self.is_local:
            return float(pyproj.CRS.from_wkt(self.crs.to_wkt()).axis_info[0].unit_conversion_factor)
        return float(self.crs.linear_units_factor[1])

    @property
    def crs_label(self) -> str:
        """Human-readable name of the CRS."""
        return "in local coordinates" if self.is_local else str(self.crs.to_string())

    def crop(self, window: Window) -> Grid:
        """Return the grid of a window of whole pixels."""
        return Grid(self.crs, window_transform(window, self.transform), int(window.height), int(window.width))

    def windows(self, size: int) -> list[Window]:
        """Return square windows that cover the grid once, row by row.

        Args:
            size: side of a window in pixels; windows at the right and bottom edges may be smaller.
        """
        return [
            Window(column, row, min(size, self.width - column), min(size, self.height - row))
            for row in range(0, self.height, size)
            for column in range(0, self.width, size)
        ]


def _describe_orientation(transform: Affine) -> str:
    """Describe a raster's orientation; empty if north up."""
    if transform.b or transform.d:
        return "rotated"
    if not transform.a or not transform.e:
        return "degenerate: its pixels have no width or height"
    flips = {"mirrored (east to west)": transform.a < 0, "upside down (south up)": transform.e > 0}
    return " and ".join(name for name, present in flips.items() if present)
