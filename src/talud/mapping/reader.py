"""A raster as the model wants it: checked against the contract, bands by name, NaN where invalid."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Interleaving, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud import bands
from talud.bands import Group
from talud.contract import BandContract, Contract
from talud.errors import MismatchError, SourceError
from talud.grid import Grid
from talud.mapping.domain import Distance
from talud.raster import (
    BLOCK,
    MOST_BANDS,
    PATCH_TAG,
    alpha_bands,
    masked_by_alpha,
    open_raster,
    patch_side,
    read_opaque,
    read_valid,
    reading,
)
from talud.text import dimensions

PROVENANCE = (
    "TALUD_AREA",
    "TALUD_EVENT",
    "TALUD_ACQUIRED_OPTICAL",
    "TALUD_ACQUIRED_SAR_PRE",
    "TALUD_ACQUIRED_SAR_POST",
    "TALUD_SYNTHETIC",
    "TALUD_SOURCES",
    PATCH_TAG,
)
_CONTENT = ("grid", "bands and tags", "pixels")  # of a raster's identity: what does not depend on where it lies
PIXEL_SIZE_TOLERANCE = 0.001  # of the contract's pixel size
GROUND_TOLERANCE = 0.02  # a UTM zone's own scale stays within 0.002 of 1, far from Web Mercator's
BEYOND_SENSORS = 1e9  # no band is measured in such numbers
IMPLAUSIBLE_SHARE = 0.01  # of a band's valid pixels
_REMOTE = "curl|s3|gs|az|adls|oss|swift|webhdfs"  # GDAL's file systems on a network
_ADDRESS = re.compile(rf"(https?|ftp|s3|gs|az|vrt)://|(/vsi[a-z0-9]+/)*/vsi({_REMOTE})(_streaming)?[/?]")
_FINITE = (np.finfo(np.float32).min, np.finfo(np.float32).max)
EQUATOR = 40.1e6  # metres
FARTHEST = 1e9  # metres; no system of coordinates counts so far, and float64 would not resolve pixels for ever
LARGEST_BLOCK = 10**9  # bytes
CACHE = 192 * 10**6  # bytes that GDAL keeps of what it reads and writes; by itself a twentieth of the machine's memory
SAMPLE = 1024  # rows and columns, at most, of the sample that is checked for plausible values
PLACES = 4, 8  # blocks, at least and at most, by which a large raster is compared with the training areas


@dataclass(frozen=True)
class StackReader:
    """An open raster that fits a contract.

    Attributes:
        name: of the file, without its folders.
        grid: of the raster.
        tags: of the raster; a stack's hold area and dates.
        contract: what the raster was checked against.
        identity: by what the raster would be known again (see `_identity`).
        distances: how far each band lies from what the model learned from, in contract order, and then each of the
            differences of bands of which the contract has one and the raster both.
        absent: groups of the contract that the raster has not, or not whole, and the model can do without.
        patch: the side in pixels of the patches that the raster consists of, none of which sees another; None for any
            other raster.
    """

    name: str
    grid: Grid
    tags: Mapping[str, str]
    contract: Contract
    identity: Mapping[str, Any]
    distances: tuple[Distance, ...]
    absent: tuple[Group, ...]
    patch: int | None
    _dataset: DatasetReader = field(repr=False)
    _indexes: tuple[int | None, ...] = field(repr=False)

    @property
    def provenance(self) -> dict[str, str]:
        """What the raster is, as tags: what its own say of area, dates and sources, its name, and a digest of it.

        The digest is of its grid, its header, and a sample of its pixels (see `_identity`), wherever it lies.
        """
        digest = hashlib.sha256("\n".join(str(self.identity[part]) for part in _CONTENT).encode()).hexdigest()
        told = {tag: self.tags[tag] for tag in PROVENANCE if tag in self.tags}
        return told | {"TALUD_RASTER": self.name, "TALUD_RASTER_DIGEST": digest}

    def read(self, window: Window) -> NDArray[np.float32]:
        """The bands in contract order, (bands, height, width), of a window of whole pixels.

        NaN where the raster is invalid, where a value is infinite or implausible, in an absent group, and past the
        raster's edge.

        Raises:
            SourceError: the file is damaged there.
        """
        inside = window.intersection(Window(0, 0, self.grid.width, self.grid.height))
        stack = np.full((len(self._indexes), window.height, window.width), np.nan, np.float32)
        rows, columns = (slice(0, inside.height), slice(0, inside.width))
        for index, band, values in zip(self._indexes, self.contract.input.bands, stack, strict=True):
            if index is not None:
                values[rows, columns] = bands.plausible(
                    _read_band(self._dataset, index, inside), band.lowest, band.highest
                )
        return stack

    def has(self, name: str) -> bool:
        """Whether there is a band of that name, in the unit that talud gives it; the contract need not hold it."""
        if name not in self._dataset.descriptions:
            return False
        stated, expected = self._dataset.units[self._dataset.descriptions.index(name)], bands.band(name).unit
        return not stated or not expected or stated.casefold() == expected.casefold()

    def band(self, name: str, window: Window) -> NDArray[np.float32]:
        """A band that it `has`, (height, width) of a window inside the raster; NaN where invalid or implausible."""
        index = self._dataset.descriptions.index(name) + 1
        band = bands.band(name)
        return bands.plausible(_read_band(self._dataset, index, window), band.lowest, band.highest)

    def shades(self, window: Window) -> dict[str, NDArray[np.bool_]]:
        """Where the raster says that cloud, or radar layover or shadow, hides a group's bands: name → (height, width).

        Those of `talud.bands.SHADES` that it holds, in a window inside the raster.
        """
        return {name: self.band(name, window) > 0 for name in bands.SHADES if self.has(name)}

    def image(self, names: tuple[str, ...], shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """Bands of that name shrunk or enlarged to (height, width), NaN where invalid; None where one is missing."""
        present = self._dataset.descriptions
        if not set(names) <= set(present):
            return None
        # Without overviews an average takes every pixel; a VRT's nearest come from the overviews of its sources.
        averages = shape[0] < self.grid.height and self._dataset.overviews(1)
        way = Resampling.average if averages else Resampling.nearest
        return np.stack(
            [_read_band(self._dataset, present.index(name) + 1, None, shape=shape, resampling=way) for name in names]
        )


def frugal() -> rasterio.Env:
    """The environment in which GDAL keeps little of what it reads and writes: memory does not grow with a raster."""
    return rasterio.Env(GDAL_CACHEMAX=CACHE)


@contextmanager
def open_stack(raster: str | Path, contract: Contract) -> Iterator[StackReader]:
    """Open a raster, at a path or at whatever else GDAL opens (`/vsicurl/…`), and check that it fits a contract.

    Raises:
        SourceError: it cannot be read, has no CRS, or is rotated.
        MismatchError: bands, units, pixel size, the way it was made, or its values are not what the contract expects.
    """
    with open_raster(raster) as dataset:
        check_band_count(dataset, raster)
        grid = Grid.of(dataset)
        patch = patch_side(dataset)
        _check_grid(grid, contract, raster, patch)
        absent = _absent(dataset, contract)
        present = tuple(band for band in contract.input.bands if band.group not in absent)
        indexes = _band_indexes(dataset, contract, present, raster)
        check_blocks(dataset, indexes, raster)
        _check_units(dataset, indexes, present, raster)
        _check_making(dataset.tags(), contract, present, raster)
        pixels, samples = hashlib.sha256(), [_sample(dataset, index) for index in indexes]
        for sample, band in zip(samples, present, strict=True):
            pixels.update(sample.tobytes())
            _check_values(sample, band, raster)
        for index, description in enumerate(dataset.descriptions, start=1):
            if description in bands.SHADES:
                pixels.update(_sample(dataset, index).tobytes())
        distances = _distances(dataset, indexes, samples, present, contract)
        places = {band.name: index for band, index in zip(present, indexes, strict=True)}
        name = _name(raster)
        identity = _identity(name, dataset, pixels.hexdigest())
        numbers = tuple(places.get(name) for name in contract.input.band_names)
        yield StackReader(name, grid, dataset.tags(), contract, identity, distances, absent, patch, dataset, numbers)


def _name(raster: str | Path) -> str:
    """Return a raster's name without folders.

    The query of an address is left out as well, since it may hold a signature.
    """
    text = str(raster)
    address = _ADDRESS.match(text)
    return (text.split("?", maxsplit=1)[0] if address else text).rsplit("/", 1)[-1]


def misfit(raster: str | Path, contract: Contract) -> str | None:
    """Why a raster does not fit a contract, in words; None where it does.

    Raises:
        SourceError: it cannot be read, has no CRS, or is rotated.
    """
    try:
        with open_stack(raster, contract):
            return None
    except MismatchError as error:
        return str(error).removeprefix(f"{raster}: ")


def plausible(values: NDArray[np.float32], contract: Contract) -> NDArray[np.float32]:
    """Bands (bands, height, width) in contract order as `StackReader.read` gives them: NaN where implausible."""
    return np.stack(
        [
            bands.plausible(each, band.lowest, band.highest)
            for each, band in zip(values, contract.input.bands, strict=True)
        ]
    )


def check_plausible(sample: NDArray[np.float32], contract: Contract, origin: str | Path) -> None:
    """That a sample of pixels (bands, …) in contract order, NaN where invalid, holds values such as bands can have.

    Raises:
        MismatchError: of some band, named with `origin`, more than 1 % cannot be.
    """
    for values, band in zip(sample, contract.input.bands, strict=True):
        _check_values(values, band, origin)


def _identity(name: str, dataset: DatasetReader, pixels: str) -> dict[str, Any]:
    """By what a raster is known again, without reading all of it and wherever it lies.

    Its name, its grid, all that its header says, digests of a sample of its pixels (of each band, at most 1024 × 1024,
    from the overviews where it has some), and, of those files that lie on a local disk, a VRT's sources among them,
    sizes and times of change.
    """
    described = dataset.descriptions, dataset.dtypes, dataset.nodatavals, dataset.scales, dataset.offsets, dataset.units
    header = repr((described, sorted(dataset.tags().items()), dataset.mask_flag_enums))
    files = [Path(file) for file in sorted(dataset.files) if not file.endswith(".aux.xml")]  # a GIS's statistics
    changed = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return {
        "raster": name,
        "grid": f"{dimensions(dataset.width, dataset.height)} at {dataset.transform.to_gdal()} "
        f"in {dataset.crs.to_string()}",
        "bands and tags": hashlib.sha256(header.encode()).hexdigest(),
        "pixels": pixels,
        "size and time of change": hashlib.sha256(repr(changed).encode()).hexdigest(),
    }


def _read_band(
    dataset: DatasetReader,
    index: int,
    window: Window | None,
    shape: tuple[int, int] | None = None,
    resampling: Resampling = Resampling.nearest,
) -> NDArray[np.float32]:
    """One band as float32 in physical units, NaN where the dataset's mask, or the band itself, says invalid."""
    with reading(dataset.name), np.errstate(over="ignore", invalid="ignore"):  # what overflows is implausible
        alpha = alpha_bands(dataset, (index,))
        by_alpha = masked_by_alpha(dataset, index)
        band = dataset.read(
            index,
            window=window,
            out_shape=shape,
            masked=not (alpha or by_alpha),
            out_dtype="float32",
            resampling=resampling,
        )
        values: NDArray[np.float32] = np.ma.filled(band, np.nan)
        if alpha or by_alpha:
            valid = read_valid(dataset, (index,), window, shape)[0] & read_opaque(dataset, alpha, window, shape)
            values[~valid] = np.nan
        return values * np.float32(dataset.scales[index - 1]) + np.float32(dataset.offsets[index - 1])


