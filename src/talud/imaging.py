"""Figures with stretched values, hatching, captions, legends and scale bars."""

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

# Longer side of a picture.
MAX_SIDE_PIXELS = 1200
# Picture pixels for each raster pixel.
MAX_ZOOM = 8
# Width of a figure without its margins, so that the text fits.
MIN_WIDTH_PIXELS = 760
MARGIN_PIXELS = 24
# Lightens forest in the shadow of slopes, which is too dark in a linear stretch.
GAMMA = 0.7
TEXT_COLOUR, MUTED_COLOUR, WARNING_COLOUR = (30, 30, 30), (95, 95, 95), (170, 80, 0)
NOT_MAPPED_COLOUR, HATCH_COLOUR = (196, 196, 196), (128, 128, 128)
_LEGEND_ROW_PIXELS = 30
# Height and width of a legend's rectangle in pixels.
_SWATCH_SHAPE = (20, 36)
_SMALLEST_RANGE = 1e-6

Picture = NDArray[np.uint8]  # (height, width, 3)
Colour = tuple[int, int, int]
_Real = TypeVar("_Real", np.float32, np.float64)


def percentile_limits(values: NDArray[_Real], percentiles: tuple[float, float] = (2, 98)) -> tuple[float, float]:
    """Return two percentiles of the finite values.

    They are 0 and 1 if there are none.
    """
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, percentiles).tolist() if finite.size else (0.0, 1.0)
    return low, high


def rescale(values: NDArray[_Real], limits: tuple[float, float]) -> NDArray[_Real]:
    """Scale values from the limits to 0 and 1.

    Values outside the limits are clipped.
    """
    low, high = limits
    return ((values - low) / max(high - low, _SMALLEST_RANGE)).clip(0, 1)


