"""Domain report: the distance of a raster from a model's training data.

For each band, the histogram of the valid training pixels, which the contract holds, is compared with that of the
raster by their intersection: the sum over the bins of the smaller of both shares (M. J. Swain and D. H. Ballard, Color
Indexing, International Journal of Computer Vision 7, 1991, equation 1; for densities, the overlapping coefficient).
It is the share of the raster's values that the training data account for: 1 where both are distributed alike, 0 where
they have no value in common. Two normal distributions of one width, d widths apart, overlap by 2 Φ(−d / 2).

Differences of neighbouring optical bands, and of SAR bands, are compared likewise: a forest in autumn may be as bright
in each band as one in summer, and what tells them apart is the hue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from talud.bands import mask_implausible
from talud.contract import BandContract, Difference

SIMILAR_OVERLAP = 0.6  # overlap of normal distributions about one width apart, from which a band counts as alike
FAR_OVERLAP = 0.3  # about two widths apart, below which it counts as far
MAX_OUTSIDE_SHARE = 0.05  # share of values outside the training range, above which a band differs
MAX_COUNTED_PIXELS = 1 << 17  # pixels of a band, at most: a share is then known to 0.003


class DomainVerdict(StrEnum):
    """On a band, or, as the worst of its bands, on a raster; the worse, the later."""

    NO_VALUES = "no valid values"
    NO_HISTOGRAM = "the model holds no histograms"
    LIKE = "like the training areas"
    DIFFERS = "differs from the training areas"
    FAR = "far from the training areas"


UNLIKE_VERDICTS = (DomainVerdict.DIFFERS, DomainVerdict.FAR)


@dataclass(frozen=True)
class DomainDistance:
    """Distance of a band, or a difference of two, from the training areas.

    Attributes:
        band: its name, such as "red" or "red − green".
        overlap: intersection of both histograms, 0 to 1; None where the model holds no histogram of the band, or the
            raster no valid value.
        outside: share of the raster's values below the lowest or above the highest of the training pixels, 0 to 1;
            None where the raster holds no valid value.
    """

    band: str
    overlap: float | None
    outside: float | None

    @classmethod
    def of(cls, pixels: NDArray[np.float32], band: BandContract) -> DomainDistance:
        """Compare pixels of a raster's band, of any shape and NaN where invalid, with those of the training areas.

        Implausible values count as invalid. Of many pixels, every so many are counted.
        """
        values = _pixel_sample(pixels, band)
        values = values[np.isfinite(values)]
        return cls._compared(band.name, values, band.edges, band.shares, (band.minimum, band.maximum))

    @classmethod
    def between(
        cls,
        first: tuple[NDArray[np.float32], BandContract],
        second: tuple[NDArray[np.float32], BandContract],
        difference: Difference,
    ) -> DomainDistance:
        """Compare the difference of two bands, whose pixels are in one order, each as `of` takes them."""
        values = _pixel_sample(*first) - _pixel_sample(*second)
        values = values[np.isfinite(values)]
        limits = difference.edges[0], difference.edges[-1]
        return cls._compared(" − ".join(difference.bands), values, difference.edges, difference.shares, limits)

    @classmethod
    def _compared(
        cls,
        name: str,
        values: NDArray[np.float32],
        edges: Sequence[float],
        learned: Sequence[float],
        limits: tuple[float, float],
    ) -> DomainDistance:
        """Compare valid values with a training histogram, if any, and range."""
        if not values.size:
            return cls(name, None, None)
        outside = float(np.mean((values < limits[0]) | (values > limits[1])))
        if not learned:
            return cls(name, None, outside)
        return cls(name, float(np.minimum(count_bins(values, edges) / values.size, learned).sum()), outside)

    @property
    def verdict(self) -> DomainVerdict:
        """In plain words."""
        if self.outside is None:
            return DomainVerdict.NO_VALUES
        if self.overlap is None:
            return DomainVerdict.NO_HISTOGRAM
        if self.overlap < FAR_OVERLAP:
            return DomainVerdict.FAR
        return (
            DomainVerdict.DIFFERS
            if self.overlap < SIMILAR_OVERLAP or self.outside > MAX_OUTSIDE_SHARE
            else DomainVerdict.LIKE
        )


def overall_verdict(distances: Sequence[DomainDistance]) -> DomainVerdict:
    """The worst verdict of all bands, of which there is at least one."""
    return max((distance.verdict for distance in distances), key=list(DomainVerdict).index)


def report_lines(distances: Sequence[DomainDistance]) -> list[str]:
    """The verdict on the raster, and the bands that are not alike, in a line each."""
    unlike = [distance for distance in distances if distance.verdict in UNLIKE_VERDICTS]
    return [
        f"domain: {overall_verdict(distances)}",
        *(f"  {one.band}: overlap {one.overlap:.0%}, outside the training range {one.outside:.1%}" for one in unlike),
    ]


def _pixel_sample(pixels: NDArray[np.float32], band: BandContract) -> NDArray[np.float32]:
    """Return the pixels that are counted, flat; NaN where one is implausible."""
    return mask_implausible(pixels.ravel()[:: -(-pixels.size // MAX_COUNTED_PIXELS)], band.lowest, band.highest)


def count_bins(values: NDArray[np.floating], edges: Sequence[float]) -> NDArray[np.int64]:
    """Return how many values lie in each bin of a histogram."""
    return np.histogram(values, np.array(edges))[0]
