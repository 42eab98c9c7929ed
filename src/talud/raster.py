"""Raster files: opening, validity, and writing of Cloud-Optimised GeoTIFFs."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.env import get_gdal_config
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window

from talud.errors import OutputError, SourceError
from talud.files import atomic_replace
from talud.grid import Grid
from talud.process import stderr_suppressed
from talud.text import dimensions, first_line

# Tag of a patch stack: the side of its patches in pixels.
PATCH_TAG = "TALUD_PATCH"
# Tag of a stack of padded patches: side in pixels of the part of a cell that its patch covers, from the upper left.
CONTENT_TAG = "TALUD_PATCH_CONTENT"
# Tag of a stack of resampled patches: their own pixel size, in metres.
SOURCE_RESOLUTION_TAG = "TALUD_SOURCE_RESOLUTION"
PARTS_TAG = "TALUD_PATCH_PARTS"  # numbers of training, validation and test patches, in that order, such as "60 20 20"
# Tag of a stack that `talud map` made: its sources and options.
ORIGIN_TAG = "TALUD_ORIGIN"
# Highest number of bands of a raster; GDAL's time to read a band grows with it.
MAX_BANDS = 1000
# Side of a block on disk in pixels.
BLOCK_SIZE = 512
# GDAL's network settings, in seconds, bytes per second and retries. A timeout for the whole response would fail on slow
# networks. Retries follow temporary failures: too many requests, or a gateway that is not available.
NETWORK_TIMEOUTS = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": "15",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "100",
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "1",
}
_ALPHA_NAME = re.compile(r"\b(?:alpha|opacity|transparency)\b")


@dataclass(frozen=True)
class Layout:
    """Properties of a raster apart from its grid and pixels.

    Attributes:
        dtype: data type of the pixels.
        nodata: nodata value, or None.
        bands: name of each band.
        units: unit of each band; may be empty.
        tags: tags of the dataset, such as a map's lineage.
        colours: class value → (red, green, blue, alpha) for a class raster of one band; may be empty.
        overviews: GDAL's resampling of overviews: "average" for quantities, "mode" or "nearest" for classes.
    """

    dtype: str
    nodata: float | None
    bands: Sequence[str]
    units: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)
    overviews: str = "average"


def patch_side(dataset: DatasetReader) -> int | None:
    """Return the side of a patch stack's patches in pixels.

    The result is None for a raster that is a single image.

    Raises:
        SourceError: The tag contradicts the size of the raster.
    """
    stated = dataset.tags().get(PATCH_TAG)
    if stated is None:
        return None
    side = int(stated) if re.fullmatch("[1-9][0-9]{0,5}", stated) else 0
    if not side or dataset.width % side or dataset.height % side:
        raise SourceError(
            f"{dataset.name}: its tag {PATCH_TAG} states patches of {stated[:20]} pixels a side, but "
            f"it has {dimensions(dataset.width, dataset.height)}; run talud stack (or dvc repro) again"
        )
    return side


def patch_content(tags: Mapping[str, str], side: int, name: str | Path) -> int:
    """Return the side in pixels of a patch without its padding.

    Args:
        tags: tags of a patch stack.
        side: result of `patch_side`.
        name: name of the stack, for the message.

    Raises:
        SourceError: The tag is not valid.
    """
    stated = tags.get(CONTENT_TAG, str(side))
    content = int(stated) if re.fullmatch("[1-9][0-9]{0,5}", stated) else 0
    if not 0 < content <= side:
        raise SourceError(
            f"{name}: its tag {CONTENT_TAG} is {stated[:20]!r}, but its patches have {side} pixels a side; run talud "
            "stack (or dvc repro) again"
        )
    return content


def patch_parts(dataset: DatasetReader) -> tuple[int, int, int] | None:
    """Return the numbers of training, validation and test patches.

    The result is None if the patches have no given split.

    Raises:
        SourceError: The tag is not valid.
    """
    stated = dataset.tags().get(PARTS_TAG)
    if stated is None:
        return None
    found = re.fullmatch("([0-9]{1,9}) ([0-9]{1,9}) ([0-9]{1,9})", stated)
    if not found:
        raise SourceError(
            f"{dataset.name}: its tag {PARTS_TAG} is {stated[:40]!r}; run talud stack (or dvc repro) again"
        )
    training, validation, test = map(int, found.groups())
    return training, validation, test


@contextmanager
def translate_read_errors(path: str | Path) -> Iterator[None]:
    """Turn each GDAL error in the block into a SourceError.

    Args:
        path: path for the message.

    Raises:
        SourceError: A read failed.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        # rasterio does not translate GDAL's errors when it reads masks.
        raise SourceError(f"{path}: cannot be read as a raster: {first_line(error.__cause__ or error)}") from error


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open any raster that GDAL reads.

    Args:
        path: a file, a VRT, `/vsicurl/https://…`, `/vsizip/…`, `/vsis3/…` or `https://…`.

    Raises:
        SourceError: The raster cannot be opened, or a read in the block fails, for example of a truncated file.
    """
    with translate_read_errors(path), rasterio.Env(**_default_timeouts()):
        # rasterio prints a traceback if GDAL's message on a damaged file is not UTF-8.
        with warnings.catch_warnings(), stderr_suppressed():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `Grid.of` raises an error instead
            try:
                dataset = rasterio.open(path)
            except UnicodeError as error:
                # rasterio supports only UTF-8.
                advice = "rename it, or set PYTHONUTF8=1"
                raise SourceError(f"{path}: its name, or one within it, is not UTF-8; {advice}") from error
        with dataset, warnings.catch_warnings():
            # Alpha is read in addition to nodata values, see `read_alpha_mask`.
            warnings.simplefilter("ignore", NodataShadowWarning)
            yield dataset


def alpha_bands(dataset: DatasetReader, named: Collection[int] = ()) -> tuple[int, ...]:
    """Return the numbers of a raster's alpha bands.

    A band is alpha by its description, or by its colour interpretation if it has no description. GDAL interprets any
    fourth band of 8 bits as alpha.

    Args:
        dataset: open raster.
        named: numbers of bands to which the user has given another meaning.
    """
    found = []
    for number, (text, meaning) in enumerate(zip(dataset.descriptions, dataset.colorinterp, strict=True), start=1):
        described = (text or "").strip().casefold()
        opaque = bool(_ALPHA_NAME.search(described)) if described else meaning is ColorInterp.alpha
        found += [number] if opaque and number not in named else []
    return tuple(found)


def masked_by_alpha(dataset: DatasetReader, index: int) -> bool:
    """Check if a band's mask comes from alpha."""
    return MaskFlags.alpha in dataset.mask_flag_enums[index - 1]


