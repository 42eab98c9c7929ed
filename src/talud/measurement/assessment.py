"""Counts of a map against the truth, and the scores that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from talud.confusion_map import NOT_MAPPED, at_threshold
from talud.contract import Validation
from talud.metrics import LANDSLIDE, UNKNOWN, Confusion, Design, ThresholdHistogram, confusion


@dataclass(frozen=True)
class Assessment:
    """Counts of a map against the truth; the counts of disjoint windows add up.

    Attributes:
        blocks: confusion of each window that holds a mapped pixel of known truth.
        windows: number of windows that hold a pixel of known truth.
        not_mapped: pixels of known truth that the map leaves out, under a cloud for example.
        not_mapped_landslide: number of these that are landslide.
        histogram: pixels by probability; empty for a map of classes.
    """

    blocks: tuple[Confusion, ...] = ()
    windows: int = 0
    not_mapped: int = 0
    not_mapped_landslide: int = 0
    histogram: ThresholdHistogram = field(default_factory=ThresholdHistogram, compare=False, repr=False)

    @classmethod
    def of(cls, truth: NDArray[np.uint8], probability: NDArray[np.float32], threshold: float) -> Assessment:
        """Count a window of probabilities as one block.

        Args:
            truth: 1 landslide, 0 background, 255 unknown.
            probability: probability of a landslide, NaN where not mapped; same shape.
            threshold: least probability that is mapped as landslide.
        """
        histogram = ThresholdHistogram.of(probability, truth)
        return cls._counted(truth, at_threshold(probability, threshold), histogram)

    @classmethod
    def of_class_map(cls, truth: NDArray[np.uint8], classes: NDArray[np.uint8]) -> Assessment:
        """Count a window of a class map (1 landslide, 0 background, 255 not mapped) as one block."""
        return cls._counted(truth, classes, ThresholdHistogram())

    @classmethod
    def _counted(
        cls, truth: NDArray[np.uint8], classes: NDArray[np.uint8], histogram: ThresholdHistogram
    ) -> Assessment:
        unmapped = classes == NOT_MAPPED
        counts = confusion(classes == LANDSLIDE, truth, ~unmapped)
        left_out = int(np.count_nonzero(unmapped & (truth != UNKNOWN)))
        missed = int(np.count_nonzero(unmapped & (truth == LANDSLIDE)))
        blocks = (counts,) if counts.pixels else ()
        return cls(blocks, int(counts.pixels + left_out > 0), left_out, missed, histogram)

    @classmethod
    def total(cls, parts: Iterable[Assessment]) -> Assessment:
        """Add up the counts of disjoint windows, in their order."""
        blocks: list[Confusion] = []
        windows = not_mapped = not_mapped_landslide = 0
        histogram = ThresholdHistogram()
        for part in parts:
            blocks += part.blocks
            windows += part.windows
            not_mapped += part.not_mapped
            not_mapped_landslide += part.not_mapped_landslide
            histogram += part.histogram
        return cls(tuple(blocks), windows, not_mapped, not_mapped_landslide, histogram)

    def __add__(self, other: Assessment) -> Assessment:
        return Assessment.total((self, other))

    @property
    def confusion(self) -> Confusion:
        """Return the counts of all mapped pixels of known truth."""
        return sum(self.blocks, start=Confusion())

    @property
    def block_counts(self) -> NDArray[np.int64]:
        """Return TP, FP, FN and TN of each block, (blocks, 4), for the bootstrap."""
        counts = [(block.tp, block.fp, block.fn, block.tn) for block in self.blocks]
        return np.array(counts, np.int64).reshape(-1, 4)

    @property
    def pixels(self) -> int:
        """Return the number of pixels of known truth, mapped or not."""
        return self.confusion.pixels + self.not_mapped

    @property
    def landslide_pixels(self) -> int:
        """Return the number of landslide pixels, mapped or not."""
        return self.confusion.tp + self.confusion.fn + self.not_mapped_landslide

    @property
    def not_mapped_landslide_share(self) -> float:
        """Return the share of the landslide pixels that the map leaves out."""
        return self.not_mapped_landslide / self.landslide_pixels if self.landslide_pixels else 0.0

    @property
    def not_mapped_share(self) -> float:
        """Return the share of the pixels of known truth that the map leaves out."""
        return self.not_mapped / self.pixels if self.pixels else 0.0

    @property
    def precision(self) -> float:
        """Return TP / (TP + FP), 0 where nothing was mapped."""
        return self.confusion.precision

    @property
    def recall(self) -> float:
        """Return TP / (TP + FN), 0 where there is no landslide."""
        return self.confusion.recall

    @property
    def f1(self) -> float:
        """Return the harmonic mean of precision and recall."""
        return self.confusion.f1

    @property
    def iou(self) -> float:
        """Return TP / (TP + FP + FN), the intersection over union."""
        return self.confusion.iou

    @property
    def mcc(self) -> float:
        """Return Matthews' correlation coefficient."""
        return self.confusion.mcc

    @property
    def calibration_error(self) -> float:
        """Return the expected calibration error of the probabilities."""
        return self.histogram.bins().calibration_error

    @property
    def validation(self) -> Validation:
        """Return the counts in the form in which a contract holds those of its validation blocks."""
        design, counts = Design.of(self.block_counts), self.confusion
        return Validation(
            tp=counts.tp,
            fp=counts.fp,
            fn=counts.fn,
            tn=counts.tn,
            blocks=len(self.blocks),
            design_effects=design.effects,
            correlation=design.correlation,
        )

    @property
    def missing_class(self) -> str:
        """Return a sentence if the truth of the mapped pixels holds one class only, else an empty text."""
        counts = self.confusion
        landslide, background = counts.tp + counts.fn, counts.fp + counts.tn
        if background and not landslide:
            return "no mapped pixel is known to be landslide, so scores there show only false alarms"
        if landslide and not background:
            return "no mapped pixel is known to be background, so that no false alarm is counted and precision is 1"
        return ""
