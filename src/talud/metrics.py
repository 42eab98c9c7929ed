"""Pixel scores of the landslide class.

All scores follow from the four counts of a confusion matrix. Pixels whose truth is unknown (255 in a mask), or
that a map left out, are in none of the four.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LANDSLIDE = 1
BACKGROUND = 0
UNKNOWN = 255
THRESHOLDS = np.arange(1, 100) / 100


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


@dataclass(frozen=True)
class Confusion:
    """Counts of pixels: true and false positives, false and true negatives. Counts of disjoint sets add up."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP): the part of the mapped landslide that is one; 0 where nothing was mapped."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN): the part of the landslides that was mapped; 0 where there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN): the harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN): intersection over union."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    def scores(self) -> dict[str, float]:
        """Precision, recall, F1 and IoU by name."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1, "iou": self.iou}


def confusion(
    predicted: NDArray[np.bool_], truth: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None
) -> Confusion:
    """Count a predicted mask against the truth.

    Args:
        predicted: true where a landslide was mapped; any shape.
        truth: 1 landslide, 0 background, 255 unknown; same shape.
        valid: false where the map says nothing; same shape. Default: valid everywhere.
    """
    known = truth != UNKNOWN
    if valid is not None:
        known = known & valid
    positive = truth == LANDSLIDE
    tp = int(np.count_nonzero(predicted & positive & known))
    fp = int(np.count_nonzero(predicted & ~positive & known))
    fn = int(np.count_nonzero(~predicted & positive & known))
    return Confusion(tp, fp, fn, int(np.count_nonzero(known)) - tp - fp - fn)


def _no_pixels() -> NDArray[np.int64]:
    return np.zeros(len(THRESHOLDS) + 1, np.int64)


@dataclass(frozen=True)
class Levels:
    """How many pixels reach how many of the `THRESHOLDS`, 0 to 99: int64 (100,) each. Counts of disjoint sets add up.

    A probability reaches a threshold where it is at least as high, as a map of float32 probabilities has it.
    """

    landslide: NDArray[np.int64] = field(default_factory=_no_pixels)
    background: NDArray[np.int64] = field(default_factory=_no_pixels)

    @classmethod
    def of(cls, probability: NDArray[np.float32], truth: NDArray[np.uint8]) -> Levels:
        """Count probabilities (NaN where not mapped, which does not count) by level.

        Args:
            probability: of a landslide; any shape.
            truth: 1 landslide, 0 background, 255 unknown (does not count); same shape.
        """
        known = (truth != UNKNOWN) & np.isfinite(probability)
        reached = np.searchsorted(THRESHOLDS.astype(np.float32), probability[known], side="right")
        positive = truth[known] == LANDSLIDE
        landslide, background = (
            np.bincount(reached[chosen], minlength=len(THRESHOLDS) + 1) for chosen in (positive, ~positive)
        )
        return cls(landslide, background)

    def __add__(self, other: Levels) -> Levels:
        return Levels(self.landslide + other.landslide, self.background + other.background)

    def curve(self) -> list[Confusion]:
        """The confusion at each of the `THRESHOLDS`."""
        hits, alarms = (counts[::-1].cumsum()[::-1].tolist() for counts in (self.landslide, self.background))
        return [Confusion(tp, fp, hits[0] - tp, alarms[0] - fp) for tp, fp in zip(hits[1:], alarms[1:], strict=True)]


def best_threshold(levels: Levels, tie: float = 0.005) -> float:
    """The one of the `THRESHOLDS` nearest to 0.5 of those whose F1 is within `tie` of the highest.

    A network trained on Dice says 0 or 1 nearly everywhere, so its F1 hardly depends on the threshold; the exact
    maximum then sits anywhere, by chance, and an extreme threshold does not carry over to another area.

    Args:
        levels: of the pixels to choose by.
        tie: the difference in F1 that is not worth an extreme threshold.
    """
    f1 = np.array([counts.f1 for counts in levels.curve()])
    good = THRESHOLDS[f1 >= f1.max() - tie]
    return float(good[np.argmin(np.abs(good - 0.5))])
