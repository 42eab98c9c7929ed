"""From probabilities to a class map: hysteresis, segments, slope, minimum mapping unit; and its objects counted.

Pure functions of arrays on one grid, (height, width). Objects are pixels that touch at an edge or a corner, as those of
the polygons of a map (see `talud.products.polygons`). Pixels that are not mapped (NaN, or 255 in a class map) stay so,
and divide objects. A landslide is a connected part of the inventory's mask, so inventory polygons that touch are one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import segmentation

from talud.confusion_map import NOT_MAPPED, apply_threshold
from talud.errors import ParamsError
from talud.imaging import percentile_limits, rescale
from talud.metrics import BACKGROUND, LANDSLIDE, UNKNOWN
from talud.params import Postprocessing, Segmentation

EIGHT_CONNECTED = np.ones((3, 3), np.bool_)  # neighbours of a pixel: 8-connectivity
_AREA_TOLERANCE = 1e-9  # of an area, as in `inference.polygons`
_COMPACTNESS = 0.1  # of SLIC: colours of 0 to 1 weigh more than nearness


@dataclass(frozen=True, eq=False)
class WindowContext:
    """Bands of the stack that post-processing reads in a window.

    Attributes:
        pixel_area: in m².
        image: float32 (bands, height, width): the optical bands, NaN where invalid; None where there are none.
        slope: float32 (height, width), in degrees, NaN where invalid; None where there is none.
    """

    pixel_area: float
    image: NDArray[np.float32] | None = None
    slope: NDArray[np.float32] | None = None


def postprocess(
    probability: NDArray[np.float32], threshold: float, options: Postprocessing, context: WindowContext
) -> NDArray[np.uint8]:
    """Return the class map of probabilities: 1 landslide, 0 background, 255 not mapped.

    Segments vote first, since they change probabilities; then the threshold, or hysteresis, makes objects, of which
    the slope rule and last the minimum mapping unit drop some.

    Args:
        probability: of a landslide, NaN where not mapped.
        threshold: of the model; `options` may name others.
        options: what is to be done; by default the threshold alone.
        context: on the same grid.

    Raises:
        ParamsError: the lower threshold lies above the upper one, or an option needs what the context has not.
    """
    if options.segments != "none":
        if context.image is None:
            raise ParamsError("postprocessing.segments: the stack has no optical band to segment; set it to none")
        parts = segments(context.image, options.segments, options.segment_scale)
        probability = segment_vote(probability, parts, options.segment_weight)
    high = threshold if options.hysteresis_high is None else options.hysteresis_high
    low = high if options.hysteresis_low is None else options.hysteresis_low
    landslides = hysteresis(probability, low, high)
    if options.slope_rule:
        if context.slope is None:
            raise ParamsError("postprocessing.slope_rule: the stack has no band 'slope'; set it to 0")
        landslides = slope_rule(landslides, context.slope, options.slope_rule)
    return minimum_mapping_unit(landslides, options.minimum_mapping_unit, context.pixel_area)


def hysteresis(probability: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Landslide where the probability is at least `low` and touches, through such pixels, one of at least `high`.

    Canny (1986, IEEE Transactions on Pattern Analysis and Machine Intelligence 8) follows edges in this way. With
    low = high it is the threshold. scikit-image's function is not used: it wants more than the threshold, where a map
    takes what reaches it, and knows no corners.

    Raises:
        ParamsError: low > high.
    """
    if low > high:
        raise ParamsError(f"hysteresis: the lower threshold is {low:g}, the upper one {high:g}; exchange them")
    strong, weak = (apply_threshold(probability, level) for level in (high, low))
    found = ndimage.binary_propagation(strong == LANDSLIDE, EIGHT_CONNECTED, weak == LANDSLIDE)
    return np.where(strong == NOT_MAPPED, NOT_MAPPED, found).astype(np.uint8)


