"""Valid and invalid masks of patches in many image formats."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

SIDE = 16

Truth = NDArray[np.uint8]  # (height, width): 1 landslide, 0 background, 255 unknown
Write = Callable[[Path, Truth], object]  # a path without its suffix


def png(make: Callable[[NDArray[np.bool_]], Image.Image], suffix: str = "png") -> Write:
    """Return a function that saves a mask as an image made by Pillow."""

    def write(stem: Path, truth: Truth) -> None:
        make(truth == 1).save(stem.with_suffix(f".{suffix}"))

    return write


def grey(landslide: int, background: int = 0) -> Callable[[NDArray[np.bool_]], Image.Image]:
    return lambda marked: Image.fromarray(np.where(marked, landslide, background).astype(np.uint8))


def palette(background: tuple[int, ...], landslide: tuple[int, ...], swapped: bool, unused: int = 0) -> Any:
    """Return a function that makes an indexed image.

    Background has index 0 and landslide 1, or the other way round.
    """

    def make(marked: NDArray[np.bool_]) -> Image.Image:
        image = Image.fromarray((marked ^ swapped).astype(np.uint8), "P")
        colours = [landslide, background] if swapped else [background, landslide]
        image.putpalette([*colours[0], *colours[1], *(17 * n % 256 for n in range(3 * unused))])
        return image

    return make


def stacked(*planes: Callable[[NDArray[np.bool_]], NDArray[np.uint8]]) -> Any:
    return lambda marked: Image.fromarray(np.stack([plane(marked) for plane in planes], axis=-1))


def plane(marked: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return (marked * 255).astype(np.uint8)


def opaque(marked: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.full(marked.shape, 255, np.uint8)


@dataclass(frozen=True)
class Tiff:
    """GeoTIFF of one band.

    Attributes:
        values: values of background, landslide and unknown truth.
    """

    dtype: str
    values: tuple[float, float, float] = (0, 1, 0)
    nodata: float | None = None
    colours: dict[int, tuple[int, int, int, int]] | None = None

    def __call__(self, stem: Path, truth: Truth) -> None:
        background, landslide, unknown = self.values
        pixels = np.select([truth == 1, truth == 0], [landslide, background], unknown).astype(self.dtype)
        shape = {"height": truth.shape[0], "width": truth.shape[1], "count": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(
                stem.with_suffix(".tif"), "w", driver="GTiff", dtype=self.dtype, nodata=self.nodata, **shape
            ) as dataset:
                dataset.write(pixels, 1)
                if self.colours:
                    dataset.write_colormap(1, self.colours)


BLACK, WHITE = (0, 0, 0), (255, 255, 255)
READ: dict[str, Write] = {
    "0 and 255": png(grey(255)),
    "0 and 1": png(grey(1)),
    "one bit": png(lambda marked: Image.fromarray(marked)),
    "palette of black and white": png(palette(BLACK, WHITE, swapped=False)),
    "palette of white and black": png(palette(BLACK, WHITE, swapped=True)),
    "palette with unused colours": png(palette(BLACK, WHITE, swapped=True, unused=30)),
    "RGB": png(stacked(plane, plane, plane)),
    "RGBA": png(stacked(plane, plane, plane, opaque)),
    "grey and alpha": png(stacked(plane, opaque)),
    "sixteen bits": png(lambda marked: Image.fromarray(marked.astype(np.uint16))),
    "TIFF by Pillow": png(grey(255), "tif"),
    "TIFF of one bit by Pillow": png(lambda marked: Image.fromarray(marked), "tif"),
    "uint8": Tiff("uint8"),
    "uint8 of 255": Tiff("uint8", (0, 255, 0)),
    "uint16": Tiff("uint16"),
    "int16 with nodata": Tiff("int16", (0, 1, -1), -1),
    "int32": Tiff("int32"),
    "float32": Tiff("float32"),
    "float32 with NaN": Tiff("float32", (0, 1, float("nan")), float("nan")),
    "float64 with nodata": Tiff("float64", (0, 1, -9999), -9999),
    "uint8 with nodata": Tiff("uint8", (0, 1, 255), 255),
    "colour table of black and white": Tiff("uint8", colours={0: (*BLACK, 255), 1: (*WHITE, 255)}),
    "colour table of white and black": Tiff("uint8", (1, 0, 1), colours={0: (*WHITE, 255), 1: (*BLACK, 255)}),
}
UNKNOWN_TOLD = {"int16 with nodata", "float32 with NaN", "float64 with nodata", "uint8 with nodata"}
REFUSED: dict[str, Write] = {
    "three values": lambda stem, truth: Image.fromarray(
        np.where(np.indices(truth.shape)[0] == 2, 7, truth * 255).astype(np.uint8)
    ).save(stem.with_suffix(".png")),
    "a photograph": lambda stem, truth: Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (*truth.shape, 3), np.uint8)
    ).save(stem.with_suffix(".png")),
    "0 and 128": png(grey(128)),
    "1 and 2": png(grey(2, 1)),
    "two bright colours": png(palette((250, 40, 40), (250, 40, 41), swapped=False)),
    "another size": lambda stem, truth: Image.fromarray(np.zeros((SIDE, SIDE + 1), np.uint8)).save(
        stem.with_suffix(".png")
    ),
    "one pixel": lambda stem, truth: Image.fromarray(np.zeros((1, 1), np.uint8)).save(stem.with_suffix(".png")),
    "fractions": Tiff("float32", (0, 0.5, 0)),
    "negative": Tiff("int16", (0, -1, 0)),
    "no background": Tiff("uint8", (0, 1, 0), 0),
    "no landslide": Tiff("uint8", (0, 1, 0), 1),
    "empty": lambda stem, truth: stem.with_suffix(".png").write_bytes(b""),
    "text": lambda stem, truth: stem.with_suffix(".png").write_text("mask"),
}
