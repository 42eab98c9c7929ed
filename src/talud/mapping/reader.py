"""Rasters opened for a model: bands by name, NaN where invalid."""

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
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud import bands
from talud.bands import Group
from talud.contract import BandContract, Contract
from talud.errors import MismatchError
from talud.grid import Grid
from talud.mapping.domain import DomainDistance
from talud.mapping.raster_checks import (
    check_band_count,
    check_band_values,
    check_blocks,
    check_grid,
    check_processing,
    check_units,
    find_band_indexes,
    find_missing_groups,
)
from talud.raster import (
    BLOCK_SIZE,
    PATCH_TAG,
    alpha_bands,
    masked_by_alpha,
    open_raster,
    patch_side,
    read_alpha_mask,
    read_validity,
    translate_read_errors,
)
from talud.text import dimensions

PROVENANCE_TAGS = (
    "TALUD_AREA",
    "TALUD_EVENT",
    "TALUD_ACQUIRED_OPTICAL",
    "TALUD_ACQUIRED_SAR_PRE",
    "TALUD_ACQUIRED_SAR_POST",
    "TALUD_SYNTHETIC",
    "TALUD_SOURCES",
    PATCH_TAG,
)
_CONTENT_KEYS = ("grid", "bands and tags", "pixels")  # of a raster's identity: what does not depend on where it lies
_REMOTE = "curl|s3|gs|az|adls|oss|swift|webhdfs"  # GDAL's file systems on a network
_ADDRESS = re.compile(rf"(https?|ftp|s3|gs|az|vrt)://|(/vsi[a-z0-9]+/)*/vsi({_REMOTE})(_streaming)?[/?]")
GDAL_CACHE_BYTES = (
    192 * 10**6
)  # bytes that GDAL keeps of what it reads and writes; by itself a twentieth of the machine's memory
MAX_SAMPLE_SIDE = 1024  # rows and columns, at most, of the sample that is checked for plausible values
SAMPLE_BLOCK_LIMITS = 4, 8  # blocks, at least and at most, by which a large raster is compared with the training areas


@dataclass(frozen=True)
class RasterInfo:
    """Facts about a raster that fits a contract, gathered once when it is opened.

    Attributes:
        name: name of the file, without its folders.
        location: absolute path of the file, or whatever else GDAL opened.
        grid: grid of the raster.
        tags: tags of the raster; a stack's hold area and dates.
        identity: facts by which the raster is recognised (see `_identity`).
        distances: distance of each band from the training areas, in contract order, and then of each difference of
            bands that the contract holds and the raster has both bands of.
        absent: groups of the contract that the raster lacks, wholly or in part, and the model can do without.
        patch: side in pixels of the patches that the raster consists of, none of which sees another; else None.
    """

    name: str
    location: str
    grid: Grid
    tags: Mapping[str, str]
    identity: Mapping[str, Any]
    distances: tuple[DomainDistance, ...]
    missing_groups: tuple[Group, ...]
    patch: int | None

    @property
    def provenance(self) -> dict[str, str]:
        """Return the raster's origin as tags.

        These are its own on area, dates and sources, its name, and a digest. The digest is of its grid, its
        header, and a sample of its pixels (see `_identity`), wherever it lies.
        """
        digest = hashlib.sha256("\n".join(str(self.identity[part]) for part in _CONTENT_KEYS).encode()).hexdigest()
        stated = {tag: self.tags[tag] for tag in PROVENANCE_TAGS if tag in self.tags}
        return stated | {"TALUD_RASTER": self.name, "TALUD_RASTER_DIGEST": digest}

    @property
    def title(self) -> str:
        """Return the title of a map of the raster."""
        area = self.provenance.get("TALUD_AREA", Path(self.name).stem)
        return f"Landslides in {area.replace('_', ' ')}"

    @property
    def synthetic(self) -> bool:
        """Check whether the raster was made by a program."""
        return self.tags.get("TALUD_SYNTHETIC") == "yes"