def _check_grid(grid: Grid, contract: Contract, raster: str | Path, patch: int | None) -> None:
    if patch and patch % contract.input.alignment:
        raise MismatchError(
            f"{raster}: consists of patches of {patch} pixels, the model expects a multiple of "
            f"{contract.input.alignment}"
        )
    if not (grid.crs.is_projected or (patch and grid.local)):
        raise MismatchError(
            f"{raster}: its CRS ({grid.crs}) is not projected, the model expects pixels of "
            f"{contract.input.pixel_size:g} m; let talud map bring the sources to one, or warp it to a metric CRS, "
            "such as the UTM zone, with gdalwarp"
        )
    metre = grid.metre
    width, height = grid.transform.a * metre, -grid.transform.e * metre
    if (
        max(abs(side - contract.input.pixel_size) for side in (width, height))
        > PIXEL_SIZE_TOLERANCE * contract.input.pixel_size
    ):
        raise MismatchError(
            f"{raster}: its pixels are {width:g} × {height:g} m, the model expects {contract.input.pixel_size:g} m; "
            "make the stack at that resolution"
        )
    if grid.local:
        return
    length = max(grid.shape) * contract.input.pixel_size
    if length > EQUATOR:
        raise MismatchError(f"{raster}: is {length / 1000:,.0f} km long, longer than the Earth is round")
    ground = grid.resolution * metre / _scale(grid)
    if not 0 < ground < math.inf or max(map(abs, grid.bounds)) * metre > FARTHEST:
        raise MismatchError(
            f"{raster}: it lies where {grid.crs} has no place on the ground; is the geotransform right?"
        )
    if abs(ground - contract.input.pixel_size) > GROUND_TOLERANCE * contract.input.pixel_size:
        raise MismatchError(
            f"{raster}: its pixels are {width:g} m on the map but {ground:.3g} m on the ground, for {grid.crs} "
            f"stretches lengths there; the model expects {contract.input.pixel_size:g} m; warp it to the UTM zone"
        )