def minimum_mapping_unit(landslides: NDArray[np.uint8], area: float, pixel_area: float) -> NDArray[np.uint8]:
    """Drop the objects that are smaller than an area.

    Args:
        landslides: 1 landslide, 0 background, 255 not mapped.
        area: in m², of the smallest object that is kept.
        pixel_area: in m².
    """
    labels, _ = ndimage.label(landslides == LANDSLIDE, EIGHT_CONNECTED)
    sizes = np.bincount(labels.ravel()) * pixel_area
    return _without(landslides, labels, sizes < area * (1 - _AREA_TOLERANCE))


def slope_rule(landslides: NDArray[np.uint8], slope: NDArray[np.float32], degrees: float) -> NDArray[np.uint8]:
    """Drop the objects whose mean slope is below a limit: water, fields and river bars look as bare as landslides.

    The mean of an object, not each pixel's slope: the toe of a landslide lies flat, and belongs to it. An object whose
    slope is nowhere known stays.

    Args:
        landslides: 1 landslide, 0 background, 255 not mapped.
        slope: in degrees, NaN where invalid.
        degrees: the limit.
    """
    labels, count = ndimage.label(landslides == LANDSLIDE, EIGHT_CONNECTED)
    return _without(landslides, labels, _means(slope, labels, count + 1) < degrees)


def segments(image: NDArray[np.float32], method: Segmentation, scale: float) -> NDArray[np.intp]:
    """Divide an image into segments of like colour: int (height, width), from 1; 0 where a band is invalid.

    Each band is stretched to 0 and 1 between its 2nd and 98th percentile, so that the same scale serves bands of any
    unit.

    Args:
        image: (bands, height, width), NaN where invalid.
        method: felzenszwalb (Felzenszwalb and Huttenlocher 2004, International Journal of Computer Vision 59), or slic
            (Achanta et al. 2012, IEEE Transactions on Pattern Analysis and Machine Intelligence 34).
        scale: for felzenszwalb, its scale: the higher, the larger the segments; for slic, the pixels of a segment.
    """
    valid: NDArray[np.bool_] = np.asarray(np.isfinite(image).all(axis=0))
    if not valid.any():
        return np.zeros(valid.shape, np.intp)
    stretched = np.stack([_stretched(band, valid) for band in image], axis=-1)
    if method == "felzenszwalb":
        # Unsmoothed: a blur would make segments of the rims of landslides, which are few pixels wide.
        labels = segmentation.felzenszwalb(stretched, scale=scale, sigma=0, min_size=4) + 1
    else:
        labels = segmentation.slic(
            stretched,
            n_segments=max(round(valid.size / scale), 1),
            compactness=_COMPACTNESS,
            convert2lab=False,  # bands need not be red, green and blue
            start_label=1,
        )
    return np.where(valid, labels, 0).astype(np.intp)


def segment_vote(
    probability: NDArray[np.float32], labels: NDArray[np.intp], weight: float = 1.0
) -> NDArray[np.float32]:
    """Blend each pixel's probability with the mean of its segment.

    Args:
        probability: of a landslide, NaN where not mapped: such pixels do not vote, and stay so.
        labels: the segments, from 1; where it is 0 a pixel keeps its own probability.
        weight: of the segment's mean, 0 to 1; the rest is the pixel's own.
    """
    means = _means(probability, labels, int(labels.max()) + 1)[labels]
    blended = weight * means + (1 - weight) * probability
    return np.where((labels > 0) & np.isfinite(probability), blended, probability).astype(np.float32)


