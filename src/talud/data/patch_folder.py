"""Folders of square patches and their masks.

Images and masks are PNG, TIFF, HDF5 in the layout of Landslide4Sense, or NetCDF-4 in that of Sen12Landslides, whose
files hold the mask too. They are paired by name: `0012.png` in both folders, or `image_12.h5` and `mask_12.h5`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talud.bands import Group, band_named
from talud.data import patch_bands, patch_cubes, patch_files
from talud.data.patch_bands import MIN_TERRAIN_SIDE, Channel, PatchBands
from talud.data.patch_channels import number_bands
from talud.data.patch_files import IMAGE_SUFFIXES, NETCDF_SUFFIXES, Layout, PatchShape
from talud.data.patch_index import cube_name, patch_name, select_patches
from talud.data.patches import SPLIT_PARTS, SplitPart
from talud.errors import SourceError, TaludWarning
from talud.files import md5
from talud.metrics import UNKNOWN
from talud.params import PatchData, SarUnit, StackOptions
from talud.text import counted, dimensions

MAX_PATCH_SIDE = 2048  # side in pixels; a larger image should be an area of rasters
PIXEL_SIZE_TOLERANCE = 1e-3  # share by which the pixel sizes of patches may differ
_OPTICAL_UNITS: Mapping[Layout, str] = {"image": "DN", "channels": "1", "variables": "reflectance"}


@dataclass(frozen=True)
class ImageMaskPair:
    """An image and its mask, which may be missing.

    Attributes:
        name: common part of both names: the stem, without `image_`, `img_` or `mask_`, and without a sensor.
        image: path of the image.
        mask: path of the mask, which is that of the image if it has the variable MASK; None if there is none.
        sar: path of the file with SAR variables; None if there is none.
        part: part of the split; None if the data set has no split.
    """

    name: str
    image: Path
    mask: Path | None
    sar: Path | None = None
    part: SplitPart | None = None


@dataclass(frozen=True)
class PatchFolder:
    """Patches of a folder, ordered by number.

    Attributes:
        pairs: images and masks; at least one pair. Patches with a split are ordered by part first.
        data: channels or variables of the bands that are read, and size of a pixel.
        side: side of a patch in pixels.
        bands: bands of a patch, with those that are computed.
        layout: layout of the files.
        index: path of the table that selects the patches, if there is one.
    """

    pairs: tuple[ImageMaskPair, ...]
    data: PatchData
    side: int
    bands: PatchBands
    layout: Layout
    index: Path | None = None

    @classmethod
    def find(
        cls,
        folder: Path,
        data: PatchData,
        sar_unit: SarUnit | None = None,
        options: StackOptions | None = None,
        *,
        default_size: float | None = None,
    ) -> PatchFolder:
        """Find and check the patches of a folder.

        All images must be squares of one size with all bands.

        Args:
            folder: folder that contains images, masks and index.
            data: locations within the folder, filter of the index, and channel numbers of the bands.
            sar_unit: unit of SAR bands. Default: that of the first image.
            options: methods of slope and curvature, unit of the resulting SAR bands, and speckle filter.
            default_size: pixel size in metres of images without a metric CRS, instead of that of `data`.

        Raises:
            SourceError: A file is missing, cannot be read, or does not fit the others.
        """
        if not folder.is_dir():
            raise SourceError(f"{folder}: no such folder; put the patches there (dvc pull, if DVC tracks them)")
        pairs = _find_pairs(folder, data)
        layout = _common_layout(pairs)
        stored = number_bands([pair.image for pair in pairs], pairs[0].sar, data, layout)
        shape = _common_shape(pairs, stored, layout)
        size = _pixel_size(pairs[0].image, data, shape, default_size)
        unit = _sar_unit(pairs[0].image, stored, layout, sar_unit)
        if "elevation" in stored and shape.height < MIN_TERRAIN_SIDE:
            raise SourceError(f"{pairs[0].image}: has {shape.height} pixels a side, too few for the slope of a patch")
        names = patch_bands.names_of_bands(data.bands)
        bands = PatchBands(stored, names, _OPTICAL_UNITS[layout], unit, size, options or StackOptions())
        data = data.model_copy(update={"bands": stored, "pixel_size": size})
        return cls(pairs, data, shape.height, bands, layout, folder / data.index if data.index else None)

    @property
    def labelled_count(self) -> int:
        """Number of patches with a mask."""
        return sum(pair.mask is not None for pair in self.pairs)

    @property
    def part_counts(self) -> tuple[int, ...] | None:
        """Number of patches in each part, None without a split."""
        if self.pairs[0].part is None:
            return None
        return tuple(sum(pair.part == part for pair in self.pairs) for part in SPLIT_PARTS)

    @property
    def fingerprints(self) -> dict[str, str]:
        """MD5s of images, masks and index."""
        found = {"images": _digest(pair.image for pair in self.pairs)}
        separate = [pair.mask for pair in self.pairs if pair.mask and pair.mask != pair.image]
        if separate:
            found["masks"] = _digest(separate)
        if self.pairs[0].sar:
            found["sar"] = _digest(pair.sar for pair in self.pairs if pair.sar)
        return found | ({"index": md5(self.index)} if self.index else {})

    @property
    def files(self) -> list[Path]:
        """Paths of images, masks and index."""
        found = dict.fromkeys(path for pair in self.pairs for path in (pair.image, pair.mask, pair.sar) if path)
        return [*found, *([self.index] if self.index else [])]

    def read(self, pair: ImageMaskPair) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Read a patch and its mask.

        Returns:
            The bands in the order of `bands.names`, float32 (bands, side, side), NaN where any band of their group is
                invalid; and the mask, uint8 (side, side): 1 landslide, 0 background, 255 unknown. Without a mask all
                pixels are unknown.

        Raises:
            SourceError: A file cannot be read or has another size, or the mask is not a mask.
        """
        if self.layout == "variables":
            variables = {name: str(variable) for name, variable in self.bands.stored.items()}
            values = patch_cubes.read_bands(pair.image, pair.sar, variables)
        else:
            channels = {name: int(channel) for name, channel in self.bands.stored.items()}
            values = patch_files.read_channels(pair.image, channels, self.bands.sar_unit)
        _check_side(pair.image, values.shape[1:], self.side)
        return self.bands.compute(values, pair.image), self._read_mask(pair)

    def _read_mask(self, pair: ImageMaskPair) -> NDArray[np.uint8]:
        classes = None
        if pair.mask is not None:
            variable = pair.mask == pair.image or pair.mask.suffix.lower() in NETCDF_SUFFIXES
            classes = patch_cubes.read_mask(pair.mask) if variable else patch_files.read_mask(pair.mask)
        if classes is None:
            return np.full((self.side, self.side), UNKNOWN, np.uint8)
        _check_side(pair.mask or pair.image, classes.shape, self.side)
        return classes


