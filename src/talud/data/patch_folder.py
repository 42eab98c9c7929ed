"""Folders of square images and their masks.

Images and masks are PNG, TIFF, or HDF5 in the layout of Landslide4Sense (keys `img`, rows × columns × channels, and
`mask`). They are paired by name: `0012.png` in both folders, or `image_12.h5` and `mask_12.h5`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyogrio
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.contract import Contract
from talud.data import band_names, masks, sources
from talud.data.band_names import BandDescriptions, BandNumbers
from talud.errors import MismatchError, ParamsError, SourceError
from talud.files import md5
from talud.metrics import UNKNOWN
from talud.params import PatchData
from talud.text import counted, dimensions
from talud.vector import open_vector

if TYPE_CHECKING:
    import h5py

_HDF5_SUFFIXES = frozenset({".h5", ".hdf5"})
IMAGE_SUFFIXES = frozenset({".png", ".tif", ".tiff"}) | _HDF5_SUFFIXES
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_COLOURS = ("red", "green", "blue")
MAX_PATCH_SIDE = 2048  # side in pixels; a larger image should be an area of rasters
_MAX_HDF5_BYTES = 1 << 29  # size of an uncompressed HDF5 image, which a file of a few kB may exceed


@dataclass(frozen=True)
class ImageMaskPair:
    """An image and its mask, which may be missing.

    Attributes:
        name: common part of both names: the stem, without `image_`, `img_` or `mask_`.
        image: path of the image.
        mask: path of the mask; None if there is none.
    """

    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class PatchFolder:
    """Patches of a folder, ordered by number.

    Attributes:
        pairs: images and masks; at least one pair.
        data: bands of the images' channels, and size of a pixel.
        side: side of a patch in pixels.
        index: path of the table that selects the patches, if there is one.
    """

    pairs: tuple[ImageMaskPair, ...]
    data: PatchData
    side: int
    index: Path | None = None

    @classmethod
    def find(cls, folder: Path, data: PatchData) -> PatchFolder:
        """Find and check the patches of a folder.

        All images must be squares of one size with all bands.

        Args:
            folder: folder that contains images, masks and index.
            data: locations within the folder, filter of the index, and channel numbers of the bands.

        Raises:
            SourceError: A file is missing, cannot be read, or does not fit the others.
        """
        if not folder.is_dir():
            raise SourceError(f"{folder}: no such folder; put the patches there (dvc pull, if DVC tracks them)")
        images = _files_by_name(folder, data.images)
        if not images:
            raise SourceError(f"{folder / data.images}: has no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        masks = _files_by_name(folder, data.masks)
        if masks and not masks.keys() & images.keys():
            image, mask = next(iter(images.values())), next(iter(masks.values()))
            raise SourceError(
                f"{folder}: no mask has the name of an image ({image.name}, {mask.name}); pairs have names such as "
                "image_12 and mask_12, or 12 and 12"
            )
        index = folder / data.index if data.index else None
        names = _names_in_index(index, data.where, images) if index else sorted(images, key=_sort_key)
        pairs = tuple(ImageMaskPair(name, images[name], masks.get(name)) for name in names)
        data = _number_bands(pairs, data)
        return cls(pairs, data, _common_side(pairs, data), index)

    @property
    def unit(self) -> str:
        """Unit of the values: 1 or DN.

        HDF5 files have ratios, images have digital numbers.
        """
        return "1" if self.pairs[0].image.suffix.lower() in _HDF5_SUFFIXES else "DN"

    @property
    def labelled_count(self) -> int:
        """Number of patches with a mask."""
        return sum(pair.mask is not None for pair in self.pairs)

    @property
    def fingerprints(self) -> dict[str, str]:
        """MD5s of images, masks and index."""
        found = {"images": _digest(pair.image for pair in self.pairs)}
        if self.labelled_count:
            found["masks"] = _digest(pair.mask for pair in self.pairs if pair.mask)
        return found | ({"index": md5(self.index)} if self.index else {})

    @property
    def files(self) -> list[Path]:
        """Paths of images, masks and index."""
        found = [path for pair in self.pairs for path in (pair.image, pair.mask) if path]
        return found + ([self.index] if self.index else [])

    def read(self, pair: ImageMaskPair) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read a patch and its mask.

        Returns:
            The bands in the order of `data.bands`, float32 (bands, side, side), NaN where any of them is invalid; and
                the mask, uint8 (side, side): 1 landslide, 0 background, 255 unknown. Without a mask file all pixels are
                unknown.

        Raises:
            SourceError: A file cannot be read or has another size, or the mask is not a mask.
        """
        image = _read_image(pair.image, list(self.data.bands.values()), self.side)
        if pair.mask is None:
            return image, np.full((self.side, self.side), UNKNOWN, np.uint8)
        return image, _read_mask(pair.mask, self.side)


