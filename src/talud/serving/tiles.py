"""Map tiles of rasters in Web Mercator."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from affine import Affine
from cachetools import LRUCache, cached
from morecantile import Tile
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.transform import from_bounds
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window
from rio_tiler.constants import WEB_MERCATOR_TMS
from rio_tiler.reader import read

from talud.errors import SourceError
from talud.grid import Bounds, Grid
from talud.imaging import GAMMA, percentile_limits, rescale
from talud.mapping.raster_checks import check_blocks
from talud.serving.rasters import FileStamp, checked_grid, file_stamp, layer_bands, open_pooled

Layer = Literal["optical", "slope", "elevation", "sar_before", "sar_after", "inventory", "probability"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
TILE_PIXELS = 256  # height and width of a tile
MAX_ZOOM = 24  # pixels of 1 cm
MAX_SLOPE_DEGREES = 60.0  # shown in black, like steeper slopes
_NEAREST_LAYERS = ("inventory", "probability")  # layers without interpolation, because clients use the values
_MERCATOR = CRS.from_epsg(3857)
_SAMPLE_PIXELS = 1024  # largest height and width of a small copy, which also gives the stretch limits
_MAX_READ_PIXELS = 2048  # largest height and width that are read for a tile
_MARGIN_PIXELS = 2  # margin around a tile for interpolation at its edges
_CACHE_BYTES = 128 * 2**20  # for small copies of layers
_MASK_UNKNOWN = 255  # value of unknown pixels in a mask


@dataclass(frozen=True)
class _LayerInfo:
    """Properties that all tiles of a layer share.

    Attributes:
        indexes: band numbers in the file, from 1.
        bounds: west, south, east, north in Web Mercator.
        limits: (low, high) of each band, shown in black and white.
        copy: GeoTIFF with a small copy of the layer; empty if the file has overviews that are small enough.
        max_metres: pixel size in metres of Web Mercator above which the small copy is read.
    """

    indexes: tuple[int, ...]
    bounds: Bounds
    limits: tuple[tuple[float, float], ...]
    copy: bytes
    max_metres: float

    @property
    def size(self) -> int:
        """Approximate size in memory, in bytes."""
        return len(self.copy) + 1024


def render_tile(path: Path, layer: Layer, z: int, x: int, y: int) -> bytes | None:
    """Return a tile as PNG; None if it would be empty.

    Args:
        path: path of the raster, of the mask (layer inventory), or of a map's probability (layer probability).
        layer: layer to show.
        z: zoom level.
        x: column, counted from the west.
        y: row, counted from the north.

    Raises:
        SourceError: the raster cannot be read, or has no such layer.
    """
    if z > MAX_ZOOM:
        return None
    known = file_stamp(path)
    info = _layer_info(known, layer)
    bounds = WEB_MERCATOR_TMS.xy_bounds(Tile(x, y, z))
    west, south, east, north = info.bounds
    pixel = (bounds.right - bounds.left) / TILE_PIXELS
    outside = bounds.left >= east or bounds.right <= west or bounds.bottom >= north or bounds.top <= south
    if outside or max(east - west, north - south) < pixel:
        return None
    with _source(known, info, pixel) as (dataset, indexes):
        values = _warp(
            dataset, indexes, bounds, Resampling.nearest if layer in _NEAREST_LAYERS else Resampling.bilinear
        )
    if values is None:
        return None
    visible: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(values))
    if layer == "inventory":
        visible &= values[0] != _MASK_UNKNOWN
    return _png(_RENDERERS[layer](values, info.limits), visible)


@contextmanager
def _source(stamp: FileStamp, info: _LayerInfo, pixel: float) -> Iterator[tuple[DatasetReader, tuple[int, ...]]]:
    """Yield the dataset and band numbers for a pixel size."""
    if info.copy and pixel > info.max_metres:
        with MemoryFile(info.copy) as memory, memory.open() as dataset:
            yield dataset, tuple(range(1, len(info.indexes) + 1))
    else:
        with open_pooled(stamp) as dataset:
            yield dataset, info.indexes


def _warp(
    dataset: DatasetReader, indexes: Sequence[int], bounds: Bounds, resampling: Resampling
) -> NDArray[np.float32] | None:
    """Warp bands to a tile (bands, height, width); None outside the raster.

    Only the given bands are read, from the next finer overview; a warped VRT would warp all bands of the file.
    """
    left, bottom, right, top = transform_bounds(_MERCATOR, dataset.crs, *bounds, densify_pts=21)
    finer = max(min((right - left) / dataset.transform.a, (top - bottom) / -dataset.transform.e) / TILE_PIXELS, 1)
    reduction = 2 ** math.floor(math.log2(finer))  # overviews have powers of two
    height, width = math.ceil(dataset.height / reduction), math.ceil(dataset.width / reduction)
    reduced = dataset.transform * Affine.scale(dataset.width / width, dataset.height / height)
    first_column, first_row = ~reduced * (left, top)
    last_column, last_row = ~reduced * (right, bottom)
    columns = max(math.floor(first_column) - _MARGIN_PIXELS, 0), min(math.ceil(last_column) + _MARGIN_PIXELS, width)
    rows = max(math.floor(first_row) - _MARGIN_PIXELS, 0), min(math.ceil(last_row) + _MARGIN_PIXELS, height)
    if columns[0] >= columns[1] or rows[0] >= rows[1]:
        return None
    shape = rows[1] - rows[0], columns[1] - columns[0]
    scale = dataset.width / width, dataset.height / height
    window = Window(columns[0] * scale[0], rows[0] * scale[1], shape[1] * scale[0], shape[0] * scale[1])
    image = read(dataset, window=window, height=shape[0], width=shape[1], indexes=indexes, unscale=True).array
    values = np.where(np.ma.getmaskarray(image), np.float32(np.nan), image.data)
    warped = np.full((len(indexes), TILE_PIXELS, TILE_PIXELS), np.nan, np.float32)
    reproject(
        values, warped, src_transform=reduced * Affine.translation(columns[0], rows[0]), src_crs=dataset.crs,
        dst_transform=from_bounds(*bounds, TILE_PIXELS, TILE_PIXELS), dst_crs=_MERCATOR, src_nodata=np.nan,
        dst_nodata=np.nan, resampling=resampling,
    )  # fmt: skip
    return warped


@cached(
    LRUCache(_CACHE_BYTES, getsizeof=lambda info: info.size),
    key=lambda stamp, layer: (stamp, layer),
    condition=threading.Condition(),
)
def _layer_info(stamp: FileStamp, layer: Layer) -> _LayerInfo:
    """Return the cached properties of a layer."""
    with open_pooled(stamp) as dataset:
        grid = checked_grid(dataset)
        if grid.is_local:
            raise SourceError(f"{stamp[0]}: is not georeferenced, so it cannot be shown on a map")
        indexes = _band_indexes(dataset, layer)
        if not indexes:
            raise SourceError(f"{stamp[0]}: has no layer {layer}")
        check_blocks(dataset, indexes, stamp[0])
        bounds = transform_bounds(grid.crs, _MERCATOR, *grid.bounds, densify_pts=21)
        if not all(map(math.isfinite, bounds)):
            raise SourceError(f"{stamp[0]}: is outside the area of Web Mercator")
        reduction = max([1, *dataset.overviews(indexes[0])])
        pixel = max((bounds[2] - bounds[0]) / grid.width, (bounds[3] - bounds[1]) / grid.height) * reduction
        copy = _small_copy(dataset, grid, indexes) if max(grid.shape) > _MAX_READ_PIXELS * reduction else b""
        return _LayerInfo(
            indexes, bounds, _stretch_limits(dataset, layer, indexes), copy, pixel * _MAX_READ_PIXELS / TILE_PIXELS
        )


def _band_indexes(dataset: DatasetReader, layer: Layer) -> tuple[int, ...]:
    if layer in _NEAREST_LAYERS:
        return (1,)
    names = dataset.descriptions
    return tuple(names.index(name) + 1 for name in layer_bands(layer, names))


def _read_sample(dataset: DatasetReader, index: int) -> NDArray[np.float32]:
    """Return a small copy of a band in physical units, NaN where invalid."""
    shape = min(dataset.height, _SAMPLE_PIXELS), min(dataset.width, _SAMPLE_PIXELS)
    band = dataset.read(index, out_shape=shape, masked=True, out_dtype="float32", resampling=Resampling.nearest)
    values: NDArray[np.float32] = band.filled(np.nan)
    return values * np.float32(dataset.scales[index - 1]) + np.float32(dataset.offsets[index - 1])


def _small_copy(dataset: DatasetReader, grid: Grid, indexes: Sequence[int]) -> bytes:
    """Return small copies of bands as a GeoTIFF."""
    values = np.stack([_read_sample(dataset, index) for index in indexes])
    height, width = values.shape[1:]
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=len(values), height=height, width=width, dtype="float32", nodata=np.nan,
            crs=grid.crs, transform=from_bounds(*grid.bounds, width, height), tiled=True, compress="DEFLATE",
        ) as writer:  # fmt: skip
            writer.write(values)
        return bytes(memory.getbuffer())


def _stretch_limits(dataset: DatasetReader, layer: Layer, indexes: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """Return percentiles 2 and 98 of each band.

    SAR bands before and after an event have the same limits.
    """
    if layer in _NEAREST_LAYERS or layer == "slope":
        return ()
    if layer.startswith("sar"):
        polarisation = dataset.descriptions[indexes[0] - 1].partition("_")[0]
        both = [
            dataset.descriptions.index(name) + 1
            for name in (f"{polarisation}_pre", f"{polarisation}_post")
            if name in dataset.descriptions
        ]
        return (percentile_limits(np.concatenate([_read_sample(dataset, index).ravel() for index in both])),)
    return tuple(percentile_limits(_read_sample(dataset, index)) for index in indexes)


_Limits = tuple[tuple[float, float], ...]


def _colours(values: NDArray[np.float32], limits: _Limits) -> NDArray[np.uint8]:
    """Stretch bands from black to white, with a gamma correction."""
    return _to_uint8(np.stack([rescale(*band) for band in zip(values, limits, strict=True)]) ** GAMMA * 255)


def _grey(values: NDArray[np.float32], limits: _Limits) -> NDArray[np.uint8]:
    return _to_uint8(rescale(values, limits[0]) * 255)


def _slope(values: NDArray[np.float32], _: _Limits) -> NDArray[np.uint8]:
    """Show steep slopes dark, as in the quicklook of a map."""
    return _to_uint8(255 - (values / MAX_SLOPE_DEGREES).clip(0, 1) * 255)


def _inventory(values: NDArray[np.float32], _: _Limits) -> NDArray[np.uint8]:
    return _to_uint8(np.where(values == 1, 255, 0))


def _probability(values: NDArray[np.float32], _: _Limits) -> NDArray[np.uint8]:
    return _to_uint8(np.round(values.clip(0, 1) * 254) + 1)


def _to_uint8(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = np.nan_to_num(values).round().astype(np.uint8)
    return whole


_RENDERERS = {
    "optical": _colours,
    "slope": _slope,
    "elevation": _grey,
    "sar_before": _grey,
    "sar_after": _grey,
    "inventory": _inventory,
    "probability": _probability,
}


def _png(picture: NDArray[np.uint8], visible: NDArray[np.bool_]) -> bytes | None:
    """Encode an image as PNG; return None if it is empty."""
    if not visible.any():
        return None
    painted = np.where(visible, picture, 0).astype(np.uint8)
    alpha = np.where(visible, 255, 0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.dstack([*painted, alpha])).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
