"""The counts of a map: the confusion of what was mapped, and beside it what was not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from talud.confusion_map import NOT_MAPPED
from talud.metrics import LANDSLIDE, UNKNOWN, Confusion, confusion


@dataclass(frozen=True)
class Tally:
    """The confusion of what was mapped, and beside it what was not.

    Attributes:
        confusion: counts of the mapped pixels whose truth is known.
        not_mapped: pixels whose truth is known and where the map says nothing, under a cloud for example.
        not_mapped_landslide: those of them that are landslide.
    """

    confusion: Confusion = field(default_factory=Confusion)
    not_mapped: int = 0
    not_mapped_landslide: int = 0

    @classmethod
    def of(cls, mapped: NDArray[np.uint8], truth: NDArray[np.uint8]) -> Tally:
        """Count a class map (1 landslide, 0 background, 255 not mapped) against the truth, of the same shape."""
        unmapped = mapped == NOT_MAPPED
        return cls(
            confusion(mapped == LANDSLIDE, truth, ~unmapped),
            int(np.count_nonzero(unmapped & (truth != UNKNOWN))),
            int(np.count_nonzero(unmapped & (truth == LANDSLIDE))),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.confusion + other.confusion,
            self.not_mapped + other.not_mapped,
            self.not_mapped_landslide + other.not_mapped_landslide,
        )

    @property
    def pixels(self) -> int:
        """The pixels whose truth is known, mapped or not."""
        counts = self.confusion
        return counts.tp + counts.fp + counts.fn + counts.tn + self.not_mapped

    @property
    def landslide_pixels(self) -> int:
        """The landslide pixels, mapped or not."""
        return self.confusion.tp + self.confusion.fn + self.not_mapped_landslide

    @property
    def missing_class(self) -> str | None:
        """Explain which scores are undefined if the truth holds only one class."""
        counts = self.confusion
        if not counts.tp + counts.fn and counts.fp + counts.tn:
            return "no mapped pixel is known to be landslide, so scores there show only false alarms"
        if not counts.fp + counts.tn and counts.tp + counts.fn:
            return "no mapped pixel is known to be background, so that no false alarm is counted and precision is 1"
        return None

    @property
    def not_mapped_landslide_share(self) -> float:
        """The part of the landslide pixels where the map says nothing."""
        return self.not_mapped_landslide / self.landslide_pixels if self.landslide_pixels else 0.0

    @property
    def not_mapped_share(self) -> float:
        """The part of the pixels with known truth where the map says nothing."""
        return self.not_mapped / self.pixels if self.pixels else 0.0
