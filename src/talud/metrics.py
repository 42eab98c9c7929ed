"""Scores of the landslide class, and estimates of its area from a sample.

All scores follow from the four counts of a confusion matrix. Pixels whose truth is unknown (255 in a mask), or that are
not mapped, are not counted.

The area is the stratified estimate of P. Olofsson, G. M. Foody, M. Herold, S. V. Stehman, C. E. Woodcock and M. A.
Wulder, Good practices for estimating area and assessing accuracy of land change, Remote Sensing of Environment 148,
2014, equations 9 to 11. The strata are the classes of the map. The sample gives the share of landslide in each class;
weighted by the areas of the classes, the shares give the area of landslide, including landslides that the map misses.
The sample consists of whole blocks, in which errors are correlated. Its variance is larger than that of single pixels
by the design effect (L. Kish, Survey Sampling, 1965, section 5.4), which is estimated from the blocks: the
ultimate-cluster variance of a ratio (W. G. Cochran, Sampling Techniques, 3rd edition, 1977, section 6.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LANDSLIDE = 1
BACKGROUND = 0
UNKNOWN = 255
THRESHOLDS = np.arange(1, 100) / 100
SCORES = ("precision", "recall", "f1", "iou", "mcc")
# Bins of probability, 0.05 wide: each holds several distinct probabilities of a network, and enough pixels for a
# reliable share.
CALIBRATION_BINS = 20


def scores(counts: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the `SCORES` of many confusion matrices.

    Precision is TP / (TP + FP), recall TP / (TP + FN), F1 2 TP / (2 TP + FP + FN), intersection over union TP / (TP +
    FP + FN), and Matthews' correlation coefficient (1975, Biochimica et Biophysica Acta 405) (TP TN - FP FN) / √((TP +
    FP) (TP + FN) (TN + FP) (TN + FN)). A score with a denominator of 0 is 0.

    Args:
        counts: array (…, 4) of TP, FP, FN and TN.

    Returns:
        Array (…, 5), in the order of `SCORES`.
    """
    # float64, because a product of four counts of a large map overflows int64.
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
    """Confusion matrix: counts of TP, FP, FN and TN.

    Counts of disjoint sets add up.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def pixels(self) -> int:
        """Number of counted pixels."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def precision(self) -> float:
        """Share of the mapped landslide pixels that are correct.

        It is TP / (TP + FP).

        It is 0 if nothing was mapped.
        """
        return self.scores()["precision"]

    @property
    def recall(self) -> float:
        """Share of the landslide pixels that are mapped.

        It is TP / (TP + FN).

        It is 0 if there are none.
        """
        return self.scores()["recall"]

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall.

        It is 2 TP / (2 TP + FP + FN).
        """
        return self.scores()["f1"]

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN): intersection over union."""
        return self.scores()["iou"]

    @property
    def mcc(self) -> float:
        """Matthews' correlation coefficient of map and truth, −1 to 1.

        It is 0 if map or truth is constant.
        """
        return self.scores()["mcc"]

    def scores(self) -> dict[str, float]:
        """Return the `SCORES` by name."""
        counts = np.array([self.tp, self.fp, self.fn, self.tn], np.float64)
        return dict(zip(SCORES, scores(counts).tolist(), strict=True))


def confusion(
    predicted: NDArray[np.bool_], truth: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None
) -> Confusion:
    """Count a predicted mask against the truth.

    Args:
        predicted: true where a landslide was mapped; any shape.
        truth: 1 landslide, 0 background, 255 unknown; same shape.
        valid: false where the pixel is not mapped; same shape. Default: all pixels are mapped.
    """
    known = truth != UNKNOWN
    if valid is not None:
        known = known & valid
    positive = truth == LANDSLIDE
    tp = int(np.count_nonzero(predicted & positive & known))
    fp = int(np.count_nonzero(predicted & ~positive & known))
    fn = int(np.count_nonzero(~predicted & positive & known))
    return Confusion(tp, fp, fn, int(np.count_nonzero(known)) - tp - fp - fn)


# Difference in F1 that `best_threshold` can gain by chance on the pixels that it is chosen on.
SKILL_MARGIN = 0.005


def all_landslide_f1(share: float) -> float:
    """Return the F1 of a map that is all landslide.

    It is 2 p / (1 + p) for a landslide share p.

    Args:
        share: share p of landslide pixels, 0 to 1.
    """
    return 2 * share / (1 + share)


