"""Rasters in the data folder and uploads: headers, layers and open files."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import rasterio
from cachetools import LRUCache, cached
from pydantic import BaseModel, ConfigDict, Field
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds

from talud.contract import Contract
from talud.errors import SourceError
from talud.grid import Bounds, Grid
from talud.mapping.raster_checks import check_blocks
from talud.mapping.reader import find_mismatch, small_gdal_cache
from talud.serving import raster_paths
from talud.serving.settings import Settings
from talud.text import first_line

WGS84 = "EPSG:4326"
_SUFFIXES = (".tif", ".tiff")
_CACHED_HEADERS = 4096
_MAX_IDLE_DATASETS = 8  # datasets that stay open between requests for tiles
_LAYERS = {  # layer → sets of bands, of which the first that a raster has is shown
    "optical": (("red", "green", "blue"),),
    "slope": (("slope",),),
    "elevation": (("elevation",),),
    "sar_before": (("vv_pre",), ("vh_pre",)),
    "sar_after": (("vv_post",), ("vh_post",)),
}

FileStamp = tuple[str, int, int]  # path, modification time in ns and size in bytes, which identify a file's content


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class RasterHeader(_Frozen):
    """Header of a raster file."""

    bands: Annotated[tuple[str, ...], Field(description="names of the bands; an unnamed band has an empty name")]
    layers: Annotated[
        tuple[str, ...],
        Field(description="optical, slope, elevation, sar_before, sar_after; none if the raster is not georeferenced"),
    ]
    bounds: Annotated[
        Bounds | None, Field(description="west, south, east, north in WGS84; null if the raster is not georeferenced")
    ]
    pixels: Annotated[int, Field(description="height × width")]
    resolution: Annotated[float, Field(description="pixel size in the unit of the CRS")]
    crs: Annotated[str, Field(description="coordinate reference system, such as EPSG:32618")]
    synthetic: Annotated[bool, Field(description="whether the raster is synthetic, made by a program")]


class Raster(RasterHeader):
    """Raster that can be mapped."""

    href: Annotated[str, Field(description="reference to the raster in requests")]
    name: Annotated[str, Field(description="file name")]
    inventory: Annotated[bool, Field(description="whether a mask of known landslides is stored next to the raster")]
    fits: Annotated[tuple[str, ...], Field(description="names of the registered champions that can map the raster")]


def find_rasters(settings: Settings, contracts: Sequence[tuple[str, Contract]] = ()) -> tuple[tuple[Raster, ...], int]:
    """Return the rasters below the data folder, and the number of unreadable ones.

    Args:
        settings: settings of the service.
        contracts: names and contracts of the models that are checked for a fit.
    """
    found, unreadable = [], 0
    for href in _references(settings.data):
        try:
            found.append(describe_raster(href, raster_paths.resolve_raster(href, settings), settings, contracts))
        except SourceError:
            unreadable += 1
    return tuple(found), unreadable


def describe_raster(
    href: str, path: Path, settings: Settings, contracts: Sequence[tuple[str, Contract]] = ()
) -> Raster:
    """Return a raster's header and the models that can map it.

    Raises:
        SourceError: the file cannot be read as a GeoTIFF.
    """
    known = read_header(path)
    digests = [(name, contract, _contract_digest(contract)) for name, contract in contracts]
    fitting = tuple(name for name, contract, digest in digests if _fits(file_stamp(path), digest, contract))
    inventory = has_mask(path, settings)
    return Raster(href=href, name=path.name, inventory=inventory, fits=fitting, **dict(known))


def read_header(path: Path) -> RasterHeader:
    """Return the cached header of a raster.

    A changed file is read again.

    Raises:
        SourceError: the file cannot be read as a GeoTIFF.
    """
    return _read_header(file_stamp(path))


def has_mask(path: Path, settings: Settings) -> bool:
    """Check if a raster has a readable mask next to it."""
    try:
        return raster_paths.find_mask(path, settings) is not None
    except SourceError:
        return False


def layer_bands(layer: str, present: Sequence[str]) -> tuple[str, ...]:
    """Return a layer's band names, or none if they are missing."""
    return next((names for names in _LAYERS.get(layer, ()) if set(names) <= set(present)), ())


