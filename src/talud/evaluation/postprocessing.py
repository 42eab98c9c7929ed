"""Post-processing of probabilities to class maps, and counts of their objects.

All functions are pure and take arrays of one grid, (height, width). Objects are 8-connected, as the polygons of a map
are (see `talud.products.polygons`). Pixels that are not mapped (NaN, or 255 in a class map) stay unmapped and separate
objects. A landslide is a connected part of the inventory's mask, so touching inventory polygons are one landslide.
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

# Neighbourhood of a pixel: edges and corners.
EIGHT_CONNECTED = np.ones((3, 3), np.bool_)
# Relative tolerance of areas, as in `products.polygons`.
_AREA_TOLERANCE = 1e-9
# Compactness of SLIC, for colours of 0 to 1: colour outweighs distance.
_SLIC_COMPACTNESS = 0.1


@dataclass(frozen=True, eq=False)
class WindowContext:
    """Bands of a window that post-processing reads.

    Attributes:
        pixel_area: area of a pixel in m².
        image: float32 (bands, height, width): optical bands, NaN where invalid; None if the stack has none.
        slope: float32 (height, width): slope in degrees, NaN where invalid; None if the stack has none.
    """

    pixel_area: float
    image: NDArray[np.float32] | None = None
    slope: NDArray[np.float32] | None = None


def postprocess(
    probability: NDArray[np.float32], threshold: float, options: Postprocessing, context: WindowContext
) -> NDArray[np.uint8]:
    """Make a class map from probabilities.

    The steps are, in order: the vote of segments, which changes probabilities; the threshold, or hysteresis, which
    makes objects; the slope rule and the minimum mapping unit, which drop objects.

    Args:
        probability: probability of a landslide, NaN where not mapped.
        threshold: threshold of the model, unless `options` states others.
        options: methods and their parameters; by default only the threshold.
        context: bands of the same window.

    Returns:
        uint8: 1 landslide, 0 background, 255 not mapped.

    Raises:
        ParamsError: the lower threshold is above the upper one, or an option needs a band that the context lacks.
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
    """Apply a threshold with hysteresis.

    A pixel of at least `low` is landslide if pixels of at least `low` connect it to one of at least `high` (Canny 1986,
    IEEE Transactions on Pattern Analysis and Machine Intelligence 8). If low = high, this is the plain threshold.
    scikit-image's function is not used, because it excludes the threshold itself and is not 8-connected.

    Args:
        probability: probability of a landslide, NaN where not mapped.
        low: lower threshold.
        high: upper threshold.

    Returns:
        uint8: 1 landslide, 0 background, 255 not mapped.

    Raises:
        ParamsError: low > high.
    """
    if low > high:
        raise ParamsError(f"hysteresis: the lower threshold {low:g} is above the upper threshold {high:g}; swap them")
    strong, weak = (apply_threshold(probability, level) for level in (high, low))
    found = ndimage.binary_propagation(strong == LANDSLIDE, EIGHT_CONNECTED, weak == LANDSLIDE)
    return np.where(strong == NOT_MAPPED, NOT_MAPPED, found).astype(np.uint8)


def minimum_mapping_unit(landslides: NDArray[np.uint8], area: float, pixel_area: float) -> NDArray[np.uint8]:
    """Drop objects below a minimum area.

    Args:
        landslides: 1 landslide, 0 background, 255 not mapped.
        area: area of the smallest object that is kept, in m².
        pixel_area: area of a pixel in m².
    """
    labels, _ = ndimage.label(landslides == LANDSLIDE, EIGHT_CONNECTED)
    sizes = np.bincount(labels.ravel()) * pixel_area
    return _without(landslides, labels, sizes < area * (1 - _AREA_TOLERANCE))


def slope_rule(landslides: NDArray[np.uint8], slope: NDArray[np.float32], degrees: float) -> NDArray[np.uint8]:
    """Drop objects whose mean slope is below a limit.

    Water, fields and river bars are as bare as landslides, but flat. The mean of the object decides, because the flat
    toe of a landslide belongs to it. Objects without a valid slope are kept.

    Args:
        landslides: 1 landslide, 0 background, 255 not mapped.
        slope: slope in degrees, NaN where invalid.
        degrees: least mean slope in degrees.
    """
    labels, count = ndimage.label(landslides == LANDSLIDE, EIGHT_CONNECTED)
    return _without(landslides, labels, _means(slope, labels, count + 1) < degrees)


def segments(image: NDArray[np.float32], method: Segmentation, scale: float) -> NDArray[np.intp]:
    """Divide an image into segments of similar colour.

    Each band is scaled to 0 to 1 between its 2nd and 98th percentile, so that a scale suits bands of any unit.

    Args:
        image: (bands, height, width), NaN where invalid.
        method: felzenszwalb (Felzenszwalb and Huttenlocher 2004, International Journal of Computer Vision 59), or slic
            (Achanta et al. 2012, IEEE Transactions on Pattern Analysis and Machine Intelligence 34).
        scale: for felzenszwalb, its scale (larger values give larger segments); for slic, pixels per segment.

    Returns:
        int (height, width): labels from 1; 0 where a band is invalid.
    """
    valid: NDArray[np.bool_] = np.asarray(np.isfinite(image).all(axis=0))
    if not valid.any():
        return np.zeros(valid.shape, np.intp)
    stretched = np.stack([_stretched(band, valid) for band in image], axis=-1)
    if method == "felzenszwalb":
        # No smoothing: landslides are a few pixels wide, and a blur would make separate segments of their edges.
        labels = segmentation.felzenszwalb(stretched, scale=scale, sigma=0, min_size=4) + 1
    else:
        labels = segmentation.slic(
            stretched,
            n_segments=max(round(valid.size / scale), 1),
            compactness=_SLIC_COMPACTNESS,
            convert2lab=False,  # bands need not be red, green and blue
            start_label=1,
        )
    return np.where(valid, labels, 0).astype(np.intp)