def read_validity(
    dataset: DatasetReader, indexes: Sequence[int], window: Window | None = None, shape: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Read validity from nodata values and mask files.

    Alpha bands are ignored.

    Args:
        dataset: open raster.
        indexes: numbers of the bands.
        window: window to read. Default: the whole raster.
        shape: (height, width) of the result. Default: full resolution.

    Returns:
        Array (bands, height, width), true where valid.
    """
    valid = []
    for index in indexes:
        mask = dataset.read_masks(index, window=window, out_shape=shape)
        valid.append((mask > 0) | masked_by_alpha(dataset, index))
    return np.stack(valid)


def read_alpha_mask(
    dataset: DatasetReader, alpha: Sequence[int], window: Window | None = None, shape: tuple[int, int] | None = None
) -> NDArray[np.bool_] | np.bool_:
    """Read the pixels that no alpha band makes fully transparent.

    GDAL itself detects alpha only in files of two or four bands, and not together with a nodata value.

    Args:
        dataset: open raster.
        alpha: numbers of the alpha bands.
        window: window to read. Default: the whole raster.
        shape: (height, width) of the result. Default: full resolution.

    Returns:
        Array (height, width), true where visible; a scalar True without alpha bands.
    """
    opaque = [dataset.read(number, window=window, out_shape=shape) > 0 for number in alpha]
    return np.logical_and.reduce(opaque) if opaque else np.True_


def _default_timeouts() -> dict[str, str]:
    """Return GDAL's network timeouts that the user has not set.

    Without timeouts, GDAL waits for minutes or without limit.
    """
    return {option: value for option, value in NETWORK_TIMEOUTS.items() if get_gdal_config(option) is None}


@contextmanager
def write_cog(path: Path, grid: Grid, layout: Layout) -> Iterator[DatasetWriter]:
    """Yield a raster that becomes a Cloud-Optimised GeoTIFF.

    After an error no new file is left, and an earlier file at `path` is unchanged.

    Args:
        path: path of the file.
        grid: grid of the raster.
        layout: other properties of the raster.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_replace(path) as cog:
        scratch = cog.with_name("scratch.tif")
        try:
            writer = rasterio.open(scratch, "w", **_profile(grid, layout))
            try:
                _describe(writer, layout)
                yield writer
            finally:
                with stderr_suppressed():  # libtiff reports a full disk on stderr too
                    writer.close()
            with stderr_suppressed():
                rasterio.shutil.copy(
                    scratch,
                    cog,
                    driver="COG",
                    blocksize=BLOCK_SIZE,
                    compress="DEFLATE",
                    level=1,  # files are 2 to 10 % larger than by default, in less than half of the time
                    predictor="YES",
                    num_threads="ALL_CPUS",  # does not change the file's bytes
                    overview_resampling=layout.overviews,
                    bigtiff="IF_SAFER",
                )
                with rasterio.open(cog) as dataset:
                    # GDAL may close a truncated file on a full disk without an error.
                    check_readable(dataset)
        except (RasterioError, CPLE_BaseError, UnicodeError) as error:
            free = shutil.disk_usage(cog.parent).free // 10**6
            reason = first_line(error.__cause__ or error)
            raise OutputError(f"{path}: cannot be written: {reason} ({free} MB free on that disk)") from error


def check_readable(dataset: DatasetReader) -> None:
    """Read all pixels, to check that a file is complete.

    Raises:
        RasterioError, CPLE_BaseError: A block cannot be read.
    """
    for band in dataset.indexes:
        dataset.checksum(band)


def _profile(grid: Grid, layout: Layout) -> dict[str, object]:
    return {
        "driver": "GTiff",
        "crs": grid.crs,
        "transform": grid.transform,
        "height": grid.height,
        "width": grid.width,
        "count": len(layout.bands),
        "dtype": layout.dtype,
        "nodata": layout.nodata,
        "tiled": True,
        "blockxsize": BLOCK_SIZE,
        "blockysize": BLOCK_SIZE,
        "interleave": "band",
        "bigtiff": "IF_SAFER",
        "sparse_ok": False,
    }


def _describe(writer: DatasetWriter, layout: Layout) -> None:
    writer.update_tags(**layout.tags)
    for index, name in enumerate(layout.bands, start=1):
        writer.set_band_description(index, name)
        if layout.units:
            writer.set_band_unit(index, layout.units[index - 1])
    if layout.colours:
        writer.write_colormap(1, dict(layout.colours))
