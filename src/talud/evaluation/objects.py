"""Landslides found, one by one, rather than pixels: by size class, and false alarms beside them.

A landslide is a connected part of the inventory's mask, a mapped object one of the class map; pixels that touch at a
corner are connected in both, as in the polygons of a map. So inventory polygons that touch are one landslide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from talud.confusion_map import NOT_MAPPED
from talud.metrics import LANDSLIDE, UNKNOWN

BOUNDS = (400.0, 1_000.0, 10_000.0, 100_000.0)  # m², of the size classes
DETECTED = 0.5  # of a landslide's mapped pixels: the least that makes it detected
_CONNECTED = np.ones((3, 3), np.bool_)
_SQUARE_METRES = 1e6  # of a km²


@dataclass(frozen=True)
class SizeClass:
    """The landslides of one size class.

    Attributes:
        low: m², the smallest area that belongs to it.
        high: m², the area from which on the next class counts; None in the last.
        landslides: those that were judged.
        detected: of them, those of whose mapped pixels at least half are landslide on the map.
        touched: of them, those of which at least one pixel is.
        not_mapped: landslides that were not judged, since less than half of their pixels are mapped.
    """

    low: float
    high: float | None
    landslides: int = 0
    detected: int = 0
    touched: int = 0
    not_mapped: int = 0

    def __add__(self, other: SizeClass) -> SizeClass:
        return SizeClass(
            self.low,
            self.high,
            self.landslides + other.landslides,
            self.detected + other.detected,
            self.touched + other.touched,
            self.not_mapped + other.not_mapped,
        )

    @property
    def title(self) -> str:
        """The class in words."""
        if self.high is None:
            return f"≥ {self.low:,.0f} m²"
        return f"{self.low:,.0f} to {self.high:,.0f} m²" if self.low else f"< {self.high:,.0f} m²"


@dataclass(frozen=True)
class ObjectTally:
    """Landslides detected and false alarms, counted in one or more windows; counts of disjoint windows add up.

    Attributes:
        classes: the landslides by size, the smallest first.
        mapped: objects of the map that were judged.
        false_alarms: of them, those that share no pixel with a landslide.
        cut: landslides that lie at the edge of a window, so that some of each may be missing.
        square_metres: mapped ground whose truth is known.
    """

    classes: tuple[SizeClass, ...] = ()
    mapped: int = 0
    false_alarms: int = 0
    cut: int = 0
    square_metres: float = 0.0

    @classmethod
    def of(cls, mapped: NDArray[np.uint8], truth: NDArray[np.uint8], pixel_area: float) -> ObjectTally:
        """Count the objects of a window.

        An object of the map counts where the truth of at least half of its pixels is known.

        Args:
            mapped: 1 landslide, 0 background, 255 not mapped; (height, width).
            truth: 1 landslide, 0 background, 255 unknown; same shape.
            pixel_area: in m².
        """
        slides, count = ndimage.label(truth == LANDSLIDE, _CONNECTED)
        found, objects = ndimage.label(mapped == LANDSLIDE, _CONNECTED)
        pixels, seen, hits = (
            _count(slides, count, where) for where in (slides > 0, mapped != NOT_MAPPED, mapped == LANDSLIDE)
        )
        extent, known, shared = (
            _count(found, objects, where) for where in (found > 0, truth != UNKNOWN, truth == LANDSLIDE)
        )
        judged = 2 * known >= extent
        edge = np.unique(np.concatenate([slides[0], slides[-1], slides[:, 0], slides[:, -1]]))
        return cls(
            _classes(pixels, seen, hits, pixel_area),
            int(np.count_nonzero(judged)),
            int(np.count_nonzero(judged & (shared == 0))),
            int(np.count_nonzero(edge)),
            float(np.count_nonzero((mapped != NOT_MAPPED) & (truth != UNKNOWN)) * pixel_area),
        )

    def __add__(self, other: ObjectTally) -> ObjectTally:
        """The counts of both, of rasters with pixels of the same size; the empty tally adds nothing."""
        pairs = zip(self.classes, other.classes, strict=True) if self.classes and other.classes else ()
        return ObjectTally(
            tuple(ours + theirs for ours, theirs in pairs) or self.classes or other.classes,
            self.mapped + other.mapped,
            self.false_alarms + other.false_alarms,
            self.cut + other.cut,
            self.square_metres + other.square_metres,
        )

    @property
    def landslides(self) -> int:
        """All that were judged."""
        return sum(each.landslides for each in self.classes)

    @property
    def detected(self) -> int:
        """Those of them that were detected."""
        return sum(each.detected for each in self.classes)

    @property
    def f1(self) -> float:
        """The harmonic mean of the detected share of the landslides and the share of objects that are no false alarm.

        0 where there is neither.
        """
        shares = self.detected / max(self.landslides, 1), 1 - self.false_alarms / max(self.mapped, 1)
        return 2 * shares[0] * shares[1] / sum(shares) if shares[0] else 0.0

    @property
    def false_alarms_per_km2(self) -> float:
        """False alarms by km² of mapped ground whose truth is known; 0 where there is none."""
        return self.false_alarms / self.square_metres * _SQUARE_METRES if self.square_metres else 0.0


def size_bounds(pixel_area: float) -> tuple[float, ...]:
    """Those of the `BOUNDS` below which a landslide of a whole pixel can lie: no class is empty by necessity."""
    return tuple(bound for bound in BOUNDS if bound > pixel_area)


def _classes(
    pixels: NDArray[np.int64], seen: NDArray[np.int64], hits: NDArray[np.int64], pixel_area: float
) -> tuple[SizeClass, ...]:
    """Landslides by size, from how many pixels each has, how many of them are mapped, and how many as landslide."""
    bounds = size_bounds(pixel_area)
    size = np.searchsorted(bounds, pixels * pixel_area, side="right")
    judged = 2 * seen >= pixels
    detected, touched = judged & (hits >= DETECTED * seen), judged & (hits > 0)
    by_class = (np.bincount(size[which], minlength=len(bounds) + 1) for which in (judged, detected, touched, ~judged))
    limits = zip((0.0, *bounds), (*bounds, None), strict=True)
    return tuple(
        SizeClass(low, high, *map(int, counts)) for (low, high), *counts in zip(limits, *by_class, strict=True)
    )


def _count(labels: NDArray[np.int32], count: int, where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many pixels of each label, from 1 to count, lie where something is true."""
    return np.bincount(labels[where], minlength=count + 1)[1:]
