"""A picture of a map for a first look: landslides and what is not mapped, over the image or the relief."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rasterio.features import rasterize
from scipy import ndimage

from talud.mapping.reader import StackReader
from talud.products.polygons import Landslides, NotMapped

LONGEST = 1200  # pixels of the map's longer side
LARGEST_ZOOM = 8  # picture pixels for one of the raster
GAMMA = 0.7  # forest in the shadow of a slope is dark in a linear stretch
MARGIN = 24
NARROWEST = 760  # of the picture, so that the text has room
_LANDSLIDE = (230, 30, 60)
_NOT_MAPPED, _HATCH = (196, 196, 196), (128, 128, 128)
INK, FAINT, WARNING = (30, 30, 30), (95, 95, 95), (170, 80, 0)

Picture = NDArray[np.uint8]  # (height, width, 3)


@dataclass(frozen=True)
class Caption:
    """What the picture says in words.

    Attributes:
        title: what is mapped.
        lines: under the title: dates, model.
        warning: at the title's side, such as that the data are synthetic; or empty.
        landslides: for the legend.
        not_mapped: for the legend.
        reasons: why it is not mapped, or empty.
    """

    title: str
    lines: Sequence[str]
    warning: str
    landslides: str
    not_mapped: str
    reasons: str


@dataclass(frozen=True)
class Scene:
    """The map as a picture, without words.

    Attributes:
        picture: the map.
        background: what lies under it.
        metres: on the ground, for one pixel of the picture.
    """

    picture: Picture
    background: str
    metres: float


def scene(stack: StackReader, landslides: Landslides, not_mapped: NotMapped) -> Scene:
    """Paint the landslides and what is not mapped over the image or the relief."""
    grid = stack.grid
    zoom = min(LONGEST / max(grid.shape), LARGEST_ZOOM)
    shape = max(round(grid.height * zoom), 1), max(round(grid.width * zoom), 1)
    transform = grid.transform * Affine.scale(grid.width / shape[1], grid.height / shape[0])
    base, legend = background(stack, shape)
    hidden = _burn(not_mapped.outlines, shape, transform, touched=False)
    slides = _burn(landslides.outlines, shape, transform, touched=zoom < 1)
    picture = hatched(base, hidden)
    picture = _outlined(picture, slides)
    metres = grid.resolution * grid.metre * grid.width / shape[1]
    return Scene(picture, legend, metres)


def draw(path: Path, scene: Scene, caption: Caption) -> None:
    """Draw the map between its title and its legend, as PNG."""
    _page(scene, caption).save(path)


def round_length(longest: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above `longest`: of a scale bar."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= longest)  # 0.5: the logarithm was rounded up


def length_in_words(metres: float) -> str:
    """Such as "500 m" or "2 km"."""
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"


def background(stack: StackReader, shape: tuple[int, int]) -> tuple[Picture, str]:
    """What lies under the map, and its name: the optical image, else the slope, else the first band."""
    colour = stack.image(("red", "green", "blue"), shape)
    if colour is not None:
        return np.stack([stretched(band) for band in colour], axis=-1), "optical image, 2 to 98 % stretch"
    slope = stack.image(("slope",), shape)
    if slope is not None:
        return np.repeat(255 - stretched(slope[0])[..., np.newaxis], 3, axis=-1), "slope, steep is dark"
    name = next(band.name for band in stack.contract.bands if band.group not in stack.absent)
    first = stack.image((name,), shape)
    assert first is not None  # the reader found every band that is not absent
    return np.repeat(stretched(first[0])[..., np.newaxis], 3, axis=-1), name


def stretched(band: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A band from its 2nd to its 98th percentile as 0 to 255, shadows lifted; white where it is invalid."""
    valid = np.isfinite(band)
    if not valid.any():
        return np.full(band.shape, 255, np.uint8)
    low, high = np.percentile(band[valid], (2, 98))
    scaled = (np.where(valid, band, high) - low) / max(high - low, 1e-6)
    return np.where(valid, scaled.clip(0, 1) ** GAMMA * 255, 255).astype(np.uint8)


