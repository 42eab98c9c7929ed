"""Distance of a raster from the training data.

For each band, the histogram of the valid training pixels, which is stored in the contract, is compared with that of the
raster by histogram intersection: the sum over the bins of the smaller of both shares (M. J. Swain and D. H. Ballard,
Color Indexing, International Journal of Computer Vision 7, 1991, equation 1; for densities, the overlapping
coefficient). It is the share of the raster's values that the training data account for: 1 if both distributions are
equal, 0 if they have no value in common. Two normal distributions of equal width whose means are d standard deviations
apart overlap by 2 Φ(−d / 2).

Differences of neighbouring optical bands, and of SAR bands, are compared in the same way: a forest in autumn may be as
bright in each band as one in summer, and differ only in hue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from talud.bands import mask_implausible
from talud.contract import BandContract, Contract, Difference

# Overlap from which a band is like the training areas: that of normal distributions one standard deviation apart.
SIMILAR_OVERLAP = 0.6
# Overlap below which a band is far from the training areas: that of two standard deviations.
FAR_OVERLAP = 0.3
# Share of values outside the training range above which a band differs from the training areas.
MAX_OUTSIDE_SHARE = 0.05
# Relative difference below which two pixel sizes are the same.
SAME_PIXEL_SIZE = 0.001
# A map is not plausible if its landslide share is more than this many times that of the training areas, and higher by
# this much. In docs/explanation/transfer.md, ruined maps had 3.5 and 5 times the share and 0.19 and 0.27 more, others
# up to 2.8 times and 0.08 more, and the labels of an area up to 3.7 times and 0.12 more.
IMPLAUSIBLE_FACTOR, IMPLAUSIBLE_EXCESS = 3.0, 0.15
# Landslide share above which no map is plausible.
IMPLAUSIBLE_SHARE = 0.5
# Number of labelled patches with which fine-tuning was measured (docs/explanation/results-real-patches.md).
ADVISED_PATCHES = 10
# Largest number of pixels of a band that are compared; the standard error of a share is then at most 0.0014.
MAX_COUNTED_PIXELS = 1 << 17


class DomainVerdict(StrEnum):
    """Verdict on a band or raster, best first."""

    NO_VALUES = "no valid values"
    NO_HISTOGRAM = "the model holds no histograms"
    LIKE = "like the training areas"
    DIFFERS = "differs from the training areas"
    FAR = "far from the training areas"


UNLIKE_VERDICTS = (DomainVerdict.DIFFERS, DomainVerdict.FAR)


@dataclass(frozen=True)
class DomainDistance:
    """Distance of a band from the training areas.

    A band may be the difference of two bands.

    Attributes:
        band: name of the band or difference, such as "red" or "red − green".
        overlap: intersection of both histograms, 0 to 1; None if the model has no histogram of the band, or the raster
            no valid value.
        outside: share of the raster's values below the minimum or above the maximum of the training pixels, 0 to 1;
            None if the raster has no valid value.
    """

    band: str
    overlap: float | None
    outside: float | None

    @classmethod
    def of(cls, pixels: NDArray[np.float32], band: BandContract) -> DomainDistance:
        """Compare a band with the training areas.

        Args:
            pixels: values of any shape, NaN where invalid; implausible values count as invalid. Of many pixels, a
                regular sample is compared.
            band: contract of the band.
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
        """Compare a difference of bands with the training areas.

        Args:
            first: pixels and contract of the first band, as for `of`.
            second: pixels of the second band, in the same order, and its contract.
            difference: training histogram of the difference.
        """
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
        """Compare values with a training histogram and range."""
        if not values.size:
            return cls(name, None, None)
        outside = float(np.mean((values < limits[0]) | (values > limits[1])))
        if not learned:
            return cls(name, None, outside)
        return cls(name, float(np.minimum(count_bins(values, edges) / values.size, learned).sum()), outside)

    @property
    def verdict(self) -> DomainVerdict:
        """Verdict by overlap and values out of range."""
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
    """Return the worst verdict of all bands."""
    return max((distance.verdict for distance in distances), key=list(DomainVerdict).index)