def _files_by_name(folder: Path, place: str) -> dict[str, Path]:
    """Return images or masks by their common name."""
    found: dict[str, Path] = {}
    try:
        paths = sorted((folder / place).iterdir() if (folder / place).is_dir() else folder.glob(place))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise SourceError(f"{folder}: '{place}' is neither a folder in it nor a pattern: {error}") from error
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        twin = found.setdefault(_patch_name(path.stem), path)
        if twin != path:
            raise SourceError(f"{path} and {twin}: both are named as patch {_patch_name(path.stem)}; keep one")
    return found


def _patch_name(stem: str) -> str:
    return re.sub(r"^(image|img|mask)[_-]?(?=.)", "", stem, flags=re.IGNORECASE)


def _sort_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key with 9 before 10."""
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
    return parts, name


def _names_in_index(index: Path, where: str | None, images: dict[str, Path]) -> list[str]:
    """Return the patch names in a table's selected rows."""
    clause = f" with the filter {where!r}" if where else ""
    with open_vector(index, f" as a table{clause}") as whole:
        table = pyogrio.read_dataframe(whole, where=where, read_geometry=False)
    if not table.shape[1]:
        raise SourceError(f"{index}: has no column; the first one must contain the names of the patches")
    names = list(dict.fromkeys(_patch_name(str(stem)) for stem in table.iloc[:, 0]))
    if not names:
        raise SourceError(f"{index}: no row fits {where!r}" if where else f"{index}: has no row")
    for name in names:
        if name not in images:
            raise SourceError(f"{index}: names patch '{name[:80]}', which is not among the {len(images)} images")
    return sorted(names, key=_sort_key)


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        digest.update(f"{path.name} {md5(path)}\n".encode())
    return digest.hexdigest()


def _number_bands(pairs: tuple[ImageMaskPair, ...], data: PatchData) -> PatchData:
    """Set channel numbers of bands by description.

    Numbers that the user gives are kept.

    Raises:
        SourceError: The images do not describe their bands, or in different ways.
    """
    first = pairs[0].image
    if "bands" in data.model_fields_set or first.suffix.lower() in _HDF5_SUFFIXES:
        return data
    taken: dict[tuple[str, ...], BandNumbers] = {}
    for pair in pairs:
        if pair.image.suffix.lower() in _HDF5_SUFFIXES:
            continue  # `_common_side` raises an error
        with sources.open_source(pair.image) as dataset:
            file = BandDescriptions.of(dataset)
        if file.descriptions not in taken:
            taken[file.descriptions] = band_names.find_optical_bands(
                file, tuple(data.bands), data.bands, "patches.bands"
            )
        if taken[file.descriptions].numbers != next(iter(taken.values())).numbers:
            raise SourceError(
                f"{pair.image}: describes its bands as {file.summary}, in another order than {first.name}; "
                "write all images in one order"
            )
    return data.model_copy(update={"bands": dict(next(iter(taken.values())).numbers)})


def _common_side(pairs: tuple[ImageMaskPair, ...], data: PatchData) -> int:
    """Return the side of all images after comparing them."""
    first, side = pairs[0].image, 0
    for pair in pairs:
        if (pair.image.suffix.lower() in _HDF5_SUFFIXES) != (first.suffix.lower() in _HDF5_SUFFIXES):
            raise SourceError(f"{pair.image} and {first.name}: HDF5 and images have different scales; keep one")
        height, width, channels = _image_shape(pair.image)
        if height != width or not 0 < height <= MAX_PATCH_SIDE:
            raise SourceError(
                f"{pair.image}: has {dimensions(width, height)}; a patch is a square of at most {MAX_PATCH_SIDE}"
            )
        side = side or height
        if height != side:
            raise SourceError(f"{pair.image}: has {height} pixels a side, but {first.name} has {side}; all need one")
        for band, channel in data.bands.items():
            if channel > channels:
                raise SourceError(
                    f"{pair.image}: has {counted(channels, 'channel')}, but {band} has the number {channel}"
                )
    return side


def _image_shape(path: Path) -> tuple[int, int, int]:
    """Return rows, columns and channels of an image."""
    if path.suffix.lower() in _HDF5_SUFFIXES:
        with _open_hdf5(path, "img", 3) as values:
            height, width, channels = values.shape
            return int(height), int(width), int(channels)
    with sources.open_source(path) as dataset:
        return dataset.height, dataset.width, dataset.count


