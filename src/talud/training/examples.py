"""Example predictions: validation patches that hold landslides, beside what a model says of them, as a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from talud.confusion_map import NOT_COMPARED, PIXEL_CLASS_COLOURS, PixelClass, apply_threshold, classify_pixels
from talud.data.patches import Patches
from talud.engine.runtime import Model
from talud.imaging import FAINT, INK, WARNING, stretched, write
from talud.metrics import LANDSLIDE, UNKNOWN, confusion
from talud.registry import Store
from talud.training.dataset import Dataset

FILE_NAME = "examples.png"
DEFAULT_ROWS = 6
_SIDE, _GAP, _WORDS, _TOP, _BOTTOM = 190, 10, 150, 84, 44  # pixels of the picture
_BACKGROUND, _TRUE, _NOTHING = (240, 240, 236), (45, 45, 45), (196, 196, 202)


@dataclass(frozen=True)
class Examples:
    """Patches and what a model says of them.

    Attributes:
        bands: the names of the stack's bands.
        patches: the rows of the picture.
        probability: float32 (patches, height, width); NaN where nothing is said.
        threshold: above which a pixel is mapped as a landslide.
    """

    bands: tuple[str, ...]
    patches: Patches
    probability: NDArray[np.float32]
    threshold: float


def log_examples(store: Store, dataset: Dataset, model: Path, *run_ids: str) -> None:
    """Keep a picture of a model's example predictions, `examples.png`, with each of some runs.

    Args:
        store: the store of the runs.
        dataset: whose validation patches are shown.
        model: the ONNX file, with its contract.
        run_ids: of a study and its best trial, say.

    Raises:
        ModelError: the file cannot be opened.
        SourceError: a stack cannot be read.
        RegistryError: the store cannot be used.
    """
    shipped = Model.load(model)
    places = select_patches(dataset.validation)
    patches = Patches(dataset.validation.stack[places], dataset.validation.mask[places])
    examples = Examples(dataset.bands, patches, _map_patches(shipped, patches), shipped.contract.measured.threshold)
    warning = "Synthetic data" if dataset.synthetic else ""
    picture = example_panel(examples, f"{shipped.contract.origin.name}: validation patches", warning)
    for run_id in run_ids:
        store.runs.log_file(run_id, picture, FILE_NAME)


def select_patches(patches: Patches, count: int = DEFAULT_ROWS) -> NDArray[np.intp]:
    """Choose `count` patches with landslides, evenly from fullest to emptiest.

    What a model says of them has no part in the choice.
    """
    pixels = np.count_nonzero(patches.mask == LANDSLIDE, axis=(1, 2))
    ranked = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
    steps = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(np.intp)
    return ranked[steps]


def example_panel(examples: Examples, title: str, warning: str = "") -> bytes:
    """Draw a row for each patch, as PNG: what was seen, the truth, the probability, and the four outcomes.

    Args:
        examples: at least one.
        title: of the picture.
        warning: at its side, such as that the data are synthetic.
    """
    seen, kind = _image(examples)
    columns = (kind, "truth", "probability, dark is 1", f"outcome at {examples.threshold:.2f}")
    pictures = (
        seen,
        _truth_colours(examples.patches.mask),
        _probability_colours(examples.probability),
        CLASS_COLOURS[_pixel_classes(examples)],
    )
    left = [_GAP + column * (_SIDE + _GAP) for column in range(4)]
    height = _TOP + len(examples.patches) * (_SIDE + _GAP) + _BOTTOM
    page = Image.new("RGB", (left[-1] + _SIDE + _GAP + _WORDS, height), "white")
    pen = ImageDraw.Draw(page)
    write(pen, (_GAP, 14), title, 22, INK)
    write(pen, (page.width - _GAP, 18), warning, 16, WARNING, anchor="ra")
    for column, words, stack in zip(left, columns, pictures, strict=True):
        write(pen, (column, _TOP - 24), words, 15, FAINT)
        for row, pixels in enumerate(stack):
            shown = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            page.paste(shown, (column, _TOP + row * (_SIDE + _GAP)))
    for row, lines in enumerate(_row_labels(examples)):
        for number, line in enumerate(lines):
            place = left[-1] + _SIDE + _GAP, _TOP + row * (_SIDE + _GAP) + 20 * number
            write(pen, place, line, 14, FAINT if number else INK)
    _legend(pen, height - _BOTTOM + 8)
    stream = io.BytesIO()
    page.save(stream, "PNG")
    return stream.getvalue()


# The colour of each outcome's value, red, green and blue.
CLASS_COLOURS = np.full((256, 3), _NOTHING, np.uint8)
CLASS_COLOURS[list(PIXEL_CLASS_COLOURS)] = [colour[:3] for colour in PIXEL_CLASS_COLOURS.values()]


def _map_patches(model: Model, patches: Patches) -> NDArray[np.float32]:
    """Return the file's probability of each patch; NaN where a band is invalid."""
    maps = [model.probability(np.ascontiguousarray(np.moveaxis(stack, -1, 0))) for stack in patches.stack]
    return np.where(np.isnan(patches.stack).any(axis=-1), np.float32(np.nan), np.stack(maps))


def _image(examples: Examples) -> tuple[NDArray[np.uint8], str]:
    """Red, green and blue (patches, height, width, 3) where the model reads them, else the slope or its first band."""
    stack, bands = examples.patches.stack, examples.bands
    if {"red", "green", "blue"} <= set(bands):
        colours = [stretched(stack[..., bands.index(name)]) for name in ("red", "green", "blue")]
        return np.stack(colours, axis=-1), "optical image"
    name = "slope" if "slope" in bands else bands[0]
    grey = stretched(stack[..., bands.index(name)])
    return np.repeat((255 - grey if name == "slope" else grey)[..., np.newaxis], 3, axis=-1), name


def _truth_colours(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colours = np.full((256, 3), _BACKGROUND, np.uint8)
    colours[LANDSLIDE], colours[UNKNOWN] = _TRUE, _NOTHING
    return colours[mask]


def _probability_colours(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Light to dark from 0 to 1, as in the report; grey where nothing is said."""
    said = np.isfinite(probability)
    colours = mpl.colormaps["magma_r"](np.nan_to_num(probability), bytes=True)[..., :3]
    return np.where(said[..., np.newaxis], colours, np.array(_NOTHING, np.uint8)).astype(np.uint8)


def _pixel_classes(examples: Examples) -> NDArray[np.uint8]:
    return classify_pixels(apply_threshold(examples.probability, examples.threshold), examples.patches.mask)


def _row_labels(examples: Examples) -> list[tuple[str, ...]]:
    """Return the label of each row."""
    lines: list[tuple[str, ...]] = []
    for probability, truth in zip(examples.probability, examples.patches.mask, strict=True):
        counts = confusion(probability >= examples.threshold, truth, np.isfinite(probability))
        landslide = f"{counts.tp + counts.fn} landslide pixels"
        lines.append(
            (f"F1 {counts.f1:.2f}", f"precision {counts.precision:.2f}", f"recall {counts.recall:.2f}", landslide)
        )
    return lines


def _legend(pen: ImageDraw.ImageDraw, top: int) -> None:
    words = {int(outcome): outcome.label for outcome in PixelClass} | {NOT_COMPARED: "unknown or not mapped"}
    left = _GAP
    for value, label in words.items():
        pen.rectangle((left, top, left + 16, top + 16), fill=tuple(map(int, CLASS_COLOURS[value])), outline=FAINT)
        write(pen, (left + 24, top), label, 14, INK)
        left += 44 + int(pen.textlength(label, font=ImageFont.load_default(14)))
