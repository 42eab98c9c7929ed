"""Picture of example predictions on validation patches with landslides."""

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
from talud.imaging import MUTED_COLOUR, TEXT_COLOUR, WARNING_COLOUR, draw_text, stretch_contrast
from talud.metrics import LANDSLIDE, UNKNOWN, confusion
from talud.registry import Store
from talud.training.dataset import Dataset

FILE_NAME = "examples.png"
DEFAULT_ROWS = 6
# Layout in pixels: sides of a patch, gaps, width of the scores, margins at the top and at the bottom.
_SIDE, _GAP, _SCORES, _TOP, _BOTTOM = 190, 10, 150, 84, 44
_BACKGROUND, _TRUE, _NOTHING = (240, 240, 236), (45, 45, 45), (196, 196, 202)


@dataclass(frozen=True)
class Examples:
    """Patches and a model's predictions for them.

    Attributes:
        bands: names of the bands.
        patches: patches, one for each row of the picture.
        probability: landslide probability, float32 (patches, height, width), NaN where not mapped.
        threshold: probability from which a pixel is mapped as a landslide.
    """

    bands: tuple[str, ...]
    patches: Patches
    probability: NDArray[np.float32]
    threshold: float


def log_examples(store: Store, dataset: Dataset, model: Path, *run_ids: str) -> None:
    """Log a picture of example predictions to runs.

    Args:
        store: store of the runs.
        dataset: dataset with the validation patches to show.
        model: path of the ONNX file with its contract.
        run_ids: identifiers of the runs, such as a study and its best trial.

    Raises:
        ModelError: The file cannot be opened.
        SourceError: A stack cannot be read.
        RegistryError: The store cannot be used.
    """
    shipped = Model.load(model)
    indices = select_patches(dataset.validation)
    patches = Patches(dataset.validation.stack[indices], dataset.validation.mask[indices])
    examples = Examples(dataset.bands, patches, _map_patches(shipped, patches), shipped.contract.measured.threshold)
    warning = "Synthetic data" if dataset.synthetic else ""
    picture = example_panel(examples, f"{shipped.contract.origin.name}: validation patches", warning)
    for run_id in run_ids:
        store.runs.log_file(run_id, picture, FILE_NAME)


def select_patches(patches: Patches, count: int = DEFAULT_ROWS) -> NDArray[np.intp]:
    """Select patches that span the range of landslide pixel counts.

    Patches without landslides are left out. The selection does not depend on a model's predictions.

    Args:
        patches: patches to select from.
        count: largest number of patches to select.

    Returns:
        Indices of the selected patches, those with the most landslide pixels first.
    """
    pixels = np.count_nonzero(patches.mask == LANDSLIDE, axis=(1, 2))
    ranked = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
    steps = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(np.intp)
    return ranked[steps]


def example_panel(examples: Examples, title: str, warning: str = "") -> bytes:
    """Draw a picture with a row for each patch.

    The columns show the image, the truth, the probability and the confusion map.

    Args:
        examples: at least one patch with its prediction.
        title: title of the picture.
        warning: text next to the title, such as "Synthetic data".

    Returns:
        The picture as PNG.
    """
    seen, kind = _image(examples)
    columns = (kind, "truth", "probability (dark: 1)", f"result at {examples.threshold:.2f}")
    pictures = (
        seen,
        _truth_colours(examples.patches.mask),
        _probability_colours(examples.probability),
        CLASS_COLOURS[_pixel_classes(examples)],
    )
    left = [_GAP + column * (_SIDE + _GAP) for column in range(4)]
    height = _TOP + len(examples.patches) * (_SIDE + _GAP) + _BOTTOM
    page = Image.new("RGB", (left[-1] + _SIDE + _GAP + _SCORES, height), "white")
    pen = ImageDraw.Draw(page)
    draw_text(pen, (_GAP, 14), title, 22, TEXT_COLOUR)
    draw_text(pen, (page.width - _GAP, 18), warning, 16, WARNING_COLOUR, anchor="ra")
    for column, words, stack in zip(left, columns, pictures, strict=True):
        draw_text(pen, (column, _TOP - 24), words, 15, MUTED_COLOUR)
        for row, pixels in enumerate(stack):
            shown = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            page.paste(shown, (column, _TOP + row * (_SIDE + _GAP)))
    for row, lines in enumerate(_row_labels(examples)):
        for number, line in enumerate(lines):
            corner = left[-1] + _SIDE + _GAP, _TOP + row * (_SIDE + _GAP) + 20 * number
            draw_text(pen, corner, line, 14, MUTED_COLOUR if number else TEXT_COLOUR)
    _legend(pen, height - _BOTTOM + 8)
    stream = io.BytesIO()
    page.save(stream, "PNG")
    return stream.getvalue()


# Red, green and blue of each value of a confusion map.
CLASS_COLOURS = np.full((256, 3), _NOTHING, np.uint8)
CLASS_COLOURS[list(PIXEL_CLASS_COLOURS)] = [colour[:3] for colour in PIXEL_CLASS_COLOURS.values()]


def _map_patches(model: Model, patches: Patches) -> NDArray[np.float32]:
    """Return the probability of each patch, NaN where invalid."""
    maps = [model.probability(np.ascontiguousarray(np.moveaxis(stack, -1, 0))) for stack in patches.stack]
    return np.where(np.isnan(patches.stack).any(axis=-1), np.float32(np.nan), np.stack(maps))


def _image(examples: Examples) -> tuple[NDArray[np.uint8], str]:
    """Return the images of the patches, and their label.

    It shows red, green and blue if the model reads them, else the slope or the first band in grey.
    """
    stack, bands = examples.patches.stack, examples.bands
    if {"red", "green", "blue"} <= set(bands):
        colours = [stretch_contrast(stack[..., bands.index(name)]) for name in ("red", "green", "blue")]
        return np.stack(colours, axis=-1), "optical image"
    name = "slope" if "slope" in bands else bands[0]
    grey = stretch_contrast(stack[..., bands.index(name)])
    return np.repeat((255 - grey if name == "slope" else grey)[..., np.newaxis], 3, axis=-1), name


def _truth_colours(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colours = np.full((256, 3), _BACKGROUND, np.uint8)
    colours[LANDSLIDE], colours[UNKNOWN] = _TRUE, _NOTHING
    return colours[mask]


def _probability_colours(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour probabilities from light (0) to dark (1)."""
    mapped = np.isfinite(probability)
    colours = mpl.colormaps["magma_r"](np.nan_to_num(probability), bytes=True)[..., :3]
    return np.where(mapped[..., np.newaxis], colours, np.array(_NOTHING, np.uint8)).astype(np.uint8)


def _pixel_classes(examples: Examples) -> NDArray[np.uint8]:
    return classify_pixels(apply_threshold(examples.probability, examples.threshold), examples.patches.mask)


def _row_labels(examples: Examples) -> list[tuple[str, ...]]:
    """Return the lines of text next to each row."""
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
        pen.rectangle(
            (left, top, left + 16, top + 16), fill=tuple(map(int, CLASS_COLOURS[value])), outline=MUTED_COLOUR
        )
        draw_text(pen, (left + 24, top), label, 14, TEXT_COLOUR)
        left += 44 + int(pen.textlength(label, font=ImageFont.load_default(14)))
