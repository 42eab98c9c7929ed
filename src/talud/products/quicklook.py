"""A picture of a map for a first look: landslides and what is not mapped, over the image or the relief."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy import ndimage

from talud import imaging
from talud.imaging import LegendEntry, Picture, blend, hatch, picture_shape, stretch_contrast
from talud.mapping.reader import StackReader
from talud.products.polygons import Landslides, NotMapped

LANDSLIDE_COLOUR = (230, 30, 60)


@dataclass(frozen=True)
class MapCaption(imaging.Caption):
    """Text of the picture.

    Attributes:
        landslides: the legend of what is mapped.
        not_mapped: the legend of the hatching.
        reasons: the reasons why pixels are not mapped; or empty.
    """

    landslides: str
    not_mapped: str
    reasons: str


@dataclass(frozen=True)
class RenderedMap:
    """Map as a picture, without text.

    Attributes:
        picture: the map.
        background: what lies under it.
        metres: on the ground, for one pixel of the picture.
    """

    picture: Picture
    background: str
    metres: float


def render(stack: StackReader, landslides: Landslides, not_mapped: NotMapped) -> RenderedMap:
    """Paint the landslides and what is not mapped over the image or the relief."""
    grid = stack.grid
    shape = picture_shape(grid.shape)
    transform = grid.transform * Affine.scale(grid.width / shape[1], grid.height / shape[0])
    base, legend = background(stack, shape)
    hidden = _rasterised(not_mapped.outlines, shape, transform, touched=False)
    slides = _rasterised(landslides.outlines, shape, transform, touched=shape[1] < grid.width)
    picture = hatch(base, hidden)
    picture = _draw_outlines(picture, slides)
    metres = grid.resolution * grid.metres_per_unit * grid.width / shape[1]
    return RenderedMap(picture, legend, metres)


def write(path: Path, rendered: RenderedMap, caption: MapCaption) -> None:
    """Draw the map between its title and its legend, as PNG."""
    legend = [
        LegendEntry(caption.landslides, LANDSLIDE_COLOUR, 0.35, LANDSLIDE_COLOUR),
        LegendEntry(caption.not_mapped, None, outline=imaging.HATCH_COLOUR),
    ]
    notes = [note for note in (caption.reasons, f"Background: {rendered.background}. North is up.") if note]
    imaging.compose_figure(rendered.picture, rendered.metres, caption, legend, notes).save(path)


def background(stack: StackReader, shape: tuple[int, int]) -> tuple[Picture, str]:
    """Return the background and its name: the optical image, else the slope, else the first band."""
    colour = stack.read_image(("red", "green", "blue"), shape)
    if colour is not None:
        return np.stack([stretch_contrast(band) for band in colour], axis=-1), "optical image, 2 to 98 % stretch"
    slope = stack.read_image(("slope",), shape)
    if slope is not None:
        return np.repeat(255 - stretch_contrast(slope[0])[..., np.newaxis], 3, axis=-1), "slope, steep is dark"
    name = next(band.name for band in stack.contract.input.bands if band.group not in stack.info.missing_groups)
    first = stack.read_image((name,), shape)
    assert first is not None  # the reader found every band that is not absent
    return np.repeat(stretch_contrast(first[0])[..., np.newaxis], 3, axis=-1), name


def _rasterised(
    outlines: NDArray[np.object_], shape: tuple[int, int], transform: Affine, touched: bool
) -> NDArray[np.bool_]:
    """Return the pixels of the picture under the polygons; with `touched`, the smallest still shows."""
    if not len(outlines):
        return np.zeros(shape, np.bool_)
    burnt: NDArray[np.uint8] = rasterize(outlines, shape, transform=transform, all_touched=touched, dtype="uint8")
    return burnt.astype(np.bool_)


def _draw_outlines(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    inner = ndimage.binary_erosion(where, border_value=1)
    casing = ndimage.binary_dilation(where) & ~where  # a pale line around the red one: seen on any background
    filled = blend(picture, where, LANDSLIDE_COLOUR, 0.35)
    return blend(blend(filled, where & ~inner, LANDSLIDE_COLOUR, 1.0), casing, (255, 255, 255), 0.6)
