"""Quicklook of a map as PNG."""

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
    """Caption of a quicklook.

    Attributes:
        landslides: legend text of the landslides.
        not_mapped: legend text of the hatching.
        reasons: reasons for unmapped pixels, or "".
    """

    landslides: str
    not_mapped: str
    reasons: str


@dataclass(frozen=True)
class RenderedMap:
    """Picture of a map without text.

    Attributes:
        picture: image of the map.
        background: name of the background layer.
        metres: size of an image pixel on the ground in m.
    """

    picture: Picture
    background: str
    metres: float


def render(stack: StackReader, landslides: Landslides, not_mapped: NotMapped) -> RenderedMap:
    """Render the landslides and unmapped parts over the background."""
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
    """Write the map with title and legend as PNG."""
    legend = [
        LegendEntry(caption.landslides, LANDSLIDE_COLOUR, 0.35, LANDSLIDE_COLOUR),
        LegendEntry(caption.not_mapped, None, outline=imaging.HATCH_COLOUR),
    ]
    notes = [note for note in (caption.reasons, f"Background: {rendered.background}. North is up.") if note]
    imaging.compose_figure(rendered.picture, rendered.metres, caption, legend, notes).save(path)


def background(stack: StackReader, shape: tuple[int, int]) -> tuple[Picture, str]:
    """Return the background and its name.

    It is the optical image, else the slope, else the first band of the contract that is present.
    """
    colour = stack.read_image(("red", "green", "blue"), shape)
    if colour is not None:
        return np.stack([stretch_contrast(band) for band in colour], axis=-1), "optical image, 2 to 98 % stretch"
    slope = stack.read_image(("slope",), shape)
    if slope is not None:
        return np.repeat(255 - stretch_contrast(slope[0])[..., np.newaxis], 3, axis=-1), "slope, steep is dark"
    name = next(band.name for band in stack.contract.input.bands if band.group not in stack.info.missing_groups)
    first = stack.read_image((name,), shape)
    # The reader has found every band of a group that is not absent.
    assert first is not None
    return np.repeat(stretch_contrast(first[0])[..., np.newaxis], 3, axis=-1), name


def _rasterised(
    outlines: NDArray[np.object_], shape: tuple[int, int], transform: Affine, touched: bool
) -> NDArray[np.bool_]:
    """Return the image pixels inside polygons.

    If `touched` is set, pixels that a polygon only touches are included, so that small polygons stay visible.
    """
    if not len(outlines):
        return np.zeros(shape, np.bool_)
    burnt: NDArray[np.uint8] = rasterize(outlines, shape, transform=transform, all_touched=touched, dtype="uint8")
    return burnt.astype(np.bool_)


def _draw_outlines(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    inner = ndimage.binary_erosion(where, border_value=1)
    # A pale line around the red one makes it visible on any background.
    casing = ndimage.binary_dilation(where) & ~where
    filled = blend(picture, where, LANDSLIDE_COLOUR, 0.35)
    return blend(blend(filled, where & ~inner, LANDSLIDE_COLOUR, 1.0), casing, (255, 255, 255), 0.6)