def stretch_contrast(band: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch a band to grey levels and lighten dark values.

    The 2nd and 98th percentiles become the ends; invalid pixels become white.
    """
    valid = np.isfinite(band)
    limits = percentile_limits(band)
    grey = rescale(np.where(valid, band, np.float32(limits[1])), limits) ** GAMMA * 255
    return np.where(valid, grey, 255).astype(np.uint8)


def diagonal_stripes(shape: tuple[int, int], period: int, width: int) -> NDArray[np.bool_]:
    """Return the mask of diagonal stripes.

    Args:
        shape: (height, width) in pixels.
        period: distance between stripes in pixels, along an axis.
        width: width of a stripe in pixels, along an axis.
    """
    return np.asarray(np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % period < width)


def blend(picture: Picture, where: NDArray[np.bool_], colour: Colour, share: float) -> Picture:
    """Blend a colour into some pixels of a picture.

    Args:
        picture: (height, width, 3), which is not changed.
        where: mask of the pixels.
        colour: colour to blend in.
        share: share of the colour, 0 to 1.
    """
    blended = picture.copy()
    blended[where] = (picture[where] * (1 - share) + np.array(colour) * share).astype(np.uint8)
    return blended


def hatch(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """Fade and hatch masked pixels of a picture."""
    washed = blend(picture, where, NOT_MAPPED_COLOUR, 0.75)
    return blend(washed, where & diagonal_stripes(picture.shape[:2], 8, 2), HATCH_COLOUR, 1.0)


def picture_shape(raster: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) at which a raster is drawn."""
    zoom = min(MAX_SIDE_PIXELS / max(raster), MAX_ZOOM)
    return max(round(raster[0] * zoom), 1), max(round(raster[1] * zoom), 1)


def data_uri(content: bytes, media_type: str) -> str:
    """Encode content as a data URI for an HTML page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Caption:
    """Text above a figure.

    Attributes:
        title: first line, in large letters.
        lines: lines under the title.
        warning: text to the right of the title, such as a note on synthetic data; may be empty.
    """

    title: str
    lines: Sequence[str]
    warning: str


@dataclass(frozen=True)
class LegendEntry:
    """Entry of a legend.

    Attributes:
        label: text of the entry.
        colour: colour that is blended into white; None for hatching.
        share: share of the colour, 0 to 1.
        outline: colour of the frame.
    """

    label: str
    colour: Colour | None
    share: float = 1.0
    outline: Colour = MUTED_COLOUR

    @property
    def picture(self) -> Picture:
        """The filled rectangle that shows the colour."""
        white = np.full((*_SWATCH_SHAPE, 3), 255, np.uint8)
        everywhere = np.ones(_SWATCH_SHAPE, np.bool_)
        return blend(white, everywhere, self.colour, self.share) if self.colour else hatch(white, everywhere)


def compose_figure(
    picture: Picture, metres: float, caption: Caption, legend: Sequence[LegendEntry], notes: Sequence[str]
) -> Image.Image:
    """Draw a figure: a picture with caption, legend and scale bar.

    Args:
        picture: picture, (height, width, 3).
        metres: length of a side of its pixels on the ground, for the scale bar.
        caption: text above the picture.
        legend: entries of the legend, below the picture.
        notes: lines below the legend.
    """
    height, width = picture.shape[:2]
    page_width = max(width, MIN_WIDTH_PIXELS) + 2 * MARGIN_PIXELS
    top = MARGIN_PIXELS + 40 + 24 * len(caption.lines) + 12
    under = top + height + 16 + _LEGEND_ROW_PIXELS * len(legend) + 8
    made = Image.new("RGB", (page_width, under + 22 * len(notes) + 12 + MARGIN_PIXELS), "white")
    pen = ImageDraw.Draw(made)
    draw_text(pen, (MARGIN_PIXELS, MARGIN_PIXELS), caption.title, 28, TEXT_COLOUR)
    for row, line in enumerate(caption.lines):
        draw_text(pen, (MARGIN_PIXELS, MARGIN_PIXELS + 40 + 24 * row), line, 16, MUTED_COLOUR)
    draw_text(pen, (page_width - MARGIN_PIXELS, MARGIN_PIXELS + 6), caption.warning, 18, WARNING_COLOUR, anchor="ra")
    left = (page_width - width) // 2
    made.paste(Image.fromarray(picture), (left, top))
    pen.rectangle((left - 1, top - 1, left + width, top + height), outline=TEXT_COLOUR)
    for row, entry in enumerate(legend):
        corner = MARGIN_PIXELS, top + height + 16 + _LEGEND_ROW_PIXELS * row
        made.paste(Image.fromarray(entry.picture), corner)
        pen.rectangle(
            (*corner, corner[0] + _SWATCH_SHAPE[1] - 1, corner[1] + _SWATCH_SHAPE[0] - 1), outline=entry.outline
        )
        draw_text(pen, (MARGIN_PIXELS + 48, corner[1]), entry.label, 17, TEXT_COLOUR)
    for row, note in enumerate(notes):
        draw_text(pen, (MARGIN_PIXELS, under + 22 * row), note, 15, MUTED_COLOUR)
    draw_scale_bar(pen, (page_width - MARGIN_PIXELS, top + height + 24), metres, page_width // 4)
    return made


def round_length(longest: float) -> float:
    """Return the largest 1, 2 or 5 × 10ⁿ up to a limit."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= longest)  # 0.5: the logarithm was rounded up


def format_length(metres: float) -> str:
    """Format a length, such as "500 m" or "2 km"."""
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"


def draw_scale_bar(pen: ImageDraw.ImageDraw, right_top: tuple[int, int], metres: float, longest: int) -> None:
    """Draw a scale bar of a round length.

    Args:
        pen: drawing to draw on.
        right_top: right top corner of the bar, in pixels.
        metres: length of a pixel on the ground.
        longest: maximal length of the bar in pixels.
    """
    length = round_length(longest * metres)
    right, top = right_top
    left = right - max(round(length / metres), 1)
    pen.rectangle((left, top, right, top + 6), fill=TEXT_COLOUR)
    pen.rectangle((left + (right - left) // 2, top + 1, right - 1, top + 5), fill="white")
    draw_text(pen, (right, top + 12), format_length(length), 15, TEXT_COLOUR, anchor="ra")


def draw_text(
    pen: ImageDraw.ImageDraw, position: tuple[int, int], text: str, size: int, colour: Colour, anchor: str = "la"
) -> None:
    """Draw text in Pillow's built-in font, without accents.

    The font is the same on every machine and has no accented letters.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    pen.text(position, plain, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
