"""Maps of true and false positives, and of false and true negatives."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from talud.metrics import LANDSLIDE, UNKNOWN

NOT_MAPPED = 255  # in a class map: the model had no data here
NOT_COMPARED = 255  # truth unknown, or not mapped


class PixelClass(IntEnum):
    """The class of a pixel in a confusion map."""

    TRUE_NEGATIVE = 0
    TRUE_POSITIVE = 1
    FALSE_POSITIVE = 2
    FALSE_NEGATIVE = 3

    @property
    def label(self) -> str:
        """The name for a reader."""
        return self.name.replace("_", " ").lower()


# Okabe and Ito's palette (2008), which readers of every kind of colour vision tell apart.
PIXEL_CLASS_COLOURS: dict[int, tuple[int, int, int, int]] = {
    PixelClass.TRUE_NEGATIVE: (226, 226, 222, 255),
    PixelClass.TRUE_POSITIVE: (0, 114, 178, 255),
    PixelClass.FALSE_POSITIVE: (230, 159, 0, 255),
    PixelClass.FALSE_NEGATIVE: (204, 61, 139, 255),
}


def apply_threshold(probability: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return the class map of probabilities, which are NaN where not mapped.

    It is 1 for landslide, 0 for background and 255 where not mapped.
    """
    return np.where(np.isfinite(probability), probability >= threshold, NOT_MAPPED).astype(np.uint8)


def classify_pixels(mapped: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the class of each pixel in the confusion map.

    It is uint8, and 255 where the truth is unknown or nothing was mapped.

    Args:
        mapped: 1 landslide, 0 background, 255 not mapped; any shape.
        truth: 1 landslide, 0 background, 255 unknown; same shape.
    """
    found, real = mapped == LANDSLIDE, truth == LANDSLIDE
    outcome = np.full(mapped.shape, PixelClass.TRUE_NEGATIVE, dtype=np.uint8)
    outcome[found & real] = PixelClass.TRUE_POSITIVE
    outcome[found & ~real] = PixelClass.FALSE_POSITIVE
    outcome[~found & real] = PixelClass.FALSE_NEGATIVE
    outcome[(mapped == NOT_MAPPED) | (truth == UNKNOWN)] = NOT_COMPARED
    return outcome
