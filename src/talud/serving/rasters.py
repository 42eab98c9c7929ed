"""Rasters that the service can map: those below its data folder, and uploads."""

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
_CACHED_HEADERS = 4096  # rasters whose headers are kept
_MAX_IDLE_DATASETS = 8  # rasters that stay open between tiles
_LAYERS = {  # layer → the bands of which it is made: the first of these sets that a raster has
    "optical": (("red", "green", "blue"),),
    "slope": (("slope",),),
    "elevation": (("elevation",),),
    "sar_before": (("vv_pre",), ("vh_pre",)),
    "sar_after": (("vv_post",), ("vh_post",)),
}

FileStamp = tuple[str, int, int]  # path, time of change in ns, size in bytes: by which a file is known again


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class RasterHeader(_Frozen):
    """The header of a raster file."""

    bands: Annotated[tuple[str, ...], Field(description="names, in the order of the file; empty where one has none")]
    layers: Annotated[
        tuple[str, ...],
        Field(description="that can be shown: optical, slope, elevation, sar_before, sar_after; none without a place"),
    ]
    bounds: Annotated[
        Bounds | None, Field(description="west, south, east, north, WGS84; null where it has no place on Earth")
    ]
    pixels: Annotated[int, Field(description="height × width")]
    resolution: Annotated[float, Field(description="side of a pixel, in the unit of the CRS")]
    crs: Annotated[str, Field(description="such as EPSG:32618")]
    synthetic: Annotated[bool, Field(description="whether a program made what it shows")]


class Raster(RasterHeader):
    """A raster that may be mapped."""

    href: Annotated[str, Field(description="by which a job names it")]
    name: Annotated[str, Field(description="of the file")]
    inventory: Annotated[bool, Field(description="whether a mask of known landslides lies beside it")]
    fits: Annotated[tuple[str, ...], Field(description="registered champions that can map it")]


def find_rasters(settings: Settings, contracts: Sequence[tuple[str, Contract]] = ()) -> tuple[tuple[Raster, ...], int]:
    """Return the rasters below the data folder, and the number of unreadable ones.

    Args:
        settings: of the agency.
        contracts: of the models, by name, that may fit.
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
    """Return a raster's header and the models that fit it.

    Raises:
        SourceError: it cannot be read as a GeoTIFF.
    """
    known = read_header(path)
    digests = [(name, contract, _contract_digest(contract)) for name, contract in contracts]
    fitting = tuple(name for name, contract, digest in digests if _fits(file_stamp(path), digest, contract))
    inventory = has_mask(path, settings)
    return Raster(href=href, name=path.name, inventory=inventory, fits=fitting, **dict(known))


def read_header(path: Path) -> RasterHeader:
    """Return the header of a raster; an unchanged file is not opened again.

    Raises:
        SourceError: it cannot be read as a GeoTIFF.
    """
    return _read_header(file_stamp(path))


def has_mask(path: Path, settings: Settings) -> bool:
    """Return whether a mask of known landslides lies beside a raster.

    Only masks that may be shown count.
    """
    try:
        return raster_paths.find_mask(path, settings) is not None
    except SourceError:
        return False


def layer_bands(layer: str, present: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a layer's bands; none if the raster lacks the layer."""
    return next((names for names in _LAYERS.get(layer, ()) if set(names) <= set(present)), ())


def file_stamp(path: Path) -> FileStamp:
    """Return the path, time and size that identify a file's content.

    Raises:
        SourceError: it is gone.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise SourceError(f"{path.name}: cannot be read: {error.strerror}") from error
    return str(path), found.st_mtime_ns, found.st_size


def checked_grid(dataset: DatasetReader) -> Grid:
    """Return the grid of a raster after checking its pixel size.

    Raises:
        SourceError: it has none.
    """
    grid = Grid.of(dataset)
    if not grid.pixel_area > 0:
        raise SourceError(f"{dataset.name}: its pixels have no size; is the geotransform right?")
    return grid


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open a GeoTIFF; no other format is read.

    Raises:
        SourceError: it is none, or a read inside the block fails; the message names no folder of this machine.
    """
    with _translate_errors(path), _open(path) as dataset:
        yield dataset


@contextmanager
def open_pooled(stamp: FileStamp) -> Iterator[DatasetReader]:
    """Open a GeoTIFF that stays open, with its unpacked blocks, for the next caller.

    Raises:
        SourceError: as `opened`.
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
_POOL: deque[tuple[FileStamp, DatasetReader]] = deque()  # the one used last is last


def _open(path: str | Path) -> DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `Grid.of` says it in an error
        return rasterio.open(path, driver="GTiff")


@contextmanager
def _translate_errors(path: str | Path) -> Iterator[None]:
    """Translate GDAL's errors inside the block into errors of the file."""
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
    """Yield the GeoTIFFs below a folder, sorted, without masks and hidden files."""
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
            raise SourceError(f"{path}: lies where {grid.crs} has no place on the ground; is the geotransform right?")
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
def _fits(stamp: FileStamp, digest: str, contract: Contract) -> bool:  # noqa: ARG001 - contracts are told apart by it
    try:
        return find_mismatch(stamp[0], contract) is None
    except SourceError:
        return False