def is_implausible(mapped: float, training: float | None) -> bool:
    """Check if a map has far more landslide than the training areas.

    Args:
        mapped: share of landslide in the mapped pixels, 0 to 1.
        training: share of landslide in the training areas; None if it is not known.
    """
    if mapped > IMPLAUSIBLE_SHARE:
        return True
    return training is not None and mapped > max(IMPLAUSIBLE_FACTOR * training, training + IMPLAUSIBLE_EXCESS)


def plausibility_sentence(mapped: float, training: float | None) -> str:
    """Describe a map with implausibly many landslides.

    Args:
        mapped: share of landslide in the mapped pixels, 0 to 1.
        training: share of landslide in the training areas; None if it is not known.

    Returns:
        A sentence without a full stop; empty if the map is plausible.
    """
    if not is_implausible(mapped, training):
        return ""
    known = "" if training is None else f"; the training areas had {format_share(training)}"
    return f"The map calls {format_share(mapped)} of the land a landslide{known}: the map is probably wrong"


def advice_sentence(*, adapted: bool) -> str:
    """Return advice on an implausible map.

    Args:
        adapted: whether the model was adapted to the area already.
    """
    ways = [] if adapted else ["adapt the model to this raster (talud adapt)"]
    ways += [
        f"fine-tune it with at least {ADVISED_PATCHES} labelled patches of this area (talud finetune)",
        "train with images of the region",
    ]
    return f"Compare the map with the image before using it, and {', '.join(ways[:-1])} or {ways[-1]}"


def format_share(share: float) -> str:
    """Format a share in percent, with a decimal below 2 %."""
    return f"{share:.1%}" if share < 0.02 else f"{share:.0%}"


def pixel_size_sentence(size: float, contract: Contract) -> str:
    """Compare a raster's pixel size with those of the training areas.

    Args:
        size: pixel size of the raster in metres.
        contract: contract of the model.

    Returns:
        A sentence; empty if all training areas have the pixel size of the model.
    """
    sizes = contract.origin.area_pixel_sizes
    if not sizes:
        return ""
    areas = ", ".join(f"{area} {own:g} m" for area, own in sizes.items())
    if not contract.input.pixel_sizes:
        return f"pixel size {size:g} m, to which the training areas were resampled ({areas})"
    if any(math.isclose(size, own, rel_tol=SAME_PIXEL_SIZE) for own in contract.input.pixel_sizes):
        return f"pixel size {size:g} m, as in some training areas ({areas})"
    return f"pixel size {size:g} m, between those of the training areas ({areas}): no data of this size were trained on"


def report_lines(
    distances: Sequence[DomainDistance], pixel_size: str = "", shares: tuple[float, float | None] = (0.0, None)
) -> list[str]:
    """Return the verdict, and a line for each unlike band.

    Args:
        distances: distance of each band from the training areas.
        pixel_size: result of `pixel_size_sentence`, which gets a line if it is not empty.
        shares: share of landslide in the map and in the training areas, which get a line if both are known.
    """
    mapped, training = shares
    unlike = [distance for distance in distances if distance.verdict in UNLIKE_VERDICTS]
    return [
        f"domain: {overall_verdict(distances)}",
        *([f"  {pixel_size}"] if pixel_size else []),
        *([] if training is None else [_shares_line(mapped, training)]),
        *(f"  {one.band}: overlap {one.overlap:.0%}, outside the training range {one.outside:.1%}" for one in unlike),
    ]


def _shares_line(mapped: float, training: float) -> str:
    doubt = ", not plausible" if is_implausible(mapped, training) else ""
    return f"  landslide: {format_share(mapped)} of the map, {format_share(training)} of the training areas{doubt}"


def _pixel_sample(pixels: NDArray[np.float32], band: BandContract) -> NDArray[np.float32]:
    """Return a flat sample of plausible pixels."""
    return mask_implausible(pixels.ravel()[:: -(-pixels.size // MAX_COUNTED_PIXELS)], band.lowest, band.highest)


def count_bins(values: NDArray[np.floating], edges: Sequence[float]) -> NDArray[np.int64]:
    """Count the values in each bin of a histogram."""
    return np.histogram(values, np.array(edges))[0]
