"""Checks of a raster against a contract."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyproj
from numpy.typing import NDArray
from rasterio.enums import Interleaving
from rasterio.io import DatasetReader

from talud import bands
from talud.bands import Group
from talud.contract import BandContract, Contract
from talud.errors import MismatchError, SourceError
from talud.grid import Grid
from talud.raster import MAX_BANDS

PIXEL_SIZE_TOLERANCE = 0.001  # share of the contract's pixel size
GROUND_SCALE_TOLERANCE = 0.02  # share of a length; UTM stays within 0.002 in its zone, Web Mercator does not
MAX_MEASURABLE_VALUE = 1e9  # no sensor's band has larger values in any unit
MAX_IMPLAUSIBLE_SHARE = 0.01  # share of a band's valid pixels
_FLOAT32_RANGE = (np.finfo(np.float32).min, np.finfo(np.float32).max)
EQUATOR_METRES = 40.1e6
MAX_COORDINATE_METRES = 1e9  # no CRS has larger coordinates, and float64 must be able to resolve pixels
MAX_BLOCK_BYTES = 10**9


def check_grid(grid: Grid, contract: Contract, raster: str | Path, patch: int | None) -> None:
    """Check a raster's CRS, pixel size and location.

    A model that was trained at several pixel sizes maps rasters with any from the smallest to the largest.

    Raises:
        MismatchError: The grid does not fit the contract, or has no location on the ground.
    """
    if patch and patch % contract.input.alignment:
        raise MismatchError(
            f"{raster}: consists of patches of {patch} pixels, the model expects a multiple of "
            f"{contract.input.alignment}"
        )
    smallest, largest = contract.input.pixel_size_range
    sizes = f"{smallest:g} m" if smallest == largest else f"{smallest:g} to {largest:g} m"
    if not (grid.crs.is_projected or (patch and grid.is_local)):
        raise MismatchError(
            f"{raster}: its CRS ({grid.crs}) is not projected, the model expects pixels of {sizes}; run talud map on "
            "the sources, or warp it to a metric CRS, such as its UTM zone, with gdalwarp"
        )
    metre = grid.metres_per_unit
    width, height = grid.transform.a * metre, -grid.transform.e * metre
    expected = min(max(width, smallest), largest)
    if max(abs(side - expected) for side in (width, height)) > PIXEL_SIZE_TOLERANCE * expected:
        raise MismatchError(
            f"{raster}: its pixels are {width:g} × {height:g} m, the model expects {sizes}; make the stack at that "
            "resolution"
        )
    if grid.is_local:
        return
    length = max(grid.shape) * expected
    if length > EQUATOR_METRES:
        raise MismatchError(f"{raster}: is {length / 1000:,.0f} km long, more than the Earth's circumference")
    ground = grid.resolution * metre / _scale_factor(grid)
    if not 0 < ground < math.inf or max(map(abs, grid.bounds)) * metre > MAX_COORDINATE_METRES:
        raise MismatchError(
            f"{raster}: its coordinates are outside the valid range of {grid.crs}; check its geotransform"
        )
    if abs(ground - expected) > GROUND_SCALE_TOLERANCE * expected:
        raise MismatchError(
            f"{raster}: its pixels are {width:g} m on the map but {ground:.3g} m on the ground, since {grid.crs} "
            f"distorts lengths there; the model expects {sizes}; warp it to its UTM zone"
        )


def _scale_factor(grid: Grid) -> float:
    """Return the map scale factor at the centre.

    It is the ratio of a length on the map to that on the ground.
    """
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    centre = grid.transform * (grid.width / 2, grid.height / 2)
    longitude, latitude = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(*centre)
    return math.sqrt(pyproj.Proj(crs).get_factors(longitude, latitude).areal_scale)


def find_missing_groups(dataset: DatasetReader, contract: Contract) -> tuple[Group, ...]:
    """Return missing groups that the model does not need.

    Empty if the model was not scored without them.
    """
    missing = {band.group for band in contract.input.bands if band.name not in dataset.descriptions}
    rest = frozenset(contract.input.groups) - missing
    learned = tuple(group for group in contract.input.groups if group in missing)
    return learned if contract.input.subsets and rest in contract.input.supported else ()


def find_band_indexes(
    dataset: DatasetReader, contract: Contract, present: tuple[BandContract, ...], raster: str | Path
) -> tuple[int, ...]:
    """Find the numbers of the required bands by name.

    Raises:
        MismatchError: A band is missing, present twice, or complex.
    """
    names, wanted = dataset.descriptions, [band.name for band in present]
    found = ", ".join(name or "(unnamed)" for name in names)
    expected = ", ".join(contract.input.band_names)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise MismatchError(
            f"{raster}: has no band {', '.join(missing)}; it has {found}, the model expects {expected} "
            f"(by band description, in any order){_supported_subsets(contract)}; talud stack --like makes such a raster"
        )
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise MismatchError(f"{raster}: has several bands {', '.join(twice)}; it has {found}; name each band once")
    indexes = tuple(names.index(name) + 1 for name in wanted)
    if any(dataset.dtypes[index - 1].startswith("complex") for index in indexes):
        raise MismatchError(f"{raster}: has complex values; convert them to the unit that the model expects")
    return indexes


def _supported_subsets(contract: Contract) -> str:
    """Describe the smaller band sets of a model."""
    less = [" + ".join(subset.groups) for subset in contract.input.subsets if subset.supported]
    return f", or all bands of {' or '.join(less[1:])}" if less[1:] else ""


def check_band_count(dataset: DatasetReader, raster: str | Path) -> None:
    """Check that a raster has not too many bands.

    Raises:
        SourceError: It has more than `MOST_BANDS`.
    """
    if dataset.count > MAX_BANDS:
        raise SourceError(f"{raster}: has {dataset.count:,} bands; at most {MAX_BANDS:,} are read")


def check_blocks(dataset: DatasetReader, indexes: tuple[int, ...], raster: str | Path) -> None:
    """Check that raster blocks fit into memory.

    GDAL unpacks whole blocks, and those of a damaged file may be gigabytes.

    Raises:
        SourceError: A block is larger than `MAX_BLOCK_BYTES`.
    """
    check_band_count(dataset, raster)
    together = dataset.count if dataset.interleaving is Interleaving.pixel else 1
    shapes, types = dataset.block_shapes, dataset.dtypes  # rasterio reads those of all bands at each access
    for index in indexes:
        height, width = shapes[index - 1]
        size = height * width * np.dtype(types[index - 1]).itemsize * together
        if size > MAX_BLOCK_BYTES:
            raise SourceError(
                f"{raster}: is stored in blocks of {size / 10**9:.1f} GB, which can only be read as a whole; "
                "convert it to a tiled file, for example with gdal_translate -of COG"
            )


def check_units(
    dataset: DatasetReader, indexes: tuple[int, ...], present: tuple[BandContract, ...], raster: str | Path
) -> None:
    """Check the stated units of bands.

    Raises:
        MismatchError: A band has another unit.
    """
    units = dataset.units
    for index, band in zip(indexes, present, strict=True):
        found = units[index - 1]
        if found and found.casefold() != band.unit.casefold():
            raise MismatchError(
                f"{raster}: band '{band.name}' is in {found}, the model expects {band.unit}; "
                "make the stack in that unit"
            )


def check_processing(
    tags: Mapping[str, str], contract: Contract, present: tuple[BandContract, ...], raster: str | Path
) -> None:
    """Check the stated processing options.

    The options must equal those of the training stacks.

    Raises:
        MismatchError: An option that a present band depends on differs.
    """
    for key in processing_options({band.name: band.group for band in present}):
        found, expected = tags.get(f"TALUD_{key.upper()}"), contract.input.stack.get(key)
        if found is not None and expected is not None and found.casefold() != expected.casefold():
            raise MismatchError(
                f"{raster}: was made with {key} {found}, the model expects {key} {expected}; "
                f"set stack.{key}: {expected} and make the stack again"
            )


def processing_options(groups: Mapping[str, Group]) -> tuple[str, ...]:
    """Return the processing options that bands depend on.

    Args:
        groups: group of each band by name.
    """
    radar = Group.SAR in groups.values()
    concerned = {
        "slope": "slope" in groups,
        "curvature": "curvature" in groups,
        "sar_unit": radar,
        "lee_window": radar,
    }
    return tuple(key for key, matters in concerned.items() if matters)


def mask_implausible(values: NDArray[np.float32], contract: Contract) -> NDArray[np.float32]:
    """Set implausible values of bands to NaN."""
    return np.stack(
        [
            bands.mask_implausible(each, band.lowest, band.highest)
            for each, band in zip(values, contract.input.bands, strict=True)
        ]
    )


def check_plausible(sample: NDArray[np.float32], contract: Contract, origin: str | Path) -> None:
    """Check that the values of a sample are plausible.

    Args:
        sample: bands (bands, …) in contract order, NaN where invalid.
        contract: contract of the model.
        origin: name of the raster, for the message.

    Raises:
        MismatchError: More than 1 % of a band's values are outside its plausible range.
    """
    for values, band in zip(sample, contract.input.bands, strict=True):
        check_band_values(values, band, origin)


def check_band_values(sample: NDArray[np.float32], band: BandContract, raster: str | Path) -> None:
    """Check that the values of a band are plausible.

    Raises:
        MismatchError: More than 1 % of them are outside the plausible range.
    """
    values = sample[~np.isnan(sample)]
    outside = np.count_nonzero((values < band.lowest) | (values > band.highest))
    if outside > MAX_IMPLAUSIBLE_SHARE * values.size:
        low, high = np.percentile(np.clip(values, *_FLOAT32_RANGE), (1, 99))
        raise MismatchError(
            f"{raster}: band '{band.name}' has {low:g} to {high:g} (1st to 99th percentile), the model expects "
            f"{band.lowest:g} to {band.highest:g} {band.unit}, and {outside / values.size:.0%} of the values are "
            f"outside; {_probable_cause(band, float(low), float(high))}"
        )


def _probable_cause(band: BandContract, low: float, high: float) -> str:
    """Return the probable cause of implausible values."""
    unit = band.unit.casefold()
    if max(-low, high) > MAX_MEASURABLE_VALUE:
        return "check for an undeclared nodata value, or a wrong scale or offset"
    if unit == "db" and low >= 0:
        return "they look like amplitude or power: convert to dB"
    if unit in {"amplitude", "power"} and low < 0:
        return f"they look like dB: convert to {band.unit}"
    if unit == "degree" and low >= 0:
        return "they look like percent: convert to degrees"
    if band.group is Group.OPTICAL and high > band.highest:
        return "they look like another scale, such as 16-bit numbers instead of the 8-bit numbers of the training data"
    return "check for another unit, or an undeclared nodata value"
