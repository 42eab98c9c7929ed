"""The mask of an area on disk: its classes, and how they are shown."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from talud.errors import SourceError, TaludWarning
from talud.metrics import BACKGROUND, LANDSLIDE, UNKNOWN
from talud.raster import PATCH_TAG, Layout

COLOURS = {BACKGROUND: (224, 224, 224, 255), LANDSLIDE: (204, 51, 17, 255), UNKNOWN: (0, 0, 0, 0)}
_TOLD = ("TALUD_AREA", "TALUD_EVENT", "TALUD_SYNTHETIC", PATCH_TAG)


def mask_layout(stack_tags: Mapping[str, str]) -> Layout:
    """What a mask holds apart from its pixels, given the tags of the stack that it lies beside."""
    tags = {key: stack_tags[key] for key in _TOLD if key in stack_tags}
    return Layout("uint8", UNKNOWN, ("landslide",), (), tags, COLOURS, "mode")


@dataclass(frozen=True)
class KnownPixels:
    """Counts of the pixels of a mask whose class is known."""

    landslide: int = 0
    background: int = 0

    @classmethod
    def of(cls, mask: NDArray[np.uint8]) -> KnownPixels:
        """Count the known pixels of a mask."""
        return cls(int(np.count_nonzero(mask == LANDSLIDE)), int(np.count_nonzero(mask == BACKGROUND)))

    def __add__(self, other: KnownPixels) -> KnownPixels:
        return KnownPixels(self.landslide + other.landslide, self.background + other.background)


def check_known(known: KnownPixels, what: str, role: str) -> None:
    """Check that a mask holds both classes.

    A missing background is an error in an area that trains or decides, and a warning in one of role transfer.

    Args:
        known: the counts.
        what: the mask or masks, in words.
        role: of the area.

    Raises:
        SourceError: no background is known in an area that trains or decides.
    """
    if not known.background and known.landslide:
        said = (
            f"{what}: no pixel is known to be background, so false alarms would go unnoticed; 0 must not be "
            "the masks' nodata value (gdal_edit.py -unsetnodata removes it), nor a boundary follow the landslides"
        )
        if role != "transfer":
            raise SourceError(said)
        warnings.warn(said, TaludWarning, stacklevel=2)
    elif not known.landslide and known.background:
        warnings.warn(
            f"{what}: no pixel is known to be landslide, so scores there show only false alarms",
            TaludWarning,
            stacklevel=2,
        )