def file_stamp(path: Path) -> FileStamp:
    """Return a file's path, modification time and size.

    Raises:
        SourceError: the file cannot be accessed.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise SourceError(f"{path.name}: cannot be read: {error.strerror}") from error
    return str(path), found.st_mtime_ns, found.st_size


def checked_grid(dataset: DatasetReader) -> Grid:
    """Return the grid of a raster, and check its pixel size.

    Raises:
        SourceError: the raster has no grid, or pixels without a size.
    """
    grid = Grid.of(dataset)
    if not grid.pixel_area > 0:
        raise SourceError(f"{dataset.name}: its pixels have no size; check the geotransform")
    return grid


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open a GeoTIFF; other formats are refused.

    Raises:
        SourceError: the file is not a GeoTIFF, or a read in the block fails; the message contains no local folder.
    """
    with _translate_errors(path), _open(path) as dataset:
        yield dataset


@contextmanager
def open_pooled(stamp: FileStamp) -> Iterator[DatasetReader]:
    """Open a GeoTIFF from a pool, where it stays open with its cached blocks.

    Raises:
        SourceError: as for `open_raster`.
    """
    with _translate_errors(stamp[0]):
        with _POOL_LOCK:
            found = next((one for one in reversed(_POOL) if one[0] == stamp), None)
            if found:
                _POOL.remove(found)
        dataset = found[1] if found else _open(stamp[0])
        try:
            yield dataset
        except BaseException:
            dataset.close()
            raise
        with _POOL_LOCK:
            _POOL.append((stamp, dataset))
            spare = _POOL.popleft()[1] if len(_POOL) > _MAX_IDLE_DATASETS else None
        if spare:
            spare.close()


_POOL_LOCK = threading.Lock()
_POOL: deque[tuple[FileStamp, DatasetReader]] = deque()  # idle datasets, the most recently used last


def _open(path: str | Path) -> DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `Grid.of` raises an error instead
        return rasterio.open(path, driver="GTiff")


@contextmanager
def _translate_errors(path: str | Path) -> Iterator[None]:
    """Translate GDAL's errors in the block into `SourceError`."""
    name = Path(path).name
    try:
        with small_gdal_cache():
            yield
    except (RasterioError, CPLE_BaseError, UnicodeError) as error:
        reason = first_line(error.__cause__ or error).replace(str(path), name)
        raise SourceError(f"{name}: cannot be read as a GeoTIFF: {reason}") from error
    except SourceError as error:
        raise SourceError(str(error).replace(str(path), name)) from error


def _references(folder: Path) -> Iterator[str]:
    """Yield the sorted GeoTIFFs in a folder, without masks."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            lower = name.casefold()
            if lower.endswith(_SUFFIXES) and not lower.endswith(raster_paths.MASK_SUFFIX) and not name.startswith("."):
                yield (Path(place) / name).relative_to(folder).as_posix()


@cached(LRUCache(_CACHED_HEADERS), key=lambda stamp: stamp, condition=threading.Condition())
def _read_header(stamp: FileStamp) -> RasterHeader:
    path = stamp[0]
    with open_raster(path) as dataset:
        grid = checked_grid(dataset)
        check_blocks(dataset, dataset.indexes, path)
        bands = tuple(name or "" for name in dataset.descriptions)
        bounds = None if grid.is_local else transform_bounds(grid.crs, WGS84, *grid.bounds, densify_pts=21)
        if bounds and not all(map(math.isfinite, bounds)):
            raise SourceError(f"{path}: is outside the area of {grid.crs}; check the geotransform")
        return RasterHeader(
            bands=bands,
            layers=tuple(layer for layer in _LAYERS if bounds and layer_bands(layer, bands)),
            bounds=bounds,
            pixels=grid.height * grid.width,
            resolution=grid.resolution,
            crs=grid.crs_label,
            synthetic=dataset.tags().get("TALUD_SYNTHETIC") == "yes",
        )


def _contract_digest(contract: Contract) -> str:
    return hashlib.sha256(contract.model_dump_json().encode()).hexdigest()


@cached(LRUCache(8 * _CACHED_HEADERS), key=lambda stamp, digest, _: (stamp, digest), condition=threading.Condition())
def _fits(stamp: FileStamp, digest: str, contract: Contract) -> bool:  # noqa: ARG001 - part of the cache key
    try:
        return find_mismatch(stamp[0], contract) is None
    except SourceError:
        return False
