"""The grid of a raster: where its pixels lie on the ground."""

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
# Share of a pixel by which a coordinate may miss a line or a centre of the lattice and still count as on it.
_ROUNDING = 1e-6
# Share of a pixel by which two grids may differ and still have the same pixels.
_SAME_PIXEL = 0.01


@dataclass(frozen=True)
class Grid:
    """CRS, affine transform, height and width of a raster; north up, square pixels."""

    crs: CRS
    transform: Affine
    height: int
    width: int

    @classmethod
    def of(cls, dataset: DatasetReader | WarpedVRT) -> Grid:
        """Return the grid of an open dataset.

        Raises:
            SourceError: the dataset has no CRS, no place in it, is rotated, or upside down (south up).
        """
        if dataset.crs is None:
            raise SourceError(
                f"{dataset.name}: no coordinate reference system; assign one, for example with gdal_edit.py -a_srs"
            )
        if dataset.transform.is_identity or not all(map(math.isfinite, dataset.transform)):
            raise SourceError(
                f"{dataset.name}: says not where its pixels lie; warp it with gdalwarp if it has control points, "
                "or assign its corners, for example with gdal_edit.py -a_ullr"
            )
        if lies := _lies_otherwise(dataset.transform):
            raise SourceError(f"{dataset.name}: the raster is {lies}; warp it north up first, with gdalwarp")
        return cls(dataset.crs, dataset.transform, dataset.height, dataset.width)

    @classmethod
    def from_bounds(cls, crs: CRS, bounds: Bounds, resolution: float) -> Grid:
        """Return the smallest grid that covers (left, bottom, right, top).

        Its corners lie on multiples of `resolution`.
        """
        left, bottom, right, top = bounds
        columns = math.floor(left / resolution + _ROUNDING), math.ceil(right / resolution - _ROUNDING)
        rows = math.floor(-top / resolution + _ROUNDING), math.ceil(-bottom / resolution - _ROUNDING)
        return cls._on_lattice(crs, (0.0, 0.0), resolution, columns, rows)

    @classmethod
    def from_centres(cls, crs: CRS, bounds: Bounds, resolution: float, origin: tuple[float, float]) -> Grid:
        """Return the pixels of a lattice whose centres lie in a rectangle.

        The rectangle is (left, bottom, right, top).

        A centre on the left or top edge is inside, one on the right or bottom edge is outside. So of areas that share
        an edge and a lattice, each pixel belongs to one.

        Args:
            crs: the CRS of the bounds and the origin.
            bounds: the extent.
            resolution: the side of a pixel, in the units of the CRS.
            origin: the corner of any pixel of the lattice.

        Raises:
            SourceError: the bounds hold no centre of a pixel.
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
        """Return the grid of a range of columns and rows of a lattice.

        They are counted from the origin of the lattice.
        """
        if columns[1] <= columns[0] or rows[1] <= rows[0]:
            raise SourceError(f"the bounds hold no pixel of {resolution:g} {crs.linear_units}")
        x, y = origin
        transform = Affine(resolution, 0, x + columns[0] * resolution, 0, -resolution, y - rows[0] * resolution)
        return cls(crs, transform, rows[1] - rows[0], columns[1] - columns[0])

    def offset_in(self, other: Grid) -> tuple[int, int] | None:
        """Return the column and row of this grid's first pixel in another grid.

        None where their pixels differ.

        Pixels are the same where corners differ by less than a hundredth of a pixel all over this grid.
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
        """(left, bottom, right, top) in the units of the CRS."""
        left, bottom, right, top = array_bounds(self.height, self.width, self.transform)
        return left, bottom, right, top

    @property
    def resolution(self) -> float:
        """The side of a pixel, in the units of the CRS."""
        return float(self.transform.a)

    @property
    def pixel_area(self) -> float:
        """The area of a pixel, in squared units of the CRS."""
        return float(abs(self.transform.a * self.transform.e))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def is_local(self) -> bool:
        """True if the coordinates have no place on Earth, as those of patches."""
        known = self.crs.is_projected or self.crs.is_geographic
        return not known and pyproj.CRS.from_wkt(self.crs.to_wkt()).is_engineering

    @property
    def metres_per_unit(self) -> float:
        """The length of the unit of a projected or local CRS, in metres."""
        if self.is_local:
            return float(pyproj.CRS.from_wkt(self.crs.to_wkt()).axis_info[0].unit_conversion_factor)
        return float(self.crs.linear_units_factor[1])

    @property
    def crs_label(self) -> str:
        """The CRS in words."""
        return "in coordinates of their own" if self.is_local else str(self.crs.to_string())

    def crop(self, window: Window) -> Grid:
        """Return the grid of a window of whole pixels."""
        return Grid(self.crs, window_transform(window, self.transform), int(window.height), int(window.width))

    def windows(self, size: int) -> list[Window]:
        """Return square windows that cover the grid once, row by row.

        They have `size` pixels a side; the last ones may be smaller.
        """
        return [
            Window(column, row, min(size, self.width - column), min(size, self.height - row))
            for row in range(0, self.height, size)
            for column in range(0, self.width, size)
        ]


def _lies_otherwise(transform: Affine) -> str:
    """Describe the orientation of a raster that is not north up.

    The text is empty for a raster that is north up.
    """
    if transform.b or transform.d:
        return "rotated"
    if not transform.a or not transform.e:
        return "without extent: its pixels have no width or height"
    wrong = [
        said
        for said, is_so in (("mirrored (east to west)", transform.a < 0), ("upside down (south up)", transform.e > 0))
        if is_so
    ]
    return " and ".join(wrong)
