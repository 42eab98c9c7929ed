"""Masks: classes, counts and layout."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from talud.data import sources
from talud.errors import SourceError, TaludWarning
from talud.metrics import BACKGROUND, LANDSLIDE, UNKNOWN
from talud.raster import (
    CONTENT_TAG,
    PARTS_TAG,
    PATCH_TAG,
    Layout,
    alpha_bands,
    read_alpha_mask,
    read_validity,
    translate_read_errors,
)

CLASS_COLOURS = {BACKGROUND: (224, 224, 224, 255), LANDSLIDE: (204, 51, 17, 255), UNKNOWN: (0, 0, 0, 0)}
_COPIED_TAGS = ("TALUD_AREA", "TALUD_EVENT", "TALUD_SYNTHETIC", PATCH_TAG, CONTENT_TAG, PARTS_TAG)


def mask_layout(stack_tags: Mapping[str, str]) -> Layout:
    """Return the layout of the mask of a stack."""
    tags = {key: stack_tags[key] for key in _COPIED_TAGS if key in stack_tags}
    return Layout("uint8", UNKNOWN, ("landslide",), (), tags, CLASS_COLOURS, "mode")


@dataclass(frozen=True)
class KnownPixels:
    """Counts of mask pixels with a known class."""

    landslide: int = 0
    background: int = 0

    @classmethod
    def of(cls, mask: NDArray[np.uint8]) -> KnownPixels:
        """Count the known pixels of a mask."""
        return cls(int(np.count_nonzero(mask == LANDSLIDE)), int(np.count_nonzero(mask == BACKGROUND)))

    def __add__(self, other: KnownPixels) -> KnownPixels:
        return KnownPixels(self.landslide + other.landslide, self.background + other.background)


def check_both_classes(known: KnownPixels, subject: str, role: str) -> None:
    """Check that a mask contains both classes.

    A mask without background is an error in an area for training, validation or the gate, and a warning in one of role
    transfer. A mask without landslides is a warning.

    Args:
        known: counts of the mask's known pixels.
        subject: the mask or masks, as the subject of an error message.
        role: role of the area.

    Raises:
        SourceError: No pixel is known to be background, and the role is not transfer.
    """
    if not known.background and known.landslide:
        message = (
            f"{subject}: no pixel is known to be background, so false alarms would not be counted; 0 must not be the "
            "masks' nodata value (gdal_edit.py -unsetnodata removes it), and a boundary must include background"
        )
        if role != "transfer":
            raise SourceError(message)
        warnings.warn(message, TaludWarning, stacklevel=2)
    elif not known.landslide and known.background:
        warnings.warn(
            f"{subject}: no pixel is known to be landslide, so scores there show only false alarms",
            TaludWarning,
            stacklevel=2,
        )


# Values of (background, landslide): class numbers, then black and white in 8 and in 16 bits.
_GREY_LEVELS = ((BACKGROUND, LANDSLIDE), (0, 255), (0, 65_535))
_OWN_PALETTE = np.array([CLASS_COLOURS[BACKGROUND], CLASS_COLOURS[LANDSLIDE]])
_EXPECTED = "a mask is 0 or 1, or 0 or 255 (white), and nodata where the truth is unknown"


def read_classes(path: Path) -> NDArray[np.uint8]:
    """Read the classes of a mask file, (height, width).

    The classes are 1 landslide, 0 background and 255 unknown. A palette is evaluated by its colours, so that the
    classes are those that a viewer shows.

    Raises:
        SourceError: The file cannot be read, or is not a mask.
    """
    with sources.open_source(path) as raster, translate_read_errors(path):
        planes = raster.read(list(range(1, max(sources.count_bands_without_alpha(raster), 1) + 1)))
        opaque = read_alpha_mask(raster, alpha_bands(raster, (1,)))
        known = read_validity(raster, (1,))[0] & opaque & np.isfinite(planes[0])
        palette = _palette(raster)
    if palette is not None and not np.array_equal(palette[:2], _OWN_PALETTE):
        if planes[0][known].max(initial=0) >= len(palette):
            raise SourceError(
                f"{path}: has the value {planes[0][known].max()}, which is not in its palette; save it in grey"
            )
        colours = palette[np.where(known, planes[0], 0)]
        known &= colours[..., 3] > 0
        planes = np.moveaxis(colours[..., :3], -1, 0)
    if (planes == planes[0]).all(axis=0)[known].all():
        return classify_values(path, planes[0], known)
    return _classify_colours(path, planes, known)


def classify_values(path: Path, values: NDArray[np.generic], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the classes of grey levels or class numbers.

    Args:
        path: path of the mask, for errors.
        values: values of the mask.
        known: pixels that are not nodata; the others are unknown.

    Raises:
        SourceError: The values are not those of a mask.
    """
    for background, landslide in _GREY_LEVELS:
        if np.isin(values[known], (background, landslide)).all():
            return _classes(values == landslide, known)
    strange = values[known & ~np.isin(values, (0, 1, 255))]
    found = f"the value {strange[0]:g}" if len(strange) else "the values 0, 1 and 255"
    raise SourceError(f"{path}: has {found}; {_EXPECTED}")


def _classify_colours(path: Path, planes: NDArray[np.generic], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the classes of a single-coloured image."""
    found = np.unique(planes[:, known], axis=1).T
    lit = found[found.any(axis=1)]
    if len(lit) != 1:
        named = ", ".join(str(tuple(map(int, colour))) for colour in found[:3]) + (", …" if len(found) > 3 else "")
        raise SourceError(
            f"{path}: is a coloured picture ({named}), in which it is not clear what is landslide; save it in grey: "
            f"{_EXPECTED}"
        )
    return _classes((planes != 0).any(axis=0), known)


def _classes(landslide: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(known, np.where(landslide, LANDSLIDE, BACKGROUND), UNKNOWN).astype(np.uint8)


def _palette(raster: DatasetReader) -> NDArray[np.intp] | None:
    """Return a palette as RGBA by number, or None."""
    try:
        entries = raster.colormap(1)
    except ValueError:  # rasterio raises it if there is no palette
        return None
    if raster.count > 1 and raster.colorinterp[0] is not ColorInterp.palette:
        return None
    return np.array([entries.get(number, (0, 0, 0, 0)) for number in range(max(entries) + 1)], np.intp)
