"""Agreement of two maps with the truth: raster and picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from scipy import ndimage

from talud import imaging
from talud.confusion_map import NOT_MAPPED, apply_threshold
from talud.grid import Grid
from talud.imaging import LegendEntry
from talud.mapping.reader import StackReader
from talud.measurement.sites import LabelledWindow
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.products.quicklook import background
from talud.raster import Layout, write_cog

# Value of pixels of unknown truth, or not mapped by one of the models.
NOT_COMPARED = 255


class Agreement(IntEnum):
    """Agreement of two maps with the truth, as raster values."""

    BOTH_RIGHT = 0
    ONLY_A_RIGHT = 1
    ONLY_B_RIGHT = 2
    BOTH_WRONG = 3

    @property
    def label(self) -> str:
        """Name for display."""
        return self.name.replace("_", " ").lower().replace(" a ", " A ").replace(" b ", " B ")


AGREEMENT_COLOURS: dict[int, tuple[int, int, int, int]] = {
    Agreement.BOTH_RIGHT: (226, 226, 222, 255),
    Agreement.ONLY_A_RIGHT: (0, 114, 178, 255),
    Agreement.ONLY_B_RIGHT: (230, 159, 0, 255),
    Agreement.BOTH_WRONG: (204, 61, 139, 255),
}
# Colour of landslides that both maps show, in the picture only; from the same palette.
_FOUND_BY_BOTH = (0, 158, 115)


def agreement(a: NDArray[np.uint8], b: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the `Agreement` of two class maps by pixel.

    Args:
        a: map A: 1 landslide, 0 background, 255 not mapped; any shape.
        b: map B, in the same form; same shape.
        truth: 1 landslide, 0 background, 255 unknown; same shape.

    Returns:
        uint8 of the same shape; `NOT_COMPARED` where the maps are not compared.
    """
    right_a, right_b = ((classes == LANDSLIDE) == (truth == LANDSLIDE) for classes in (a, b))
    found = np.full(truth.shape, Agreement.BOTH_WRONG, np.uint8)
    found[right_a & right_b] = Agreement.BOTH_RIGHT
    found[right_a & ~right_b] = Agreement.ONLY_A_RIGHT
    found[~right_a & right_b] = Agreement.ONLY_B_RIGHT
    found[(a == NOT_MAPPED) | (b == NOT_MAPPED) | (truth == UNKNOWN)] = NOT_COMPARED
    return found


def write_agreement(
    path: Path,
    grid: Grid,
    windows: Iterable[LabelledWindow],
    thresholds: Sequence[float],
    tags: Mapping[str, str],
) -> dict[Agreement, int]:
    """Write the agreement raster; return pixels by class.

    Args:
        path: path of the raster.
        grid: grid of the raster.
        windows: windows that cover the grid, with probabilities of both models.
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
        tags={**tags, **classes, f"CLASS_{NOT_COMPARED}": "not mapped by one of the models, or truth unknown"},
        colours=AGREEMENT_COLOURS,
        overviews="mode",
    )
    pixels: Counter[int] = Counter()
    with write_cog(path, grid, layout) as writer:
        for window in windows:
            a, b = (apply_threshold(*each) for each in zip(window.probabilities, thresholds, strict=True))
            found = agreement(a, b, window.truth)
            pixels.update(dict(enumerate(np.bincount(found.ravel(), minlength=len(Agreement)).tolist())))
            writer.write(found, 1, window=window.window)
    return {each: pixels[each] for each in Agreement}


@dataclass(frozen=True)
class AgreementCaption(imaging.Caption):
    """Caption of the comparison picture.

    Attributes:
        shares: share of each class in the compared pixels.
    """

    shares: Mapping[Agreement, float]


def draw_agreement(
    path: Path, stack: StackReader, classes: DatasetReader, truths: DatasetReader, caption: AgreementCaption
) -> None:
    """Draw agreement and inventory over an image, as PNG."""
    grid = stack.grid
    shape = imaging.picture_shape(grid.shape)
    base, under = background(stack, shape)
    found = classes.read(1, out_shape=shape, resampling=Resampling.nearest)
    slides = truths.read(1, out_shape=shape, resampling=Resampling.nearest) == LANDSLIDE
    picture = imaging.blend(base, np.ones(shape, np.bool_), (255, 255, 255), 0.6)
    picture = imaging.blend(picture, slides & (found == Agreement.BOTH_RIGHT), _FOUND_BY_BOTH, 0.8)
    for each in (Agreement.ONLY_A_RIGHT, Agreement.ONLY_B_RIGHT, Agreement.BOTH_WRONG):
        picture = imaging.blend(picture, found == each, AGREEMENT_COLOURS[each][:3], 0.9)
    picture = imaging.hatch(picture, found == NOT_COMPARED)
    picture = imaging.blend(picture, slides & ~ndimage.binary_erosion(slides), imaging.TEXT_COLOUR, 0.9)
    metres = grid.resolution * grid.metres_per_unit * grid.width / shape[1]
    notes = [f"Background: {under}. Outlines: the inventory. North is up."]
    imaging.compose_figure(picture, metres, caption, _legend(caption), notes).save(path, "PNG")


def _legend(caption: AgreementCaption) -> list[LegendEntry]:
    meanings = {
        Agreement.ONLY_A_RIGHT: "only A is right: B misses a landslide, or shows a false alarm",
        Agreement.ONLY_B_RIGHT: "only B is right",
        Agreement.BOTH_WRONG: "both are wrong",
    }
    shares = [
        LegendEntry(f"{words} ({caption.shares[each]:.2%})", AGREEMENT_COLOURS[each][:3], 0.9)
        for each, words in meanings.items()
    ]
    both = LegendEntry("landslide that both show", _FOUND_BY_BOTH, 0.9)
    return [both, *shares, LegendEntry("not mapped by one of the models, or truth unknown", None)]