def _scale(grid: Grid) -> float:
    """How many times longer a length is on the map than on the ground, at the raster's centre."""
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    centre = grid.transform * (grid.width / 2, grid.height / 2)
    longitude, latitude = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(*centre)
    return math.sqrt(pyproj.Proj(crs).get_factors(longitude, latitude).areal_scale)


def _absent(dataset: DatasetReader, contract: Contract) -> tuple[Group, ...]:
    """The groups that a raster lacks, wholly or in part, where the model was measured to do without all of them."""
    missing = {band.group for band in contract.input.bands if band.name not in dataset.descriptions}
    rest = frozenset(contract.input.groups) - missing
    learned = tuple(group for group in contract.input.groups if group in missing)
    return learned if contract.input.subsets and rest in contract.input.supported else ()


def _band_indexes(
    dataset: DatasetReader, contract: Contract, present: tuple[BandContract, ...], raster: str | Path
) -> tuple[int, ...]:
    """The numbers of the bands that must be there, found by name."""
    names, wanted = dataset.descriptions, [band.name for band in present]
    found = ", ".join(name or "(unnamed)" for name in names)
    expected = ", ".join(contract.input.band_names)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise MismatchError(
            f"{raster}: has no band {', '.join(missing)}; it has {found}, the model expects {expected} "
            f"(the band descriptions count, not the order){_or_less(contract)}; talud stack --like makes such a raster"
        )
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise MismatchError(f"{raster}: has several bands {', '.join(twice)}; it has {found}; name each band once")
    indexes = tuple(names.index(name) + 1 for name in wanted)
    if any(dataset.dtypes[index - 1].startswith("complex") for index in indexes):
        raise MismatchError(f"{raster}: holds complex numbers; bring it to the unit that the model expects first")
    return indexes