def _read_image(path: Path, channels: list[int], side: int) -> NDArray[np.float32]:
    if path.suffix.lower() in _HDF5_SUFFIXES:
        # Values outside the range of float32 are invalid.
        with _open_hdf5(path, "img", 3) as values, np.errstate(over="ignore", invalid="ignore"):
            pixels = np.stack([np.asarray(values[..., channel - 1], np.float32) for channel in channels])
    else:
        with sources.open_source(path) as dataset:
            pixels = sources.read_values(dataset, channels, _full_window(dataset)).astype(np.float32)
    _check_side(path, pixels.shape[1:], side)
    pixels[:, ~np.isfinite(pixels).all(axis=0)] = np.nan
    return pixels


def _read_mask(path: Path, side: int) -> NDArray[np.uint8]:
    if path.suffix.lower() in _HDF5_SUFFIXES:
        with _open_hdf5(path, "mask", 2) as dataset:
            values = np.asarray(dataset[...], np.float64)
        classes = masks.classify_values(path, values, np.isfinite(values))
    else:
        classes = masks.read_classes(path)
    _check_side(path, classes.shape, side)
    return classes


def _full_window(dataset: DatasetReader) -> Window:
    return Window(0, 0, dataset.width, dataset.height)


def _check_side(path: Path, shape: tuple[int, ...], side: int) -> None:
    if shape != (side, side):
        raise SourceError(f"{path}: has {dimensions(shape[1], shape[0])}, but the patches have {side} × {side} pixels")


@contextmanager
def _open_hdf5(path: Path, key: str, dimensions: int) -> Iterator[h5py.Dataset]:
    """Open a numeric data set of an HDF5 file.

    Raises:
        SourceError: The file cannot be read, or has no such data set.
    """
    try:
        import h5py
    except ImportError as error:
        raise SourceError(f"{path}: HDF5 is read by h5py, which is not installed; pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            values = file.get(key)
            if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(values, h5py.Dataset):
                raise SourceError(f"{path}: has no data under '{key}'; it has: {', '.join(file)[:200] or 'nothing'}")
            if values.dtype.kind not in "biuf" or values.ndim != dimensions:
                raise SourceError(f"{path}: '{key}' must be an array of numbers with {dimensions} dimensions")
            if values.external or values.is_virtual:
                raise SourceError(f"{path}: the data under '{key}' are in another file; copy them into this one")
            if values.nbytes > _MAX_HDF5_BYTES:
                raise SourceError(f"{path}: '{key}' has {' × '.join(map(str, values.shape))} values, more than a patch")
            yield values
    except (OSError, RuntimeError, KeyError, ValueError, UnicodeError) as error:
        raise SourceError(f"{path}: cannot be read as HDF5: {' '.join(str(error).split())}") from error


def find_patches(folder: Path, contract: Contract, bands: Mapping[str, int] | None) -> PatchFolder:
    """Find patches with their bands in contract order.

    Args:
        folder: folder with images and masks.
        contract: contract of the model that reads them.
        bands: band name → channel number. Default: the names in the first image.

    Raises:
        SourceError: The folder has no patches, or one cannot be read.
        ParamsError: A channel number is less than 1.
        MismatchError: The images lack a band of the contract, or do not name their channels.
    """
    for name, number in (bands or {}).items():
        if number < 1:
            raise ParamsError(f"band {name} has channel number {number}, but channels are numbered from 1")
    if bands is None:
        first = PatchFolder.find(folder, _patch_data({contract.input.band_names[0]: 1})).pairs[0].image
        bands = _image_bands(first)
    missing = [name for name in contract.input.band_names if name not in bands]
    if missing:
        raise MismatchError(
            f"{folder}: has no band {', '.join(missing)}; it has {', '.join(bands)}, the model expects "
            f"{', '.join(contract.input.band_names)}; name the channels, for example --bands red=1,green=2,blue=3"
        )
    return PatchFolder.find(folder, _patch_data({name: bands[name] for name in contract.input.band_names}))


def _patch_data(bands: Mapping[str, int]) -> PatchData:
    """Return unchecked patch options for some bands."""
    return PatchData.model_construct(bands=dict(bands))


def _image_bands(image: Path) -> dict[str, int]:
    """Return band name → channel number of an image.

    Three channels without names are red, green and blue.
    """
    if image.suffix.lower() not in _TIFF_SUFFIXES | {".png"}:
        raise MismatchError(f"{image}: has no channel names; give them, for example --bands red=4,green=3,blue=2")
    with sources.open_source(image) as dataset:
        named = {name: number for number, name in enumerate(dataset.descriptions, start=1) if name}
        count = sources.count_bands_without_alpha(dataset)
    if named and image.suffix.lower() in _TIFF_SUFFIXES:
        return named
    if count != len(_COLOURS):
        raise MismatchError(
            f"{image}: has {counted(count, 'channel')} without names; give them, for example "
            "--bands red=3,green=2,blue=1"
        )
    return {name: number for number, name in enumerate(_COLOURS, start=1)}
