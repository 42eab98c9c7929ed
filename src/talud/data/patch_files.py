"""Patches in image files, and in HDF5 files with channels.

An HDF5 file has the layout of Landslide4Sense: an image under `img`, rows × columns × channels, and a mask under
`mask`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.bands import Group, band_named
from talud.data import masks, sar, sources, terrain
from talud.errors import SourceError
from talud.params import SarUnit

if TYPE_CHECKING:
    import h5py

Layout = Literal["image", "channels", "variables"]
HDF5_SUFFIXES = frozenset({".h5", ".hdf5"})
NETCDF_SUFFIXES = frozenset({".nc", ".nc4"})
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = frozenset({".png"}) | TIFF_SUFFIXES | HDF5_SUFFIXES | NETCDF_SUFFIXES
MAX_HDF5_BYTES = 1 << 29  # size of an uncompressed HDF5 array, which a file of a few kB may exceed


@dataclass(frozen=True)
class PatchShape:
    """Size of a patch.

    Attributes:
        height: rows.
        width: columns.
        channels: number of channels; 0 for files with variables.
        pixel_size: side of a pixel in metres; None if the file has no projected CRS.
        geographic: true if the coordinates of the file are degrees.
    """

    height: int
    width: int
    channels: int
    pixel_size: float | None = None
    geographic: bool = False


def layout_of(path: Path) -> Layout:
    """Return the layout of a file.

    Raises:
        SourceError: The file is HDF5 and cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in NETCDF_SUFFIXES:
        return "variables"
    if suffix not in HDF5_SUFFIXES:
        return "image"
    with open_hdf5(path) as file:
        return "variables" if "img" not in file and "time" in file else "channels"


def shape_of(path: Path) -> PatchShape:
    """Return the shape of an image, or of channels.

    Raises:
        SourceError: The file cannot be read, or its pixels are not squares.
    """
    if path.suffix.lower() in HDF5_SUFFIXES:
        with open_hdf5(path) as file:
            height, width, channels = array_in(file, path, "img", 3).shape
            return PatchShape(int(height), int(width), int(channels))
    with sources.open_source(path) as dataset:
        size = _pixel_size(dataset)
        geographic = bool(dataset.crs and dataset.crs.is_geographic)
        return PatchShape(dataset.height, dataset.width, dataset.count, size, geographic)


def _pixel_size(dataset: DatasetReader) -> float | None:
    if dataset.crs is None or not dataset.crs.is_projected:
        return None
    transform = dataset.transform
    metre = metres_per_unit(dataset.crs)
    if transform.b or transform.d or abs(transform.a + transform.e) > 1e-3 * abs(transform.a) or transform.a <= 0:
        raise SourceError(
            f"{dataset.name}: its pixels are rotated, or not squares; warp it to a north-up grid of square pixels"
        )
    return float(transform.a * metre)


def metres_per_unit(crs: CRS) -> float:
    """Return the length of a unit of a projected CRS in metres."""
    try:
        return float(crs.linear_units_factor[1])
    except RasterioError:  # the CRS does not state its unit
        return 1.0


def read_channels(path: Path, channels: Mapping[str, int], sar_unit: SarUnit | None) -> NDArray[np.float64]:
    """Read the bands of a patch, NaN where invalid.

    Args:
        path: image, or HDF5 file with channels.
        channels: band name → channel number.
        sar_unit: unit of the SAR bands, with which that of the file is compared.

    Returns:
        Values in the order of `channels`, (bands, height, width).

    Raises:
        SourceError: The file cannot be read, or states other units.
    """
    if path.suffix.lower() in HDF5_SUFFIXES:
        with open_hdf5(path) as file:
            values = array_in(file, path, "img", 3)
            return np.stack([np.asarray(values[..., number - 1], np.float64) for number in channels.values()])
    with sources.open_source(path) as dataset:
        _check_units(dataset, channels, sar_unit)
        window = Window(0, 0, dataset.width, dataset.height)
        # Bands of one group are valid together; each group is read separately.
        values = np.empty((len(channels), dataset.height, dataset.width))
        groups = [band_named(name).group for name in channels]
        numbers = list(channels.values())
        for group in dict.fromkeys(groups):
            places = [place for place, other in enumerate(groups) if other is group]
            named = [number for number in numbers if number not in {numbers[place] for place in places}]
            values[places] = sources.read_values(dataset, [numbers[place] for place in places], window, named)
        return values


def _check_units(dataset: DatasetReader, channels: Mapping[str, int], sar_unit: SarUnit | None) -> None:
    for name, number in channels.items():
        if name == "elevation" and not terrain.is_metre(dataset.units[number - 1]):
            raise SourceError(
                f"{dataset.name}: elevation in '{dataset.units[number - 1]}'; convert it to metres, or give it another "
                "name, such as elevation_rescaled"
            )
        stated = sar.stated_unit(dataset, number) if band_named(name).group is Group.SAR else None
        if stated and sar_unit and stated[0] != sar_unit:
            raise SourceError(
                f"{dataset.name}: states {sar.UNIT_NAMES[stated[0]]} for {name} ({stated[1]}), but sar_unit is "
                f"{sar.UNIT_NAMES[sar_unit]}; correct the wrong one"
            )


def stated_sar_unit(path: Path, channels: Mapping[str, int]) -> SarUnit | None:
    """Return the unit that an image states for its SAR bands."""
    numbers = [number for name, number in channels.items() if band_named(name).group is Group.SAR]
    if path.suffix.lower() in HDF5_SUFFIXES or not numbers:
        return None
    with sources.open_source(path) as dataset:
        stated = sar.stated_unit(dataset, numbers[0])
    return stated[0] if stated else None


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a mask: 1 landslide, 0 background, 255 unknown.

    Raises:
        SourceError: The file cannot be read, or is not a mask.
    """
    if path.suffix.lower() not in HDF5_SUFFIXES:
        return masks.read_classes(path)
    with open_hdf5(path) as file:
        values = np.asarray(array_in(file, path, "mask", 2)[...], np.float64)
    return masks.classify_values(path, values, np.isfinite(values))


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 or NetCDF-4 file.

    Raises:
        SourceError: The file cannot be read, within the block too.
    """
    try:
        import h5py
    except ImportError as error:
        raise SourceError(f"{path}: HDF5 is read by h5py, which is not installed; pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, MemoryError) as error:
        raise SourceError(f"{path}: cannot be read as HDF5: {' '.join(str(error).split())}") from error


def array_in(file: h5py.File, path: Path, key: str, *dimensions: int) -> h5py.Dataset:
    """Return a numeric array of an HDF5 file.

    Args:
        file: open file.
        path: its path, for errors.
        key: name of the array.
        dimensions: accepted numbers of dimensions.

    Raises:
        SourceError: The file has no such array, or it is too large to be one of a patch.
    """
    import h5py

    values = file.get(key)
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(values, h5py.Dataset):
        raise SourceError(f"{path}: has no data under '{key}'; it has: {', '.join(file)[:200] or 'nothing'}")
    if values.dtype.kind not in "biuf" or values.ndim not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise SourceError(f"{path}: '{key}' must be an array of numbers with {wanted} dimensions")
    if values.external or values.is_virtual:
        raise SourceError(f"{path}: the data under '{key}' are in another file; copy them into this one")
    chunk = prod(values.chunks or (0,)) * values.dtype.itemsize
    if max(values.nbytes, chunk) > MAX_HDF5_BYTES:
        raise SourceError(f"{path}: '{key}' has {' × '.join(map(str, values.shape))} values, more than a patch")
    return values
