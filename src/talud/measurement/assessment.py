"""Pixel counts of a map against the truth, and scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from talud.confusion_map import NOT_MAPPED, apply_threshold
from talud.contract import Validation
from talud.metrics import LANDSLIDE, UNKNOWN, Confusion, DesignEffect, ThresholdHistogram, confusion


@dataclass(frozen=True)
class Assessment:
    """Pixel counts of a map against the truth.

    Assessments of disjoint windows can be added.

    Attributes:
        blocks: confusion of each window that holds a mapped pixel of known truth.
        windows: number of windows that hold a pixel of known truth.
        not_mapped: number of pixels of known truth that are not mapped, under a cloud for example.
        not_mapped_landslide: number of these that are landslide.
        histogram: pixels by probability; empty for a class map.
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
        return cls._counted(truth, apply_threshold(probability, threshold), histogram)

    @classmethod
    def of_class_map(cls, truth: NDArray[np.uint8], classes: NDArray[np.uint8]) -> Assessment:
        """Count a class map as one block.

        Args:
            truth: 1 landslide, 0 background, 255 unknown.
            classes: 1 landslide, 0 background, 255 not mapped; same shape.
        """
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
        """Add the counts of disjoint windows, in order."""
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
        """Counts of all mapped pixels of known truth."""
        return sum(self.blocks, start=Confusion())

    @property
    def block_counts(self) -> NDArray[np.int64]:
        """TP, FP, FN, TN by block, int64 (blocks, 4)."""
        counts = [(block.tp, block.fp, block.fn, block.tn) for block in self.blocks]
        return np.array(counts, np.int64).reshape(-1, 4)

    @property
    def pixels(self) -> int:
        """Number of pixels of known truth, mapped or not."""
        return self.confusion.pixels + self.not_mapped

    @property
    def landslide_pixels(self) -> int:
        """Number of landslide pixels, mapped or not."""
        return self.confusion.tp + self.confusion.fn + self.not_mapped_landslide

    @property
    def not_mapped_landslide_share(self) -> float:
        """Share of landslide pixels not mapped."""
        return self.not_mapped_landslide / self.landslide_pixels if self.landslide_pixels else 0.0

    @property
    def not_mapped_share(self) -> float:
        """Share of pixels of known truth not mapped."""
        return self.not_mapped / self.pixels if self.pixels else 0.0

    @property
    def precision(self) -> float:
        """TP / (TP + FP); 0 if undefined."""
        return self.confusion.precision

    @property
    def recall(self) -> float:
        """TP / (TP + FN); 0 if undefined."""
        return self.confusion.recall

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return self.confusion.f1

    @property
    def iou(self) -> float:
        """Intersection over union of the landslide class."""
        return self.confusion.iou

    @property
    def mcc(self) -> float:
        """Matthews' correlation coefficient."""
        return self.confusion.mcc

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the probabilities."""
        return self.histogram.bins().calibration_error

    @property
    def validation(self) -> Validation:
        """Counts as the `validation` part of a contract."""
        design, counts = DesignEffect.of(self.block_counts), self.confusion
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
    def single_class_warning(self) -> str:
        """Warning if the truth holds one class only, else empty."""
        counts = self.confusion
        landslide, background = counts.tp + counts.fn, counts.fp + counts.tn
        if background and not landslide:
            return "no mapped pixel is known to be landslide, so the scores show only false alarms"
        if landslide and not background:
            return "no mapped pixel is known to be background, so no false alarm can be counted and precision is 1"
        return ""
