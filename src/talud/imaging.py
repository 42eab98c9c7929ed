"""Pictures with stretched values, hatching, captions, legends and scale bars."""

from __future__ import annotations

import base64
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LONGEST_SIDE = 1200  # pixels of a picture's longer side
LARGEST_ZOOM = 8  # pixels of the picture for one of the raster
NARROWEST = 760  # pixels of a picture's width, so that the text has room
MARGIN = 24
GAMMA = 0.7  # forest in the shadow of a slope is dark in a linear stretch
INK, FAINT, WARNING = (30, 30, 30), (95, 95, 95), (170, 80, 0)
NOT_MAPPED, HATCH = (196, 196, 196), (128, 128, 128)
_ROW = 30  # pixels of a row of the legend
_SWATCH = (20, 36)
_SMALLEST_RANGE = 1e-6

Picture = NDArray[np.uint8]  # (height, width, 3)
Colour = tuple[int, int, int]
_Real = TypeVar("_Real", np.float32, np.float64)


def value_limits(values: NDArray[_Real], percentiles: tuple[float, float] = (2, 98)) -> tuple[float, float]:
    """Return two percentiles of the finite values; 0 and 1 if there are none."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, percentiles).tolist() if finite.size else (0.0, 1.0)
    return low, high


def scaled(values: NDArray[_Real], limits: tuple[float, float]) -> NDArray[_Real]:
    """Return values with the limits at 0 and 1, clipped there."""
    low, high = limits
    return ((values - low) / max(high - low, _SMALLEST_RANGE)).clip(0, 1)


def stretched(band: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a band as 0 to 255 with dark values lightened; white where it is invalid.

    The ends are the 2nd and the 98th percentile.
    """
    valid = np.isfinite(band)
    limits = value_limits(band)
    grey = scaled(np.where(valid, band, np.float32(limits[1])), limits) ** GAMMA * 255
    return np.where(valid, grey, 255).astype(np.uint8)


def diagonal_stripes(shape: tuple[int, int], period: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels of diagonal stripes."""
    return np.asarray(np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % period < width)


def blend(picture: Picture, where: NDArray[np.bool_], colour: Colour, share: float) -> Picture:
    """Return the picture with a share, 0 to 1, of a colour mixed in at some pixels."""
    blended = picture.copy()
    blended[where] = (picture[where] * (1 - share) + np.array(colour) * share).astype(np.uint8)
    return blended


def hatched(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """Return the picture with pale diagonal stripes where nothing is mapped."""
    washed = blend(picture, where, NOT_MAPPED, 0.75)
    return blend(washed, where & diagonal_stripes(picture.shape[:2], 8, 2), HATCH, 1.0)


def picture_shape(raster: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the picture of a raster."""
    zoom = min(LONGEST_SIDE / max(raster), LARGEST_ZOOM)
    return max(round(raster[0] * zoom), 1), max(round(raster[1] * zoom), 1)


def data_uri(content: bytes, media_type: str) -> str:
    """Return content as a data URI, which an HTML page shows without another file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Caption:
    """The text above a picture.

    Attributes:
        title: the first line, in large letters.
        lines: the lines under the title.
        warning: a text beside the title, such as that the data are synthetic; or empty.
    """

    title: str
    lines: Sequence[str]
    warning: str


@dataclass(frozen=True)
class Swatch:
    """An entry of a legend.

    Attributes:
        words: the meaning.
        colour: the colour that is blended into white; None for hatching.
        share: the share of the colour, 0 to 1.
        outline: the colour of the frame.
    """

    words: str
    colour: Colour | None
    share: float = 1.0
    outline: Colour = FAINT

    @property
    def picture(self) -> Picture:
        """The swatch."""
        white = np.full((*_SWATCH, 3), 255, np.uint8)
        everywhere = np.ones(_SWATCH, np.bool_)
        return blend(white, everywhere, self.colour, self.share) if self.colour else hatched(white, everywhere)


def page(
    picture: Picture, metres: float, caption: Caption, legend: Sequence[Swatch], notes: Sequence[str]
) -> Image.Image:
    """Return a picture between its caption and its legend.

    Args:
        picture: the picture.
        metres: the length on the ground of one of its pixels, for the scale bar.
        caption: the text above it.
        legend: the entries of the legend.
        notes: the lines under the legend.
    """
    height, width = picture.shape[:2]
    page_width = max(width, NARROWEST) + 2 * MARGIN
    top = MARGIN + 40 + 24 * len(caption.lines) + 12
    under = top + height + 16 + _ROW * len(legend) + 8
    made = Image.new("RGB", (page_width, under + 22 * len(notes) + 12 + MARGIN), "white")
    pen = ImageDraw.Draw(made)
    write(pen, (MARGIN, MARGIN), caption.title, 28, INK)
    for row, line in enumerate(caption.lines):
        write(pen, (MARGIN, MARGIN + 40 + 24 * row), line, 16, FAINT)
    write(pen, (page_width - MARGIN, MARGIN + 6), caption.warning, 18, WARNING, anchor="ra")
    left = (page_width - width) // 2
    made.paste(Image.fromarray(picture), (left, top))
    pen.rectangle((left - 1, top - 1, left + width, top + height), outline=INK)
    for row, swatch in enumerate(legend):
        corner = MARGIN, top + height + 16 + _ROW * row
        made.paste(Image.fromarray(swatch.picture), corner)
        pen.rectangle((*corner, corner[0] + _SWATCH[1] - 1, corner[1] + _SWATCH[0] - 1), outline=swatch.outline)
        write(pen, (MARGIN + 48, corner[1]), swatch.words, 17, INK)
    for row, note in enumerate(notes):
        write(pen, (MARGIN, under + 22 * row), note, 15, FAINT)
    scale_bar(pen, (page_width - MARGIN, top + height + 24), metres, page_width // 4)
    return made


def round_length(longest: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten up to a limit."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= longest)  # 0.5: the logarithm was rounded up


def length_in_words(metres: float) -> str:
    """Return a length such as "500 m" or "2 km"."""
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"


def scale_bar(pen: ImageDraw.ImageDraw, right_top: tuple[int, int], metres: float, longest: int) -> None:
    """Draw a bar of a round length, at most `longest` pixels."""
    length = round_length(longest * metres)
    right, top = right_top
    left = right - max(round(length / metres), 1)
    pen.rectangle((left, top, right, top + 6), fill=INK)
    pen.rectangle((left + (right - left) // 2, top + 1, right - 1, top + 5), fill="white")
    write(pen, (right, top + 12), length_in_words(length), 15, INK, anchor="ra")


def write(
    pen: ImageDraw.ImageDraw, position: tuple[int, int], words: str, size: int, colour: Colour, anchor: str = "la"
) -> None:
    """Write in Pillow's own font, the same on every machine, without accents."""
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    pen.text(position, plain, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
