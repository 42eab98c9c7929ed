"""Bands of a patch, computed from the channels or variables of its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talud.bands import TERRAIN_BANDS, Group, band_named, mask_implausible
from talud.data import sar, terrain
from talud.errors import SourceError
from talud.params import SarUnit, StackOptions

Channel = int | str
_ELEVATION, *_DERIVED = (band.name for band in TERRAIN_BANDS)
_MAX_IMPLAUSIBLE_SHARE = 0.01  # share of the valid pixels of a slope or curvature band
MIN_TERRAIN_SIDE = 2  # pixels with which the derivatives of elevation are defined


@dataclass(frozen=True)
class PatchBands:
    """Bands of the patches of a folder.

    Attributes:
        stored: band name → channel or variable, for the bands that are read.
        names: names of the bands of a patch, in order.
        optical_unit: unit of the optical bands.
        sar_unit: unit of the stored SAR bands; None if there are none.
        pixel_size: side of a pixel in metres.
        options: methods of slope and curvature, unit of SAR bands and speckle filter.
    """

    stored: Mapping[str, Channel]
    names: tuple[str, ...]
    optical_unit: str
    sar_unit: SarUnit | None
    pixel_size: float
    options: StackOptions

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each band."""
        by_group = {Group.OPTICAL: self.optical_unit, Group.SAR: sar.UNIT_NAMES[self.options.sar_unit]}
        return tuple(band_named(name).unit or by_group.get(band_named(name).group, "1") for name in self.names)

    @property
    def processing_tags(self) -> dict[str, str]:
        """Tags of the processing options that the bands depend on."""
        groups, options = {band_named(name).group for name in self.names}, self.options
        tags: dict[str, object] = {}
        if set(_DERIVED) & set(self.names):
            tags |= {"TALUD_SLOPE": options.slope, "TALUD_CURVATURE": options.curvature}
        if Group.SAR in groups:
            tags |= {"TALUD_SAR_UNIT": options.sar_unit, "TALUD_LEE_WINDOW": options.lee_window}
        return {key: str(value) for key, value in tags.items()}

    def compute(self, values: NDArray[np.float64], path: Path) -> NDArray[np.float32]:
        """Compute the bands of a patch from the stored ones.

        Args:
            values: stored bands, (bands, height, width), NaN where invalid.
            path: path of the image, for errors.

        Returns:
            The bands, float32, (bands, height, width); bands of one group are NaN together.

        Raises:
            SourceError: Values contradict the unit of a band.
        """
        found = dict(zip(self.stored, values, strict=True))
        for name in set(_DERIVED) & found.keys():
            found[name] = _check_range(name, found[name], path)
        if _ELEVATION in found:
            found[_ELEVATION] = terrain.mask_elevation(found[_ELEVATION])
            if not found.keys() >= set(_DERIVED) and set(_DERIVED) & set(self.names):
                made = terrain.patch_terrain(
                    found[_ELEVATION], self.pixel_size, self.options.slope, self.options.curvature
                )
                found = dict(zip(_DERIVED, made, strict=True)) | found
        for name in found:
            if band_named(name).group is Group.SAR:
                found[name] = self._backscatter(found[name], path)
        # Values outside the range of float32 are invalid.
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = np.stack([found[name] for name in self.names]).astype(np.float32)
        groups = [band_named(name).group for name in self.names]
        for group in set(groups):
            members = [place for place, other in enumerate(groups) if other is group]
            invalid = ~np.isfinite(pixels[members]).all(axis=0)
            for place in members:
                pixels[place, invalid] = np.nan
        return pixels

    def _backscatter(self, values: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
        assert self.sar_unit is not None
        sar.check_unit(values, self.sar_unit, path)
        with np.errstate(over="ignore"):
            power = sar.to_power(values, self.sar_unit)
        if self.options.lee_window:
            power = sar.lee_filter(power, self.options.lee_window)
        return np.asarray(sar.from_power(power, self.options.sar_unit), np.float64)


def _check_range(name: str, values: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """Set implausible values to NaN, unless they are many."""
    band = band_named(name)
    kept = mask_implausible(values.astype(np.float32), band.lowest, band.highest).astype(np.float64)
    valid = np.isfinite(values)
    if np.count_nonzero(valid & np.isnan(kept)) > _MAX_IMPLAUSIBLE_SHARE * np.count_nonzero(valid):
        low, high = np.percentile(values[valid], (1, 99))
        raise SourceError(
            f"{path}: {name} has values from {low:.3g} to {high:.3g}, expected {band.lowest:g} to {band.highest:g} "
            f"{band.unit}; give a band in another unit a name of its own, such as {name}_rescaled"
        )
    return kept


def names_of_bands(bands: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the bands of a patch.

    Elevation, if the user names it, is followed by slope and curvature at the end.
    """
    names = list(bands)
    if _ELEVATION in names:
        names += [name for name in _DERIVED if name not in names]
    return tuple(names)