def check_band_count(dataset: DatasetReader, raster: str | Path) -> None:
    """Check that a raster does not have too many bands to be read in time.

    Raises:
        SourceError: it has.
    """
    if dataset.count > MOST_BANDS:
        raise SourceError(f"{raster}: has {dataset.count:,} bands; at most {MOST_BANDS:,} are read")


def check_blocks(dataset: DatasetReader, indexes: tuple[int, ...], raster: str | Path) -> None:
    """That the raster can be read in parts: GDAL unpacks whole blocks, and those of a damaged file may be gigabytes.

    Raises:
        SourceError: it cannot.
    """
    check_band_count(dataset, raster)
    together = dataset.count if dataset.interleaving is Interleaving.pixel else 1
    shapes, types = dataset.block_shapes, dataset.dtypes  # each look reads those of all bands anew
    for index in indexes:
        height, width = shapes[index - 1]
        size = height * width * np.dtype(types[index - 1]).itemsize * together
        if size > LARGEST_BLOCK:
            raise SourceError(
                f"{raster}: is stored in blocks of {size / 10**9:.1f} GB, each of which must be read whole; "
                "store it in tiles first, for example with gdal_translate -of COG"
            )


def _or_less(contract: Contract) -> str:
    """What else than all groups a model can be given, for a message."""
    less = [" + ".join(subset.groups) for subset in contract.input.subsets if subset.supported]
    return f", or the whole of {' or '.join(less[1:])}" if less[1:] else ""


def _check_units(
    dataset: DatasetReader, indexes: tuple[int, ...], present: tuple[BandContract, ...], raster: str | Path
) -> None:
    units = dataset.units
    for index, band in zip(indexes, present, strict=True):
        found = units[index - 1]
        if found and found.casefold() != band.unit.casefold():
            raise MismatchError(
                f"{raster}: band '{band.name}' is in {found}, the model expects {band.unit}; "
                "make the stack in that unit"
            )


