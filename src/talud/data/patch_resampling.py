"""Resampling of patches to another pixel size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from talud.bands import Group, band_named
from talud.data import sar, warping
from talud.data.sources import SourceLayer
from talud.grid import Grid
from talud.metrics import BACKGROUND, LANDSLIDE, UNKNOWN
from talud.params import StackOptions

# Resampled patches are padded to a multiple of this number of pixels, which networks of up to five levels can tile.
CELL_STEP = 32
# Any metric CRS: patches have no known location, and GDAL cannot warp local coordinates.
_CRS = CRS.from_epsg(32618)
# Share of landslide from which a pixel is landslide, by the rule for polygons; with a margin for rounding.
_LEAST_LANDSLIDE_SHARE = {"centre": 0.5 - 1e-6, "all_touched": 1e-3}


@dataclass(frozen=True)
class PatchResampling:
    """Resampling of square patches to another pixel size.

    Each patch is resampled by itself, from its upper left corner, as the sources of a stack are (see
    `talud.data.warping.resample`): coarser pixels are area-weighted averages of valid pixels, finer ones are
    interpolated, and a pixel is valid if at least half of it is covered by valid pixels. Beyond the border of a patch,
    interpolation continues its outermost pixels.

    Attributes:
        side: side of a patch in its own pixels.
        pixel_size: side of its pixels, in metres.
        target: side of the new pixels, in metres.
        rule: rule for the mask, `stack.inventory_rule`.
    """

    side: int
    pixel_size: float
    target: float
    rule: str

    @classmethod
    def of(cls, side: int, pixel_size: float, options: StackOptions) -> PatchResampling | None:
        """Return the resampling of the stack options, or None."""
        if not options.resamples(pixel_size):
            return None
        return cls(side, pixel_size, options.resolution, options.inventory_rule)

    @property
    def new_side(self) -> int:
        """Side of a resampled patch in new pixels.

        A last pixel is left out if less than half of it is covered.
        """
        return max(math.floor(self.side * self.pixel_size / self.target + 0.5), 1)

    @property
    def cell(self) -> int:
        """Side in new pixels after padding."""
        return -(-self.new_side // CELL_STEP) * CELL_STEP

    def bands(
        self, values: NDArray[np.float32], names: tuple[str, ...], units: tuple[str, ...], origin: Path
    ) -> NDArray[np.float32]:
        """Resample the bands of a patch.

        Bands of SAR are averaged as power.

        Args:
            values: bands (bands, side, side), NaN where invalid.
            names: names of the bands.
            units: unit of each band.
            origin: path of the patch, for messages.

        Returns:
            Bands (bands, cell, cell), NaN where invalid and in the padding.
        """
        result = np.full((len(values), self.cell, self.cell), np.nan, np.float32)
        stated = {text: key for key, text in sar.UNIT_NAMES.items()}
        own = [
            stated[unit] if band_named(name).group is Group.SAR and unit in stated else None
            for name, unit in zip(names, units, strict=True)
        ]
        linear = [sar.to_power(each, unit) if unit else each for each, unit in zip(values, own, strict=True)]
        for members in _equally_valid(linear):
            resampled = self._resample(np.stack([linear[band] for band in members]), origin)
            for band, pixels in zip(members, resampled, strict=True):
                unit = own[band]
                result[band, : self.new_side, : self.new_side] = sar.from_power(pixels, unit) if unit else pixels
        return result

    def mask(self, truth: NDArray[np.uint8], origin: Path) -> NDArray[np.uint8]:
        """Resample the mask of a patch.

        A new pixel is landslide if at least half of its known part is, or any of it by the rule `all_touched`. It is
        unknown if less than half of it is known.

        Args:
            truth: mask (side, side): 1 landslide, 0 background, 255 unknown.
            origin: path of the patch, for messages.

        Returns:
            Mask (cell, cell), 255 in the padding.
        """
        known = np.where(truth == UNKNOWN, np.float32(np.nan), (truth == LANDSLIDE).astype(np.float32))
        share = self._resample(known[np.newaxis], origin, average=True)[0]
        result = np.full((self.cell, self.cell), UNKNOWN, np.uint8)
        classes = np.where(share >= _LEAST_LANDSLIDE_SHARE[self.rule], LANDSLIDE, BACKGROUND)
        result[: self.new_side, : self.new_side] = np.where(np.isnan(share), UNKNOWN, classes)
        return result

    def _resample(self, values: NDArray[np.floating], origin: Path, *, average: bool = False) -> NDArray[np.float32]:
        """Resample bands that are valid in the same pixels.

        Returns (bands, new_side, new_side).
        """

        def read(window: Window) -> NDArray[np.floating]:
            starts = int(window.row_off), int(window.col_off)
            ends = starts[0] + int(window.height), starts[1] + int(window.width)
            around = tuple((-start, end - self.side) for start, end in zip(starts, ends, strict=True))
            if ratio < 1:  # without the continuation, interpolation would leave out the corners of the patch
                return np.pad(values, ((0, 0), *around), mode="edge")
            return np.pad(values, ((0, 0), *around), constant_values=np.nan)

        ratio = self.target / self.pixel_size
        if average:  # the share of a class is an average for finer pixels too
            ratio = max(ratio, 2.0)
        layer = SourceLayer(origin, _grid(self.pixel_size, self.side), (), (), read)
        return warping.resample(layer, _grid(self.target, self.new_side), ratio)


def _grid(size: float, side: int) -> Grid:
    return Grid(_CRS, Affine(size, 0, 0, 0, -size, 0), side, side)


def _equally_valid(bands: Sequence[NDArray[np.floating]]) -> list[list[int]]:
    """Return the numbers of bands in groups that are valid in the same pixels."""
    groups: dict[bytes, list[int]] = {}
    for number, pixels in enumerate(bands):
        groups.setdefault(np.packbits(np.isnan(pixels)).tobytes(), []).append(number)
    return list(groups.values())