@dataclass(frozen=True)
class StackReader:
    """An open raster that fits a contract.

    Attributes:
        info: facts about the raster.
        contract: contract that the raster was checked against.
    """

    info: RasterInfo
    contract: Contract
    _dataset: DatasetReader = field(repr=False)
    _indexes: tuple[int | None, ...] = field(repr=False)

    @property
    def grid(self) -> Grid:
        """Return the grid of the raster."""
        return self.info.grid

    def read(self, window: Window) -> NDArray[np.float32]:
        """Return the bands of a window, (bands, height, width), in contract order.

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
                values[rows, columns] = bands.mask_implausible(
                    _read_band(self._dataset, index, inside), band.lowest, band.highest
                )
        return stack

    def has_band(self, name: str) -> bool:
        """Check whether there is a band of that name in talud's unit."""
        if name not in self._dataset.descriptions:
            return False
        stated, expected = self._dataset.units[self._dataset.descriptions.index(name)], bands.band_named(name).unit
        return not stated or not expected or stated.casefold() == expected.casefold()

    def read_band(self, name: str, window: Window) -> NDArray[np.float32]:
        """Return a window of a band that the raster `has`; NaN where invalid."""
        index = self._dataset.descriptions.index(name) + 1
        band = bands.band_named(name)
        return bands.mask_implausible(_read_band(self._dataset, index, window), band.lowest, band.highest)

    def occlusion_masks(self, window: Window) -> dict[str, NDArray[np.bool_]]:
        """Return the masks of cloud, and of radar layover or shadow, by name.

        The names are those of `talud.bands.OCCLUSION_MASKS`; the window lies inside the raster.
        """
        return {name: self.read_band(name, window) > 0 for name in bands.OCCLUSION_MASKS if self.has_band(name)}

    def read_image(self, names: tuple[str, ...], shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """Return bands resampled to (height, width); None where one is missing."""
        present = self._dataset.descriptions
        if not set(names) <= set(present):
            return None
        # Without overviews an average takes every pixel; a VRT's nearest come from the overviews of its sources.
        averages = shape[0] < self.grid.height and self._dataset.overviews(1)
        way = Resampling.average if averages else Resampling.nearest
        return np.stack(
            [_read_band(self._dataset, present.index(name) + 1, None, shape=shape, resampling=way) for name in names]
        )


def small_gdal_cache() -> rasterio.Env:
    """Return an environment with a small GDAL cache."""
    return rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES)


@contextmanager
def open_stack(raster: str | Path, contract: Contract) -> Iterator[StackReader]:
    """Open a path, or whatever else GDAL opens, and check that it fits a contract.

    Raises:
        SourceError: it cannot be read, has no CRS, or is rotated.
        MismatchError: bands, units, pixel size, the way it was made, or its values are not what the contract expects.
    """
    with open_raster(raster) as dataset:
        check_band_count(dataset, raster)
        grid = Grid.of(dataset)
        patch = patch_side(dataset)
        check_grid(grid, contract, raster, patch)
        absent = find_missing_groups(dataset, contract)
        present = tuple(band for band in contract.input.bands if band.group not in absent)
        indexes = find_band_indexes(dataset, contract, present, raster)
        check_blocks(dataset, indexes, raster)
        check_units(dataset, indexes, present, raster)
        check_processing(dataset.tags(), contract, present, raster)
        pixels, samples = hashlib.sha256(), [_sample(dataset, index) for index in indexes]
        for sample, band in zip(samples, present, strict=True):
            pixels.update(sample.tobytes())
            check_band_values(sample, band, raster)
        for index, description in enumerate(dataset.descriptions, start=1):
            if description in bands.OCCLUSION_MASKS:
                pixels.update(_sample(dataset, index).tobytes())
        name = _name(raster)
        info = RasterInfo(
            name=name,
            location=str(Path(raster).absolute() if Path(raster).exists() else raster),
            grid=grid,
            tags=dataset.tags(),
            identity=_raster_identity(name, dataset, pixels.hexdigest()),
            distances=_distances(dataset, indexes, samples, present, contract),
            missing_groups=absent,
            patch=patch,
        )
        places = {band.name: index for band, index in zip(present, indexes, strict=True)}
        numbers = tuple(places.get(name) for name in contract.input.band_names)
        yield StackReader(info, contract, dataset, numbers)