def _check_making(
    tags: Mapping[str, str], contract: Contract, present: tuple[BandContract, ...], raster: str | Path
) -> None:
    """That a stack which says how it was made was made as those that the model learned from."""
    names, groups = {band.name for band in present}, {band.group for band in present}
    concerned = {
        "slope": "slope" in names,
        "curvature": "curvature" in names,
        "sar_unit": Group.SAR in groups,
        "lee_window": Group.SAR in groups,
    }
    for key in (key for key, matters in concerned.items() if matters):
        found, expected = tags.get(f"TALUD_{key.upper()}"), contract.input.stack.get(key)
        if found is not None and expected is not None and found.casefold() != expected.casefold():
            raise MismatchError(
                f"{raster}: was made with {key} {found}, the model expects {key} {expected}; "
                f"set stack.{key}: {expected} and make the stack again"
            )


def _sample(dataset: DatasetReader, index: int) -> NDArray[np.float32]:
    return _read_band(dataset, index, None, shape=(min(dataset.height, SAMPLE), min(dataset.width, SAMPLE)))


def _distances(
    dataset: DatasetReader,
    indexes: tuple[int, ...],
    samples: list[NDArray[np.float32]],
    present: tuple[BandContract, ...],
    contract: Contract,
) -> tuple[Distance, ...]:
    """How far the bands, and their differences, lie from the training areas.

    Where the sample is not the whole raster, it may come from overviews, whose averages spread less than pixels do:
    from its valid part, a few places are then chosen at which the pixels themselves are read.
    """
    pixels = samples
    if samples[0].shape != dataset.shape:
        windows = _places(np.logical_and.reduce([~np.isnan(sample) for sample in samples]), dataset.shape)
        read = [[_read_band(dataset, index, window).ravel() for index in indexes] for window in windows]
        pixels = [np.concatenate(parts) for parts in zip(*read, strict=True)]
    read_of = {band.name: (values, band) for values, band in zip(pixels, present, strict=True)}
    return (
        *(
            Distance.of(*read_of[name]) if name in read_of else Distance(name, None, None)
            for name in contract.input.band_names
        ),
        *(
            Distance.between(read_of[one.bands[0]], read_of[one.bands[1]], one)
            for one in contract.input.differences
            if read_of.keys() >= set(one.bands)
        ),
    )


def _places(valid: NDArray[np.bool_], shape: tuple[int, int]) -> list[Window]:
    """Blocks on disk of a raster of that shape, spread evenly over the valid pixels of its sample."""
    rows, columns = np.nonzero(valid if valid.any() else np.ones_like(valid))
    places = int(np.clip(math.prod(shape) // (3 * BLOCK) ** 2, *PLACES))
    chosen = ((np.arange(places) + 0.5) * len(rows) / places).astype(int)
    scale = np.array(shape) / valid.shape
    corners = {
        tuple((np.array((rows[one], columns[one])) * scale // BLOCK * BLOCK).astype(int).tolist()) for one in chosen
    }
    return [Window(left, top, min(BLOCK, shape[1] - left), min(BLOCK, shape[0] - top)) for top, left in sorted(corners)]


def _check_values(sample: NDArray[np.float32], band: BandContract, raster: str | Path) -> None:
    values = sample[~np.isnan(sample)]
    outside = np.count_nonzero((values < band.lowest) | (values > band.highest))
    if outside > IMPLAUSIBLE_SHARE * values.size:
        low, high = np.percentile(np.clip(values, *_FINITE), (1, 99))
        raise MismatchError(
            f"{raster}: band '{band.name}' holds {low:g} to {high:g} (1st to 99th percentile), the model expects "
            f"{band.lowest:g} to {band.highest:g} {band.unit}, and {outside / values.size:.0%} of the values lie "
            f"outside; {_probable_cause(band, float(low), float(high))}"
        )


def _probable_cause(band: BandContract, low: float, high: float) -> str:
    unit = band.unit.casefold()
    if max(-low, high) > BEYOND_SENSORS:
        return "is there an undeclared nodata value, or a scale or offset that is wrong?"
    if unit == "db" and low >= 0:
        return "these look like amplitude or power: convert to dB"
    if unit in {"amplitude", "power"} and low < 0:
        return f"these look like dB: convert to {band.unit}"
    if unit == "degree" and low >= 0:
        return "these look like percent: convert to degrees"
    if band.group is Group.OPTICAL and high > band.highest:
        return "these look like another scale, such as 16-bit numbers where the model learned from 8-bit ones"
    return "is it another unit, or an undeclared nodata value?"
