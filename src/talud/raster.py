"""Rasters on disk: Cloud-Optimised GeoTIFFs that appear only when they are whole."""

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

PATCH_TAG = "TALUD_PATCH"  # of a patch stack: the side in pixels of the patches that it consists of
_ALPHA_NAME = re.compile(r"\b(?:alpha|opacity|transparency)\b")
MAX_BANDS = 1000  # of a raster; GDAL's time for one of them grows with their number
ORIGIN_TAG = "TALUD_ORIGIN"  # of a stack that talud map made: what it was made of
BLOCK_SIZE = 512  # pixels a side of a block on disk
NETWORK_TIMEOUTS = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",  # seconds
    "GDAL_HTTP_LOW_SPEED_TIME": "15",  # seconds at less than the next
    "GDAL_HTTP_LOW_SPEED_LIMIT": "100",  # bytes a second; a limit on the whole answer would punish slow networks
    "GDAL_HTTP_MAX_RETRY": "2",  # after what passes: too many requests, a gateway that is away
    "GDAL_HTTP_RETRY_DELAY": "1",  # seconds before the first, more before those that follow
}


@dataclass(frozen=True)
class Layout:
    """The properties of a raster, apart from its grid and pixels.

    Attributes:
        bands: the name of each band.
        units: the unit of each band, or empty.
        tags: the tags of the dataset, such as a map's lineage.
        colours: class value → (red, green, blue, alpha) for a one-band class raster, or empty.
        overviews: how GDAL makes the overviews: "average" for quantities, "mode" or "nearest" for classes.
    """

    dtype: str
    nodata: float | None
    bands: Sequence[str]
    units: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)
    overviews: str = "average"


def patch_side(dataset: DatasetReader) -> int | None:
    """Return the side in pixels of the patches that a raster consists of.

    None for a raster that is one image. No patch may see another one.

    Raises:
        SourceError: its tag says what cannot be.
    """
    stated = dataset.tags().get(PATCH_TAG)
    if stated is None:
        return None
    side = int(stated) if re.fullmatch("[1-9][0-9]{0,5}", stated) else 0
    if not side or dataset.width % side or dataset.height % side:
        raise SourceError(
            f"{dataset.name}: its tag {PATCH_TAG} says that it consists of patches of {stated[:20]} pixels a side, but "
            f"it has {dimensions(dataset.width, dataset.height)}; run talud stack (or dvc repro) again"
        )
    return side


@contextmanager
def translate_read_errors(path: str | Path) -> Iterator[None]:
    """Raise a SourceError for anything that GDAL cannot read inside the block.

    Raises:
        SourceError: a read failed.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:  # GDAL's own error comes through where masks are read
        raise SourceError(f"{path}: cannot be read as a raster: {first_line(error.__cause__ or error)}") from error


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open any raster that GDAL reads.

    It may be a path, a VRT, `/vsicurl/https://…`, `/vsizip/…`, `/vsis3/…` or `https://…`.

    Raises:
        SourceError: it cannot be opened, or a read inside the block fails (a truncated file, say).
    """
    with translate_read_errors(path), rasterio.Env(**_default_timeouts()):
        # rasterio shows a traceback where GDAL says of a damaged file what is not UTF-8.
        with warnings.catch_warnings(), stderr_suppressed():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `Grid.of` says it in an error
            try:
                dataset = rasterio.open(path)
            except UnicodeError as error:  # rasterio speaks UTF-8 alone; Windows of old did not
                advice = "rename it, or set PYTHONUTF8=1"
                raise SourceError(f"{path}: its name, or one within it, is not UTF-8; {advice}") from error
        with dataset, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", NodataShadowWarning
            )  # alpha is read beside nodata values, see `read_alpha_mask`
            yield dataset


def alpha_bands(dataset: DatasetReader, named: Collection[int] = ()) -> tuple[int, ...]:
    """Return the numbers of the alpha bands of a raster.

    They are found by description or colour interpretation.

    GDAL calls any fourth band of 8 bits alpha. A band with another description, or named otherwise by the user, does
    not count.

    Args:
        dataset: an open raster.
        named: numbers of bands that are known to be something else.
    """
    found = []
    for number, (text, meaning) in enumerate(zip(dataset.descriptions, dataset.colorinterp, strict=True), start=1):
        described = (text or "").strip().casefold()
        opaque = bool(_ALPHA_NAME.search(described)) if described else meaning is ColorInterp.alpha
        found += [number] if opaque and number not in named else []
    return tuple(found)


def masked_by_alpha(dataset: DatasetReader, index: int) -> bool:
    """Check whether GDAL takes the mask of a band from an alpha band."""
    return MaskFlags.alpha in dataset.mask_flag_enums[index - 1]


def read_validity(
    dataset: DatasetReader, indexes: Sequence[int], window: Window | None = None, shape: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Return the validity of bands by nodata values and mask files.

    Alpha bands are ignored; the array is (bands, height, width).
    """
    valid = []
    for index in indexes:
        mask = dataset.read_masks(index, window=window, out_shape=shape)
        valid.append((mask > 0) | masked_by_alpha(dataset, index))
    return np.stack(valid)


def read_alpha_mask(
    dataset: DatasetReader, alpha: Sequence[int], window: Window | None = None, shape: tuple[int, int] | None = None
) -> NDArray[np.bool_] | np.bool_:
    """Return the pixels where no band of `alpha` is wholly transparent.

    The array is (height, width); just True without such a band.

    GDAL itself looks for alpha in files of two or four bands alone, and not beside a nodata value.
    """
    opaque = [dataset.read(number, window=window, out_shape=shape) > 0 for number in alpha]
    return np.logical_and.reduce(opaque) if opaque else np.True_


def _default_timeouts() -> dict[str, str]:
    """Return GDAL's network timeouts that the user has not set.

    Without them it waits for minutes, or for ever.
    """
    return {option: value for option, value in NETWORK_TIMEOUTS.items() if get_gdal_config(option) is None}


@contextmanager
def write_cog(path: Path, grid: Grid, layout: Layout) -> Iterator[DatasetWriter]:
    """Yield a tiled raster that becomes a Cloud-Optimised GeoTIFF at the end.

    It is filled window by window.

    After an error nothing is left, and an earlier file at `path` is untouched.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_replace(path) as cog:
        scratch = cog.with_name("scratch.tif")
        try:
            writer = rasterio.open(scratch, "w", **_profile(grid, layout))
            try:
                _describe(writer, layout)
                yield writer
            finally:
                with stderr_suppressed():  # libtiff tells of a full disk on stderr as well
                    writer.close()
            with stderr_suppressed():
                rasterio.shutil.copy(
                    scratch,
                    cog,
                    driver="COG",
                    blocksize=BLOCK_SIZE,
                    compress="DEFLATE",
                    level=1,  # 2 to 10 % larger than by default, in less than half of the time
                    predictor="YES",
                    num_threads="ALL_CPUS",  # the file's bytes do not depend on it
                    overview_resampling=layout.overviews,
                    bigtiff="IF_SAFER",
                )
                with rasterio.open(cog) as dataset:
                    check_readable(dataset)  # GDAL may close a file on a full disk without a word, and leave it short
        except (RasterioError, CPLE_BaseError, UnicodeError) as error:
            free = shutil.disk_usage(cog.parent).free // 10**6
            reason = first_line(error.__cause__ or error)
            raise OutputError(f"{path}: cannot be written: {reason} ({free} MB are free there)") from error


def check_readable(dataset: DatasetReader) -> None:
    """Read every block of the full resolution, to know that the file is whole.

    Raises:
        RasterioError, CPLE_BaseError: it is not.
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