def _find_pairs(folder: Path, data: PatchData) -> tuple[ImageMaskPair, ...]:
    """Find images and masks, and the SAR files of the same patches."""
    images = files_by_name(folder, data.images)
    if not images:
        raise SourceError(f"{folder / data.images}: has no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    masks = files_by_name(folder, data.masks)
    if masks and not masks.keys() & images.keys():
        image, mask = next(iter(images.values())), next(iter(masks.values()))
        raise SourceError(
            f"{folder}: no mask has the name of an image ({image.name}, {mask.name}); pairs have names such as "
            "image_12 and mask_12, or 12 and 12"
        )
    index = folder / data.index if data.index else None
    chosen = select_patches(index, data, images.keys())
    sar = files_by_name(folder, data.sar) if data.sar else {}
    without = [name for name in chosen if name not in sar] if data.sar else []
    if without:
        raise SourceError(
            f"{folder}: {len(without)} of {len(chosen)} patches have no file in {data.sar}, such as {without[0]}; list "
            "the patches that have both in index (splits_aligned.json, for Sen12Landslides)"
        )
    return tuple(
        ImageMaskPair(name, images[name], _mask_of(images[name], masks.get(name)), sar.get(name), part)
        for name, part in chosen.items()
    )


def _mask_of(image: Path, mask: Path | None) -> Path | None:
    """Return the path of a mask, which may be a variable of the image."""
    if mask is None and patch_files.layout_of(image) == "variables":
        return image if patch_cubes.has_variable(image, patch_cubes.MASK) else None
    return mask


def files_by_name(folder: Path, place: str) -> dict[str, Path]:
    """Return images or masks by their common name."""
    found: dict[str, Path] = {}
    try:
        paths = sorted((folder / place).iterdir() if (folder / place).is_dir() else folder.glob(place))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise SourceError(f"{folder}: '{place}' is neither a folder in it nor a pattern: {error}") from error
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        name = cube_name(path.stem) if path.suffix.lower() in NETCDF_SUFFIXES else patch_name(path.stem)
        twin = found.setdefault(name, path)
        if twin != path:
            raise SourceError(f"{path} and {twin}: both are named as patch {name}; keep one")
    return found


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        digest.update(f"{path.name} {md5(path)}\n".encode())
    return digest.hexdigest()


def _common_layout(pairs: Sequence[ImageMaskPair]) -> Layout:
    """Return the layout of all images, from the first one."""
    first = pairs[0].image
    layout = patch_files.layout_of(first)
    hdf5 = patch_files.HDF5_SUFFIXES | NETCDF_SUFFIXES
    for pair in pairs:
        if (pair.image.suffix.lower() in hdf5) != (first.suffix.lower() in hdf5):
            raise SourceError(f"{pair.image} and {first.name}: HDF5 and images have different scales; keep one")
    return layout


def _common_shape(pairs: tuple[ImageMaskPair, ...], bands: Mapping[str, Channel], layout: Layout) -> PatchShape:
    """Return the shape of all images after comparing them."""
    first: PatchShape | None = None
    undated = []
    variables = {name: str(variable) for name, variable in bands.items()}
    for pair in pairs:
        if layout == "variables":
            shape, dated = patch_cubes.check_cube(pair.image, pair.sar, variables)
            undated += [] if dated else [pair.name]
        else:
            shape = patch_files.shape_of(pair.image)
        if shape.height != shape.width or not 0 < shape.height <= MAX_PATCH_SIDE:
            raise SourceError(
                f"{pair.image}: has {dimensions(shape.width, shape.height)}; a patch is a square of at most "
                f"{MAX_PATCH_SIDE}"
            )
        first = first or shape
        _compare(pair.image, shape, pairs[0].image, first)
        for band, channel in bands.items():
            if isinstance(channel, int) and channel > shape.channels:
                raise SourceError(
                    f"{pair.image}: has {counted(shape.channels, 'channel')}, but {band} has the number {channel}"
                )
    if undated:
        count = counted(len(undated), "patch", "patches")
        warnings.warn(
            f"without the date of the event, or an image before or after it: {count} of {len(pairs)} "
            f"({', '.join(undated[:5])}); their bands of that time are missing",
            TaludWarning,
            stacklevel=2,
        )
    assert first is not None
    return first


def _compare(image: Path, shape: PatchShape, first_image: Path, first: PatchShape) -> None:
    if shape.height != first.height:
        raise SourceError(
            f"{image}: has {shape.height} pixels a side, but {first_image.name} has {first.height}; all need one"
        )
    sizes = [one.pixel_size or 0.0 for one in (shape, first)]
    if abs(sizes[0] - sizes[1]) > PIXEL_SIZE_TOLERANCE * max(sizes):
        found, expected = (f"pixels of {size:g} m" if size else "no projected CRS" for size in sizes)
        raise SourceError(
            f"{image}: has {found}, but {first_image.name} has {expected}; resample the patches to one pixel size, or "
            "make areas of those that agree"
        )


def _pixel_size(image: Path, data: PatchData, shape: PatchShape, default: float | None) -> float:
    """Return the pixel size in metres, of the files or given."""
    given = "pixel_size" in data.model_fields_set
    if shape.pixel_size is None and default is not None:
        return default
    if shape.geographic and not given:
        raise SourceError(
            f"{image}: has coordinates in degrees; set patches.pixel_size, in metres, or warp the patches to a "
            "metric CRS"
        )
    if shape.pixel_size is None:
        return data.pixel_size
    if given and abs(data.pixel_size - shape.pixel_size) > PIXEL_SIZE_TOLERANCE * shape.pixel_size:
        raise SourceError(
            f"{image}: has pixels of {shape.pixel_size:g} m, but pixel_size is {data.pixel_size:g}; leave it out, or "
            "resample the patches"
        )
    return data.pixel_size if given else shape.pixel_size


def _sar_unit(image: Path, bands: Mapping[str, Channel], layout: Layout, given: SarUnit | None) -> SarUnit | None:
    """Return the unit of the SAR bands, None if there are none."""
    if not any(band_named(name).group is Group.SAR for name in bands):
        return None
    stated = None
    if layout != "variables":
        stated = patch_files.stated_sar_unit(image, {name: int(channel) for name, channel in bands.items()})
    unit = given or stated
    if unit is None:
        raise SourceError(
            f"{image}: does not state the unit of its SAR bands; set sar_unit of the area in params.yaml to amplitude, "
            "power or db"
        )
    return unit


def _check_side(path: Path, shape: tuple[int, ...], side: int) -> None:
    if shape != (side, side):
        raise SourceError(f"{path}: has {dimensions(shape[1], shape[0])}, but the patches have {side} × {side} pixels")