def _burn(outlines: NDArray[np.object_], shape: tuple[int, int], transform: Affine, touched: bool) -> NDArray[np.bool_]:
    """Pixels of the picture under the polygons; with `touched`, the smallest still shows."""
    if not len(outlines):
        return np.zeros(shape, np.bool_)
    burnt: NDArray[np.uint8] = rasterize(outlines, shape, transform=transform, all_touched=touched, dtype="uint8")
    return burnt.astype(np.bool_)


def hatched(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """The picture, pale and in diagonal stripes where nothing is mapped."""
    rows, columns = np.indices(where.shape)
    washed = blend(picture, where, _NOT_MAPPED, 0.75)
    return blend(washed, where & ((rows + columns) % 8 < 2), _HATCH, 1.0)


def _outlined(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    inner = ndimage.binary_erosion(where, border_value=1)
    casing = ndimage.binary_dilation(where) & ~where  # a pale line around the red one: seen on any background
    filled = blend(picture, where, _LANDSLIDE, 0.35)
    return blend(blend(filled, where & ~inner, _LANDSLIDE, 1.0), casing, (255, 255, 255), 0.6)


def blend(picture: Picture, where: NDArray[np.bool_], colour: tuple[int, int, int], share: float) -> Picture:
    """The picture with a share, 0 to 1, of a colour mixed in at some pixels."""
    blended = picture.copy()
    blended[where] = (picture[where] * (1 - share) + np.array(colour) * share).astype(np.uint8)
    return blended


def _page(scene: Scene, caption: Caption) -> Image.Image:
    height, width = scene.picture.shape[:2]
    page_width = max(width, NARROWEST) + 2 * MARGIN
    top = MARGIN + 40 + 24 * len(caption.lines) + 12
    page = Image.new("RGB", (page_width, top + height + 136 + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    write(pen, (MARGIN, MARGIN), caption.title, 28, INK)
    for row, line in enumerate(caption.lines):
        write(pen, (MARGIN, MARGIN + 40 + 24 * row), line, 16, FAINT)
    if caption.warning:
        write(pen, (page_width - MARGIN, MARGIN + 6), caption.warning, 18, WARNING, anchor="ra")
    left = (page_width - width) // 2
    page.paste(Image.fromarray(scene.picture), (left, top))
    pen.rectangle((left - 1, top - 1, left + width, top + height), outline=INK)
    _legend(page, pen, top + height + 16, caption, f"Background: {scene.background}")
    scale_bar(pen, (page_width - MARGIN, top + height + 24), scene.metres, page_width // 4)
    return page


def _legend(page: Image.Image, pen: ImageDraw.ImageDraw, top: int, caption: Caption, background: str) -> None:
    pale = np.full((22, 36, 3), 255, np.uint8)
    everywhere = np.ones(pale.shape[:2], np.bool_)
    slide = blend(pale, everywhere, _LANDSLIDE, 0.35)
    for row, (swatch, outline, words) in enumerate(
        ((slide, _LANDSLIDE, caption.landslides), (hatched(pale, everywhere), _HATCH, caption.not_mapped))
    ):
        corner = MARGIN, top + 34 * row
        page.paste(Image.fromarray(swatch), corner)
        pen.rectangle((*corner, corner[0] + 35, corner[1] + 21), outline=outline, width=2)
        write(pen, (MARGIN + 48, corner[1] + 1), words, 17, INK)
    notes = (caption.reasons, f"{background}. North is up.")
    for row, note in enumerate(note for note in notes if note):
        write(pen, (MARGIN, top + 74 + 22 * row), note, 15, FAINT)


def scale_bar(pen: ImageDraw.ImageDraw, right_top: tuple[int, int], metres: float, longest: int) -> None:
    """A bar of a round length, at most `longest` pixels."""
    length = round_length(longest * metres)
    right, top = right_top
    left = right - max(round(length / metres), 1)
    pen.rectangle((left, top, right, top + 6), fill=INK)
    pen.rectangle((left + (right - left) // 2, top + 1, right - 1, top + 5), fill="white")
    write(pen, (right, top + 12), length_in_words(length), 15, INK, anchor="ra")


def write(
    pen: ImageDraw.ImageDraw,
    position: tuple[int, int],
    words: str,
    size: int,
    colour: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    """Write in Pillow's own font, the same on every machine; it has no accents, so they are left off."""
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    pen.text(position, plain, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
