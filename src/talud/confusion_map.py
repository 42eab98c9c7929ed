"""Maps that compare predicted landslides with the truth, pixel by pixel."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from talud.metrics import LANDSLIDE, UNKNOWN

# Value in a class map where the model had no valid data.
NOT_MAPPED = 255
# Value in a confusion map where the truth is unknown or the pixel is not mapped.
NOT_COMPARED = 255


class PixelClass(IntEnum):
    """Class of a pixel in a confusion map."""

    TRUE_NEGATIVE = 0
    TRUE_POSITIVE = 1
    FALSE_POSITIVE = 2
    FALSE_NEGATIVE = 3

    @property
    def label(self) -> str:
        """Human-readable name."""
        return self.name.replace("_", " ").lower()


# Palette of Okabe and Ito (2008), distinguishable with every type of colour vision.
PIXEL_CLASS_COLOURS: dict[int, tuple[int, int, int, int]] = {
    PixelClass.TRUE_NEGATIVE: (226, 226, 222, 255),
    PixelClass.TRUE_POSITIVE: (0, 114, 178, 255),
    PixelClass.FALSE_POSITIVE: (230, 159, 0, 255),
    PixelClass.FALSE_NEGATIVE: (204, 61, 139, 255),
}


def apply_threshold(probability: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return the class map of probabilities.

    Args:
        probability: probability of a landslide, NaN where not mapped; any shape.
        threshold: lowest probability of a landslide.

    Returns:
        uint8 of the same shape: 1 landslide, 0 background, 255 not mapped.
    """
    return np.where(np.isfinite(probability), probability >= threshold, NOT_MAPPED).astype(np.uint8)


def classify_pixels(mapped: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the confusion map of a class map and the truth.

    Args:
        mapped: 1 landslide, 0 background, 255 not mapped; any shape.
        truth: 1 landslide, 0 background, 255 unknown; same shape.

    Returns:
        uint8 `PixelClass` of each pixel, or 255 if the truth is unknown or the pixel is not mapped; same shape.
    """
    found, real = mapped == LANDSLIDE, truth == LANDSLIDE
    outcome = np.full(mapped.shape, PixelClass.TRUE_NEGATIVE, dtype=np.uint8)
    outcome[found & real] = PixelClass.TRUE_POSITIVE
    outcome[found & ~real] = PixelClass.FALSE_POSITIVE
    outcome[~found & real] = PixelClass.FALSE_NEGATIVE
    outcome[(mapped == NOT_MAPPED) | (truth == UNKNOWN)] = NOT_COMPARED
    return outcome