def segment_vote(
    probability: NDArray[np.float32], labels: NDArray[np.intp], weight: float = 1.0
) -> NDArray[np.float32]:
    """Blend each pixel's probability with the mean of its segment.

    Args:
        probability: probability of a landslide, NaN where not mapped; such pixels do not vote and stay NaN.
        labels: labels of segments, from 1; pixels of label 0 keep their probability.
        weight: weight of the segment's mean, 0 to 1; the rest is the weight of the pixel.
    """
    means = _means(probability, labels, int(labels.max()) + 1)[labels]
    blended = weight * means + (1 - weight) * probability
    return np.where((labels > 0) & np.isfinite(probability), blended, probability).astype(np.float32)


def _stretched(band: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale a band to 0 to 1; invalid pixels get the median."""
    values = band[valid].astype(np.float64)
    return rescale(np.where(valid, band, np.median(values)).astype(np.float64), percentile_limits(values))


def _means(values: NDArray[np.float32], labels: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Return the mean of finite values by label; NaN without any."""
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


SIZE_CLASS_BOUNDS_M2 = (400.0, 1_000.0, 10_000.0, 100_000.0)
# A landslide is detected if the map shows at least this share of its mapped pixels.
MIN_DETECTED_SHARE = 0.5
_SQUARE_METRES_PER_KM2 = 1e6


@dataclass(frozen=True)
class SizeClass:
    """Counts of landslides of one size class.

    Attributes:
        low: lower bound of the area in m², inclusive.
        high: upper bound of the area in m², exclusive; None for the last class.
        landslides: landslides of which at least half of the pixels are mapped; only these are judged.
        detected: judged landslides with at least half of their mapped pixels landslide on the map.
        touched: judged landslides with at least one pixel landslide on the map.
        not_mapped: landslides that were not judged.
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
        """Name for display, with the bounds."""
        if self.high is None:
            return f"≥ {self.low:,.0f} m²"
        return f"{self.low:,.0f} to {self.high:,.0f} m²" if self.low else f"< {self.high:,.0f} m²"


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of detected landslides and false alarms.

    Counts of disjoint windows can be added.

    Attributes:
        classes: landslides by size, smallest first.
        mapped: objects of the map with at least half of their pixels of known truth; only these are judged.
        false_alarms: judged objects that share no pixel with a landslide.
        cut: landslides at the edge of a window, which may be incomplete.
        square_metres: area that is mapped and of known truth, in m².
    """

    classes: tuple[SizeClass, ...] = ()
    mapped: int = 0
    false_alarms: int = 0
    cut: int = 0
    square_metres: float = 0.0

    @classmethod
    def of(cls, mapped: NDArray[np.uint8], truth: NDArray[np.uint8], pixel_area: float) -> ObjectCounts:
        """Count the objects of a window.

        Args:
            mapped: 1 landslide, 0 background, 255 not mapped; (height, width).
            truth: 1 landslide, 0 background, 255 unknown; same shape.
            pixel_area: area of a pixel in m².
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
        """Add counts of windows with the same pixel size."""
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
        """Number of landslides that were judged."""
        return sum(each.landslides for each in self.classes)

    @property
    def detected(self) -> int:
        """Number of landslides that were detected."""
        return sum(each.detected for each in self.classes)

    @property
    def f1(self) -> float:
        """F1 of objects.

        This is the harmonic mean of the share of landslides that are detected and the share of objects that are not
        false alarms; 0 if nothing is detected.
        """
        shares = self.detected / max(self.landslides, 1), 1 - self.false_alarms / max(self.mapped, 1)
        return 2 * shares[0] * shares[1] / sum(shares) if shares[0] else 0.0

    @property
    def false_alarms_per_km2(self) -> float:
        """False alarms per km² of mapped area of known truth."""
        return self.false_alarms / self.square_metres * _SQUARE_METRES_PER_KM2 if self.square_metres else 0.0


def size_bounds(pixel_area: float) -> tuple[float, ...]:
    """Return the size class bounds above a pixel's area, in m².

    Every class between them can hold a landslide.
    """
    return tuple(bound for bound in SIZE_CLASS_BOUNDS_M2 if bound > pixel_area)


def _count_by_size(
    pixels: NDArray[np.int64], seen: NDArray[np.int64], hits: NDArray[np.int64], pixel_area: float
) -> tuple[SizeClass, ...]:
    """Count landslides by size class.

    Args:
        pixels: number of pixels of each landslide.
        seen: number of these that are mapped.
        hits: number of these that are landslide on the map.
        pixel_area: area of a pixel in m².
    """
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
    """Count the pixels of each label where a condition is true."""
    return np.bincount(labels[where], minlength=count + 1)[1:]