def _stretched(band: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Stretch a band between 0 and 1; invalid pixels get its median, which adds no edge."""
    values = band[valid].astype(np.float64)
    return rescale(np.where(valid, band, np.median(values)).astype(np.float64), percentile_limits(values))


def _means(values: NDArray[np.float32], labels: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Return the mean of the finite values under the labels 0 to count − 1; NaN without any."""
    known = np.isfinite(values)
    number = np.bincount(labels[known], minlength=count)
    total = np.bincount(labels[known], weights=values[known], minlength=count)
    means = np.full(count, np.nan)
    np.divide(total, number, out=means, where=number > 0)
    return means


def _without(landslides: NDArray[np.uint8], labels: NDArray[np.intp], dropped: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Turn the objects of some labels into background."""
    dropped[0] = False
    return np.where(dropped[labels], BACKGROUND, landslides).astype(np.uint8)


SIZE_CLASS_BOUNDS_M2 = (400.0, 1_000.0, 10_000.0, 100_000.0)  # m², of the size classes
MIN_DETECTED_SHARE = 0.5  # of a landslide's mapped pixels: the least that makes it detected
_SQUARE_METRES_PER_KM2 = 1e6  # of a km²


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
class ObjectCounts:
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
    def of(cls, mapped: NDArray[np.uint8], truth: NDArray[np.uint8], pixel_area: float) -> ObjectCounts:
        """Count the objects of a window.

        An object of the map counts where the truth of at least half of its pixels is known.

        Args:
            mapped: 1 landslide, 0 background, 255 not mapped; (height, width).
            truth: 1 landslide, 0 background, 255 unknown; same shape.
            pixel_area: in m².
        """
        slides, count = ndimage.label(truth == LANDSLIDE, EIGHT_CONNECTED)
        found, objects = ndimage.label(mapped == LANDSLIDE, EIGHT_CONNECTED)
        pixels, seen, hits = (
            _count_pixels(slides, count, where) for where in (slides > 0, mapped != NOT_MAPPED, mapped == LANDSLIDE)
        )
        extent, known, shared = (
            _count_pixels(found, objects, where) for where in (found > 0, truth != UNKNOWN, truth == LANDSLIDE)
        )
        judged = 2 * known >= extent
        edge = np.unique(np.concatenate([slides[0], slides[-1], slides[:, 0], slides[:, -1]]))
        return cls(
            _count_by_size(pixels, seen, hits, pixel_area),
            int(np.count_nonzero(judged)),
            int(np.count_nonzero(judged & (shared == 0))),
            int(np.count_nonzero(edge)),
            float(np.count_nonzero((mapped != NOT_MAPPED) & (truth != UNKNOWN)) * pixel_area),
        )

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        """Add the counts of rasters with pixels of the same size."""
        pairs = zip(self.classes, other.classes, strict=True) if self.classes and other.classes else ()
        return ObjectCounts(
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
        """Number of landslides that were detected."""
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
        return self.false_alarms / self.square_metres * _SQUARE_METRES_PER_KM2 if self.square_metres else 0.0


def size_bounds(pixel_area: float) -> tuple[float, ...]:
    """Return the `SIZE_CLASS_BOUNDS_M2` that exceed a pixel's area, so that every class can hold a landslide."""
    return tuple(bound for bound in SIZE_CLASS_BOUNDS_M2 if bound > pixel_area)


def _count_by_size(
    pixels: NDArray[np.int64], seen: NDArray[np.int64], hits: NDArray[np.int64], pixel_area: float
) -> tuple[SizeClass, ...]:
    """Landslides by size, from how many pixels each has, how many of them are mapped, and how many as landslide."""
    bounds = size_bounds(pixel_area)
    size = np.searchsorted(bounds, pixels * pixel_area, side="right")
    judged = 2 * seen >= pixels
    detected, touched = judged & (hits >= MIN_DETECTED_SHARE * seen), judged & (hits > 0)
    by_class = (np.bincount(size[which], minlength=len(bounds) + 1) for which in (judged, detected, touched, ~judged))
    limits = zip((0.0, *bounds), (*bounds, None), strict=True)
    return tuple(
        SizeClass(low, high, *map(int, counts)) for (low, high), *counts in zip(limits, *by_class, strict=True)
    )


def _count_pixels(labels: NDArray[np.int32], count: int, where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the pixels of each label, from 1 to count, at which a condition is true."""
    return np.bincount(labels[where], minlength=count + 1)[1:]
