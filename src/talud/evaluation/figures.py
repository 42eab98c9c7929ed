"""Arrays become pictures: encoded images as data URIs, which need no file beside the page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from talud.confusion_map import COLOURS, NO_OUTCOME, NOT_MAPPED, Outcome
from talud.imaging import GAMMA, data_uri, diagonal_stripes, scaled, value_limits
from talud.metrics import LANDSLIDE, UNKNOWN

Colour = tuple[int, int, int, int]

INVENTORY = (255, 221, 51, 255)
MAPPED = (213, 70, 0, 255)
_CLEAR = (0, 0, 0, 0)
_HATCH = {252: (196, 196, 202, 255), 253: (222, 222, 226, 255)}  # not mapped: two greys in stripes
_LEVELS = 100  # probabilities are shown in hundredths
PROBABILITY_RAMP = tuple(
    cast(Colour, tuple(round(255 * part) for part in mpl.colormaps["magma_r"](level / _LEVELS)))
    for level in range(_LEVELS + 1)
)


def photograph(bands: NDArray[np.float32], *, grey: bool = False) -> str:
    """A picture of three bands (3, height, width), each stretched between its 1st and 99th percentile and lightened.

    Pixels that are NaN in any band are clear. With `grey` the picture is a pale grey one, to lay classes over.
    """
    valid = np.asarray(np.isfinite(bands).all(axis=0))
    colours = np.where(valid, [scaled(band, value_limits(band[valid], (1, 99))) ** GAMMA for band in bands], 0.0)
    if grey:
        luminance = np.tensordot(np.array([0.299, 0.587, 0.114]), colours, axes=1)
        colours = np.stack([0.3 + 0.55 * luminance] * 3)
    return _lossy(colours, valid)


def relief(slope: NDArray[np.float32]) -> str:
    """A picture of slope in degrees (height, width): the steeper, the darker; NaN is clear."""
    valid = np.isfinite(slope)
    light = 0.95 - 0.65 * np.clip(np.nan_to_num(slope) / 60, 0, 1)
    return _lossy(np.stack([light] * 3), valid)


def probability(levels: NDArray[np.float32]) -> str:
    """Probabilities (height, width) in hundredths on a ramp from light to dark; NaN is hatched."""
    mapped = np.isfinite(levels)
    classes = np.where(mapped, np.nan_to_num(levels) * _LEVELS, 0).round().clip(0, _LEVELS).astype(np.uint8)
    return _classes(_hatched(classes, ~mapped), dict(enumerate(PROBABILITY_RAMP)) | _HATCH)


def landslides(mapped: NDArray[np.uint8]) -> str:
    """A class map (1 landslide, 0 background, 255 not mapped): background is clear, not mapped is hatched."""
    return _classes(_hatched(mapped, mapped == NOT_MAPPED), {0: _CLEAR, LANDSLIDE: MAPPED} | _HATCH)


def inventory(truth: NDArray[np.uint8]) -> str:
    """An inventory mask (1 landslide, 0 background, 255 unknown): background is clear, unknown is hatched."""
    return _classes(_hatched(truth, truth == UNKNOWN), {0: _CLEAR, LANDSLIDE: INVENTORY} | _HATCH)


def outcome(outcomes: NDArray[np.uint8]) -> str:
    """The four outcomes; true negatives are clear, no outcome is hatched."""
    colours = COLOURS | {Outcome.TRUE_NEGATIVE: _CLEAR}
    return _classes(_hatched(outcomes, outcomes == NO_OUTCOME), colours | _HATCH)


def _hatched(classes: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Put the two hatching classes, in diagonal stripes, where the map says nothing."""
    stripes = np.where(diagonal_stripes(classes.shape, 16, 5), min(_HATCH), max(_HATCH)).astype(np.uint8)
    return np.where(where, stripes, classes)


def _classes(classes: NDArray[np.uint8], colours: Mapping[int, Colour]) -> str:
    """A picture of uint8 classes (height, width) in exactly their colours; a class without one is clear."""
    palette = np.array([colours.get(value, _CLEAR) for value in range(256)], dtype=np.uint8)
    return _uri(palette[classes], lossless=True)


def _lossy(colours: NDArray[np.floating[Any]], valid: NDArray[np.bool_]) -> str:
    """A picture of colours (3, height, width) between 0 and 1, clear where not valid."""
    pixels = np.concatenate([colours, valid[np.newaxis]]) * 255
    return _uri(np.moveaxis(pixels.round().astype(np.uint8), 0, -1), lossless=False)


def _uri(pixels: NDArray[np.uint8], *, lossless: bool) -> str:
    """Red, green, blue and alpha (height, width, 4) as WebP in a data URI."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "WEBP", lossless=lossless, quality=82, method=4)
    return data_uri(stream.getvalue(), "image/webp")