def lack_of_skill(counts: Confusion) -> str:
    """Return a sentence if a map is no better than a constant map.

    A constant map is landslide everywhere (F1 = 2 p / (1 + p) for a landslide share p) or nowhere (F1 = 0). A map is
    better if its F1 exceeds the larger of both by more than `SKILL_MARGIN`. The text is empty if the map is better, or
    if the truth has only one class.

    Args:
        counts: counts of the mapped pixels with known truth.
    """
    landslide, background = counts.tp + counts.fn, counts.fp + counts.tn
    if not landslide or not background:
        return ""
    constant = all_landslide_f1(landslide / (landslide + background))
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
    """Counts of pixels by the number of `THRESHOLDS` that they reach.

    A probability reaches a threshold that is at most as high, compared in float32. Histograms of disjoint sets add up.
    All arrays have shape (100,), for 0 to 99 thresholds.

    Attributes:
        landslide: number of landslide pixels, int64.
        background: number of background pixels, int64.
        probability: sum of the probabilities of both classes, float64.
    """

    landslide: NDArray[np.int64] = field(default_factory=_no_pixels)
    background: NDArray[np.int64] = field(default_factory=_no_pixels)
    probability: NDArray[np.float64] = field(default_factory=_no_probability)

    @classmethod
    def of(cls, probability: NDArray[np.float32], truth: NDArray[np.uint8]) -> ThresholdHistogram:
        """Count probabilities by the number of thresholds that they reach.

        Args:
            probability: probability of a landslide, any shape; NaN (not mapped) is not counted.
            truth: 1 landslide, 0 background, 255 unknown, which is not counted; same shape.
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
        """Return the confusion at each of the `THRESHOLDS`."""
        hits, alarms = (counts[::-1].cumsum()[::-1].tolist() for counts in (self.landslide, self.background))
        return [Confusion(tp, fp, hits[0] - tp, alarms[0] - fp) for tp, fp in zip(hits[1:], alarms[1:], strict=True)]

    def bins(self) -> ReliabilityBins:
        """Return the counts in probability bins of width 0.05."""
        landslide, background, probability = (
            values.reshape(CALIBRATION_BINS, -1).sum(axis=1)
            for values in (self.landslide, self.background, self.probability)
        )
        return ReliabilityBins(landslide + background, landslide, probability)


@dataclass(frozen=True)
class ReliabilityBins:
    """Pixel counts in probability bins of equal width.

    The bins cover 0 to 1.

    All arrays have shape (CALIBRATION_BINS,).

    Attributes:
        pixels: number of pixels, int64.
        landslide: number of landslide pixels, int64.
        probability: sum of the probabilities, float64.
    """

    pixels: NDArray[np.int64]
    landslide: NDArray[np.int64]
    probability: NDArray[np.float64]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1; 0 without pixels.

        It is the sum over the bins b of n_b / n |landslide share of b - mean probability of b|, with n_b of all n
        pixels in b (M. P. Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; C.
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3), for the probability of a
        landslide.
        """
        pixels = int(self.pixels.sum())
        return float(np.abs(self.landslide - self.probability).sum()) / pixels if pixels else 0.0


def best_threshold(levels: ThresholdHistogram, tie: float = 0.005) -> float:
    """Return the threshold nearest to 0.5 with nearly the best F1.

    Its F1 is within `tie` of the highest.

    A network trained on Dice loss gives 0 or 1 nearly everywhere, so its F1 hardly depends on the threshold. The exact
    maximum is then random, and an extreme threshold does not transfer to another area.

    Args:
        levels: histogram of the pixels to choose by.
        tie: difference in F1 that does not justify an extreme threshold.
    """
    f1 = np.array([counts.f1 for counts in levels.curve()])
    good = THRESHOLDS[f1 >= f1.max() - tie]
    return float(good[np.argmin(np.abs(good - 0.5))])


# Confidence level of intervals.
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class DesignEffect:
    """Design effects of a sample of blocks.

    They are relative to a sample of single pixels.

    Attributes:
        effects: ratios of variances, at least 1, of the landslide share among pixels mapped as landslide and as
            background.
        correlation: correlation of the two shares between blocks.
    """

    effects: tuple[float, float]
    correlation: float

    @classmethod
    def of(cls, blocks: NDArray[np.int64]) -> DesignEffect:
        """Estimate the design effects from blocks.

        Args:
            blocks: array (blocks, 4) of TP, FP, FN and TN. Fewer than two blocks give the effects 1 and 1, and
                correlation 0.
        """
        found, sampled = blocks[:, [0, 2]], blocks[:, [0, 2]] + blocks[:, [1, 3]]
        in_all = sampled.sum(axis=0)
        if len(blocks) < 2 or in_all.min() < 2:
            return cls((1.0, 1.0), 0.0)
        share = found.sum(axis=0) / in_all
        residuals = (found - share * sampled) / in_all
        covariance = len(blocks) / (len(blocks) - 1) * residuals.T @ residuals
        singly = share * (1 - share) / (in_all - 1)
        effects = [max(float(covariance[i, i] / singly[i]), 1.0) if singly[i] else 1.0 for i in range(2)]
        spread = float(np.sqrt(covariance[0, 0] * covariance[1, 1]))
        correlation = float(np.clip(covariance[0, 1] / spread, -1, 1)) if spread else 0.0
        return cls((effects[0], effects[1]), correlation)


@dataclass(frozen=True)
class Interval:
    """Share of an area with its 95 % confidence interval.

    All three numbers are 0 to 1.
    """

    estimate: float
    low: float
    high: float


def stratified_estimate(
    found: Sequence[int],
    sampled: Sequence[int],
    weights: Sequence[float],
    design: DesignEffect | None = None,
    degrees: int | None = None,
) -> Interval:
    """Estimate the share of a class in an area.

    This is the stratified estimate of equations 9 to 11.

    Args:
        found: number of sampled pixels of the wanted class, for each class of the map.
        sampled: number of sampled pixels, at least 2, for each class of the map.
        weights: share of the mapped area, for each class of the map; they add up to 1.
        design: design effects of a sample of blocks, for two classes. Default: pixels were sampled independently.
        degrees: degrees of freedom of Student's t, the number of blocks less one. Default: the normal distribution.
    """
    from scipy.special import ndtri, stdtrit

    counts, weight = np.array(sampled, np.float64), np.array(weights, np.float64)
    share = np.array(found) / counts
    effects = np.ones_like(share) if design is None else np.array(design.effects)
    errors = weight * np.sqrt(effects * share * (1 - share) / (counts - 1))
    between = np.eye(len(share))
    if design is not None:
        between[0, 1] = between[1, 0] = design.correlation
    estimate, error = float(weight @ share), float(np.sqrt(max(float(errors @ between @ errors), 0.0)))
    quantile = (1 + CONFIDENCE_LEVEL) / 2
    reach = error * float(ndtri(quantile) if degrees is None else stdtrit(degrees, quantile))
    return Interval(estimate, max(estimate - reach, 0.0), min(estimate + reach, 1.0))
