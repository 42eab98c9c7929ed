"""Counts over pixels that add up from window to window: outcomes, and probabilities by level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from talud.evaluation.outcome import NOT_MAPPED
from talud.metrics import LANDSLIDE, UNKNOWN, Confusion, confusion

STEPS = 100  # thresholds of a curve are multiples of 1 / STEPS


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
    def not_mapped_landslide_share(self) -> float:
        """The part of the landslide pixels where the map says nothing."""
        return self.not_mapped_landslide / self.landslide_pixels if self.landslide_pixels else 0.0

    @property
    def not_mapped_share(self) -> float:
        """The part of the pixels with known truth where the map says nothing."""
        return self.not_mapped / self.pixels if self.pixels else 0.0


def _empty() -> NDArray[np.int64]:
    return np.zeros(STEPS + 1, dtype=np.int64)


@dataclass(frozen=True)
class Levels:
    """How many landslide and background pixels have a probability in each hundredth: int64 (101,) each."""

    landslide: NDArray[np.int64] = field(default_factory=_empty)
    background: NDArray[np.int64] = field(default_factory=_empty)

    @classmethod
    def of(cls, probability: NDArray[np.float32], truth: NDArray[np.uint8]) -> Levels:
        """Count probabilities (NaN where not mapped) by level; pixels of unknown truth do not count."""
        known = (truth != UNKNOWN) & np.isfinite(probability)
        level = np.floor(probability[known].astype(np.float64) * STEPS).clip(0, STEPS).astype(np.int64)
        positive = truth[known] == LANDSLIDE
        return cls(
            np.bincount(level[positive], minlength=STEPS + 1), np.bincount(level[~positive], minlength=STEPS + 1)
        )

    def __add__(self, other: Levels) -> Levels:
        return Levels(self.landslide + other.landslide, self.background + other.background)

    def curve(self) -> Iterator[tuple[float, Confusion]]:
        """Each threshold k / 100, 0 < k < 100, with the confusion that it gives."""
        hits = self.landslide[::-1].cumsum()[::-1]
        alarms = self.background[::-1].cumsum()[::-1]
        for step in range(1, STEPS):
            tp, fp = int(hits[step]), int(alarms[step])
            yield step / STEPS, Confusion(tp, fp, int(hits[0]) - tp, int(alarms[0]) - fp)
