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


@dataclass(frozen=True)
class Grid:
    """CRS, affine transform, height and width of a raster; north up, square pixels."""

    crs: CRS
    transform: Affine
    height: int
    width: int

    @classmethod
    def of(cls, dataset: DatasetReader | WarpedVRT) -> Grid:
        """The grid of an open dataset.

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
        if dataset.transform.b or dataset.transform.d or dataset.transform.e > 0:
            raise SourceError(
                f"{dataset.name}: the raster is rotated or upside down; warp it north up first, with gdalwarp"
            )
        return cls(dataset.crs, dataset.transform, dataset.height, dataset.width)

    @classmethod
    def from_bounds(cls, crs: CRS, bounds: Bounds, resolution: float) -> Grid:
        """The smallest grid that covers (left, bottom, right, top), its corners on multiples of `resolution`."""
        left, bottom, right, top = bounds
        slack = 1e-6  # bounds that already lie on the lattice must not gain a row by rounding
        first_column = math.floor(left / resolution + slack)
        last_column = math.ceil(right / resolution - slack)
        first_row = math.floor(-top / resolution + slack)
        last_row = math.ceil(-bottom / resolution - slack)
        if last_column <= first_column or last_row <= first_row:
            raise SourceError(f"the bounds {bounds} hold no pixel of {resolution} {crs.linear_units}")
        transform = Affine(resolution, 0, first_column * resolution, 0, -resolution, -first_row * resolution)
        return cls(crs, transform, last_row - first_row, last_column - first_column)

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
    def local(self) -> bool:
        """Whether the coordinates have no place on Earth, as those of patches that lie side by side."""
        known = self.crs.is_projected or self.crs.is_geographic
        return not known and pyproj.CRS.from_wkt(self.crs.to_wkt()).is_engineering

    @property
    def metre(self) -> float:
        """The length of the unit of a projected or local CRS, in metres."""
        if self.local:
            return float(pyproj.CRS.from_wkt(self.crs.to_wkt()).axis_info[0].unit_conversion_factor)
        return float(self.crs.linear_units_factor[1])

    @property
    def place(self) -> str:
        """The CRS in words."""
        return "in coordinates of their own" if self.local else str(self.crs.to_string())

    def crop(self, window: Window) -> Grid:
        """The grid of a window of whole pixels."""
        return Grid(self.crs, window_transform(window, self.transform), int(window.height), int(window.width))

    def windows(self, size: int) -> list[Window]:
        """Square windows of `size` pixels that cover the grid once, row by row; the last ones may be smaller."""
        return [
            Window(column, row, min(size, self.width - column), min(size, self.height - row))
            for row in range(0, self.height, size)
            for column in range(0, self.width, size)
        ]
