"""Where two maps of an area are right, both or one of them: as classes, as a raster, and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from scipy import ndimage

from talud import imaging
from talud.confusion_map import NOT_MAPPED, at_threshold
from talud.grid import Grid
from talud.imaging import Swatch
from talud.mapping.reader import StackReader
from talud.measurement.sites import LabelledWindow
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.products.quicklook import background
from talud.raster import Layout, writing_cog

NOT_COMPARED = 255  # truth unknown, or not mapped by one of the two


class Agreement(IntEnum):
    """Which of two maps, A and B, has a pixel right; the values of the raster."""

    BOTH_RIGHT = 0
    ONLY_A_RIGHT = 1
    ONLY_B_RIGHT = 2
    BOTH_WRONG = 3

    @property
    def label(self) -> str:
        """The name for a reader."""
        return self.name.replace("_", " ").lower().replace(" a ", " A ").replace(" b ", " B ")


# Okabe and Ito's palette (2008), as for the outcomes.
COLOURS: dict[int, tuple[int, int, int, int]] = {
    Agreement.BOTH_RIGHT: (226, 226, 222, 255),
    Agreement.ONLY_A_RIGHT: (0, 114, 178, 255),
    Agreement.ONLY_B_RIGHT: (230, 159, 0, 255),
    Agreement.BOTH_WRONG: (204, 61, 139, 255),
}
_FOUND_BY_BOTH = (0, 158, 115)  # of the same palette: in the picture, landslides that both maps show


def agreement(a: NDArray[np.uint8], b: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which of two class maps has each pixel right, uint8, 255 where they are not compared.

    Args:
        a: 1 landslide, 0 background, 255 not mapped; any shape.
        b: likewise; same shape.
        truth: 1 landslide, 0 background, 255 unknown; same shape.
    """
    right_a, right_b = ((classes == LANDSLIDE) == (truth == LANDSLIDE) for classes in (a, b))
    found = np.full(truth.shape, Agreement.BOTH_WRONG, np.uint8)
    found[right_a & right_b] = Agreement.BOTH_RIGHT
    found[right_a & ~right_b] = Agreement.ONLY_A_RIGHT
    found[~right_a & right_b] = Agreement.ONLY_B_RIGHT
    found[(a == NOT_MAPPED) | (b == NOT_MAPPED) | (truth == UNKNOWN)] = NOT_COMPARED
    return found


def write(
    path: Path,
    grid: Grid,
    windows: Iterable[LabelledWindow],
    thresholds: tuple[float, float],
    tags: Mapping[str, str],
) -> dict[Agreement, int]:
    """Write the raster of two maps, and return how many pixels each class has.

    Args:
        path: path of the raster.
        grid: grid of the raster.
        windows: windows that cover the grid, with the probabilities of both models.
        thresholds: threshold of each model.
        tags: tags of the raster.

    Raises:
        SourceError: a raster cannot be read.
        OutputError: the file cannot be written.
    """
    classes = {f"CLASS_{each.value}": each.label for each in Agreement}
    layout = Layout(
        dtype="uint8",
        nodata=NOT_COMPARED,
        bands=["agreement: " + ", ".join(f"{each.value} {each.label}" for each in Agreement)],
        tags={**tags, **classes, f"CLASS_{NOT_COMPARED}": "not mapped by one of the two, or truth unknown"},
        colours=COLOURS,
        overviews="mode",
    )
    pixels: Counter[int] = Counter()
    with writing_cog(path, grid, layout) as writer:
        for window in windows:
            a, b = (at_threshold(*each) for each in zip(window.probabilities, thresholds, strict=True))
            found = agreement(a, b, window.truth)
            pixels.update(dict(enumerate(np.bincount(found.ravel(), minlength=len(Agreement)).tolist())))
            writer.write(found, 1, window=window.window)
    return {each: pixels[each] for each in Agreement}


@dataclass(frozen=True)
class Caption(imaging.Caption):
    """The words of the picture.

    Attributes:
        shares: the share of each class in the compared pixels.
    """

    shares: Mapping[Agreement, float]


def draw(path: Path, stack: StackReader, classes: DatasetReader, truths: DatasetReader, caption: Caption) -> None:
    """Draw the raster that `write` made over the pale image of the area, with the inventory's outlines, as PNG."""
    grid = stack.grid
    shape = imaging.picture_shape(grid.shape)
    base, under = background(stack, shape)
    found = classes.read(1, out_shape=shape, resampling=Resampling.nearest)
    slides = truths.read(1, out_shape=shape, resampling=Resampling.nearest) == LANDSLIDE
    picture = imaging.blend(base, np.ones(shape, np.bool_), (255, 255, 255), 0.6)
    picture = imaging.blend(picture, slides & (found == Agreement.BOTH_RIGHT), _FOUND_BY_BOTH, 0.8)
    for each in (Agreement.ONLY_A_RIGHT, Agreement.ONLY_B_RIGHT, Agreement.BOTH_WRONG):
        picture = imaging.blend(picture, found == each, COLOURS[each][:3], 0.9)
    picture = imaging.hatched(picture, found == NOT_COMPARED)
    picture = imaging.blend(picture, slides & ~ndimage.binary_erosion(slides), imaging.INK, 0.9)
    metres = grid.resolution * grid.metre * grid.width / shape[1]
    notes = [f"Background: {under}. Outlines: the inventory. North is up."]
    imaging.page(picture, metres, caption, _legend(caption), notes).save(path, "PNG")


def _legend(caption: Caption) -> list[Swatch]:
    meanings = {
        Agreement.ONLY_A_RIGHT: "only A is right: B misses a landslide here, or shows one that is none",
        Agreement.ONLY_B_RIGHT: "only B is right",
        Agreement.BOTH_WRONG: "both are wrong",
    }
    shares = [
        Swatch(f"{words} ({caption.shares[each]:.2%})", COLOURS[each][:3], 0.9) for each, words in meanings.items()
    ]
    both = Swatch("a landslide that both show", _FOUND_BY_BOTH, 0.9)
    return [both, *shares, Swatch("not mapped by one of the two, or truth unknown", None)]