def _name(raster: str | Path) -> str:
    """Return a raster's name without folders.

    The query of an address is left out as well, since it may hold a signature.
    """
    text = str(raster)
    address = _ADDRESS.match(text)
    return (text.split("?", maxsplit=1)[0] if address else text).rsplit("/", 1)[-1]


def find_mismatch(raster: str | Path, contract: Contract) -> str | None:
    """Return the reason why a raster does not fit a contract; None where it does.

    Raises:
        SourceError: it cannot be read, has no CRS, or is rotated.
    """
    try:
        with open_stack(raster, contract):
            return None
    except MismatchError as error:
        return str(error).removeprefix(f"{raster}: ")


def _raster_identity(name: str, dataset: DatasetReader, pixels: str) -> dict[str, Any]:
    """Return facts by which a raster is recognised, wherever it lies.

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
    """Read a band as float32 in physical units, NaN where it is invalid."""
    # A value that overflows is implausible.
    with translate_read_errors(dataset.name), np.errstate(over="ignore", invalid="ignore"):
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
            valid = read_validity(dataset, (index,), window, shape)[0] & read_alpha_mask(dataset, alpha, window, shape)
            values[~valid] = np.nan
        return values * np.float32(dataset.scales[index - 1]) + np.float32(dataset.offsets[index - 1])


def _sample(dataset: DatasetReader, index: int) -> NDArray[np.float32]:
    return _read_band(
        dataset, index, None, shape=(min(dataset.height, MAX_SAMPLE_SIDE), min(dataset.width, MAX_SAMPLE_SIDE))
    )


def _distances(
    dataset: DatasetReader,
    indexes: tuple[int, ...],
    samples: list[NDArray[np.float32]],
    present: tuple[BandContract, ...],
    contract: Contract,
) -> tuple[DomainDistance, ...]:
    """Return the distances of bands and their differences from the training areas.

    Where the sample is not the whole raster, it may come from overviews, whose averages spread less than pixels do:
    from its valid part, a few places are then chosen at which the pixels themselves are read.
    """
    pixels = samples
    if samples[0].shape != dataset.shape:
        windows = _sample_windows(np.logical_and.reduce([~np.isnan(sample) for sample in samples]), dataset.shape)
        read = [[_read_band(dataset, index, window).ravel() for index in indexes] for window in windows]
        pixels = [np.concatenate(parts) for parts in zip(*read, strict=True)]
    read_of = {band.name: (values, band) for values, band in zip(pixels, present, strict=True)}
    return (
        *(
            DomainDistance.of(*read_of[name]) if name in read_of else DomainDistance(name, None, None)
            for name in contract.input.band_names
        ),
        *(
            DomainDistance.between(read_of[one.bands[0]], read_of[one.bands[1]], one)
            for one in contract.input.differences
            if read_of.keys() >= set(one.bands)
        ),
    )


def _sample_windows(valid: NDArray[np.bool_], shape: tuple[int, int]) -> list[Window]:
    """Return blocks of a raster, spread evenly over the valid pixels of its sample."""
    rows, columns = np.nonzero(valid if valid.any() else np.ones_like(valid))
    places = int(np.clip(math.prod(shape) // (3 * BLOCK_SIZE) ** 2, *SAMPLE_BLOCK_LIMITS))
    chosen = ((np.arange(places) + 0.5) * len(rows) / places).astype(int)
    scale = np.array(shape) / valid.shape
    corners = {
        tuple((np.array((rows[one], columns[one])) * scale // BLOCK_SIZE * BLOCK_SIZE).astype(int).tolist())
        for one in chosen
    }
    return [
        Window(left, top, min(BLOCK_SIZE, shape[1] - left), min(BLOCK_SIZE, shape[0] - top))
        for top, left in sorted(corners)
    ]
