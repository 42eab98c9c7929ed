"""Pixel scores of the landslide class.

All scores follow from the four counts of a confusion matrix. Pixels whose truth is unknown (255 in a mask), or
that a map left out, are in none of the four.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LANDSLIDE = 1
BACKGROUND = 0
UNKNOWN = 255


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


def best_threshold(probability: NDArray[np.float32], truth: NDArray[np.uint8], tie: float = 0.005) -> float:
    """The threshold nearest to 0.5 of those k / 100, 0 < k < 100, whose F1 is within `tie` of the highest.

    A network trained on Dice says 0 or 1 nearly everywhere, so its F1 hardly depends on the threshold; the exact
    maximum then sits anywhere, by chance, and an extreme threshold does not carry over to another area.

    Args:
        probability: of a landslide, any shape; a pixel is landslide where it is at least the threshold. NaN does not
            count.
        truth: 1 landslide, 0 background, 255 unknown (does not count); same shape.
        tie: the difference in F1 that is not worth an extreme threshold.
    """
    thresholds = np.arange(1, 100) / 100
    known = (truth != UNKNOWN) & np.isfinite(probability)
    passed = np.searchsorted(thresholds.astype(np.float32), probability[known], side="right")
    positive = truth[known] == LANDSLIDE
    hits, alarms = (
        np.bincount(passed[chosen], minlength=len(thresholds) + 1)[::-1].cumsum()[::-1][1:]
        for chosen in (positive, ~positive)
    )
    f1 = 2 * hits / np.maximum(hits + alarms + np.count_nonzero(positive), 1)
    good = thresholds[f1 >= f1.max() - tie]
    return float(good[np.argmin(np.abs(good - 0.5))])
