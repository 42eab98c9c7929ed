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
SCORES = ("precision", "recall", "f1", "iou", "mcc")
BINS = 20  # of probability, 0.05 wide: a few of one network's levels each, and enough pixels to tell a share


def scores(counts: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
    """The `SCORES` of many confusions at once; a score is 0 where its denominator is.

    precision TP / (TP + FP), recall TP / (TP + FN), F1 2 TP / (2 TP + FP + FN), intersection over union
    TP / (TP + FP + FN), and Matthews' correlation coefficient (1975, Biochimica et Biophysica Acta 405)
    (TP TN - FP FN) / √((TP + FP) (TP + FN) (TN + FP) (TN + FN)).

    Args:
        counts: (…, 4) of TP, FP, FN, TN.

    Returns:
        (…, 5), in the order of `SCORES`.
    """
    # As float64: a product of four counts of a large map does not fit a whole number of 64 bits.
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    found, real, nothing, background = tp + fp, tp + fn, tn + fn, tn + fp
    ratios = (
        (tp, found),
        (tp, real),
        (2 * tp, found + real),
        (tp, tp + fp + fn),
        (tp * tn - fp * fn, np.sqrt(found * real) * np.sqrt(background * nothing)),
    )
    return np.stack([np.divide(up, down, out=np.zeros_like(down), where=down > 0) for up, down in ratios], axis=-1)


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
    def pixels(self) -> int:
        """Return the number of pixels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def precision(self) -> float:
        """TP / (TP + FP): the part of the mapped landslide that is one; 0 where nothing was mapped."""
        return self.scores()["precision"]

    @property
    def recall(self) -> float:
        """TP / (TP + FN): the part of the landslides that was mapped; 0 where there is none."""
        return self.scores()["recall"]

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN): the harmonic mean of precision and recall."""
        return self.scores()["f1"]

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN): intersection over union."""
        return self.scores()["iou"]

    @property
    def mcc(self) -> float:
        """Matthews' correlation coefficient, −1 to 1: the correlation of map and truth; 0 where one is constant."""
        return self.scores()["mcc"]

    def scores(self) -> dict[str, float]:
        """The `SCORES` by name."""
        counts = np.array([self.tp, self.fp, self.fn, self.tn], np.float64)
        return dict(zip(SCORES, scores(counts).tolist(), strict=True))


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


SKILL_MARGIN = 0.005  # of F1: as much as `best_threshold` can gain by chance on the pixels that it is chosen on


def everything_f1(share: float) -> float:
    """Return the F1 of a map that calls every pixel a landslide: 2 p / (1 + p).

    p is the share of landslide pixels.
    """
    return 2 * share / (1 + share)


def lack_of_skill(counts: Confusion) -> str:
    """Return a sentence if a map is no better than a constant one.

    The text is empty if it is better.

    A constant map calls every pixel a landslide (F1 = 2 p / (1 + p) for a landslide share p), or none (F1 = 0). A map
    is better where its F1 exceeds that by more than `SKILL_MARGIN`. Empty, too, where the truth holds one class alone:
    nothing can be said then.

    Args:
        counts: of pixels whose truth is known and that are mapped.
    """
    landslide, background = counts.tp + counts.fn, counts.fp + counts.tn
    if not landslide or not background:
        return ""
    constant = everything_f1(landslide / (landslide + background))
    if counts.f1 > constant + SKILL_MARGIN:
        return ""
    if not counts.tp:
        return f"no better than calling nothing a landslide: F1 {counts.f1:.3f}"
    return f"no better than calling everything a landslide: F1 {counts.f1:.3f} against {constant:.3f}"


def _no_pixels() -> NDArray[np.int64]:
    return np.zeros(len(THRESHOLDS) + 1, np.int64)


def _no_probability() -> NDArray[np.float64]:
    return np.zeros(len(THRESHOLDS) + 1)


@dataclass(frozen=True)
class ThresholdHistogram:
    """How many pixels reach how many of the `THRESHOLDS`, 0 to 99: (100,) each. Those of disjoint sets add up.

    A probability reaches a threshold where it is at least as high, as a map of float32 probabilities has it.

    Attributes:
        landslide: pixels of landslide at each level, int64.
        background: pixels of background, int64.
        probability: the sum of both's probabilities, float64.
    """

    landslide: NDArray[np.int64] = field(default_factory=_no_pixels)
    background: NDArray[np.int64] = field(default_factory=_no_pixels)
    probability: NDArray[np.float64] = field(default_factory=_no_probability)

    @classmethod
    def of(cls, probability: NDArray[np.float32], truth: NDArray[np.uint8]) -> ThresholdHistogram:
        """Count probabilities (NaN where not mapped, which does not count) by level.

        Args:
            probability: of a landslide; any shape.
            truth: 1 landslide, 0 background, 255 unknown (does not count); same shape.
        """
        known = (truth != UNKNOWN) & np.isfinite(probability)
        levels = len(THRESHOLDS) + 1
        reached = np.searchsorted(THRESHOLDS.astype(np.float32), probability[known], side="right")
        positive = truth[known] == LANDSLIDE
        landslide, background = (np.bincount(reached[chosen], minlength=levels) for chosen in (positive, ~positive))
        return cls(landslide, background, np.bincount(reached, probability[known], levels).astype(np.float64))

    def __add__(self, other: ThresholdHistogram) -> ThresholdHistogram:
        return ThresholdHistogram(
            self.landslide + other.landslide,
            self.background + other.background,
            self.probability + other.probability,
        )

    def curve(self) -> list[Confusion]:
        """The confusion at each of the `THRESHOLDS`."""
        hits, alarms = (counts[::-1].cumsum()[::-1].tolist() for counts in (self.landslide, self.background))
        return [Confusion(tp, fp, hits[0] - tp, alarms[0] - fp) for tp, fp in zip(hits[1:], alarms[1:], strict=True)]

    def bins(self) -> Bins:
        """The same in bins of 0.05."""
        landslide, background, probability = (
            values.reshape(BINS, -1).sum(axis=1) for values in (self.landslide, self.background, self.probability)
        )
        return Bins(landslide + background, landslide, probability)


@dataclass(frozen=True)
class Bins:
    """Pixels by their probability, in `BINS` bins of one width between 0 and 1: (BINS,) each.

    Attributes:
        pixels: in each bin, int64.
        landslide: those of them that are landslide, int64.
        probability: the sum of their probabilities, float64.
    """

    pixels: NDArray[np.int64]
    landslide: NDArray[np.int64]
    probability: NDArray[np.float64]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0 to 1; 0 where there are no pixels.

        The sum over the bins b of n_b / n |landslide share of b - mean probability of b| (M. P. Naeini et al.,
        Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; C. Guo et al., On Calibration of
        Modern Neural Networks, ICML 2017, equation 3), of the probability of a landslide: n_b pixels are in b, n in
        all.
        """
        pixels = int(self.pixels.sum())
        return float(np.abs(self.landslide - self.probability).sum()) / pixels if pixels else 0.0


def best_threshold(levels: ThresholdHistogram, tie: float = 0.005) -> float:
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
