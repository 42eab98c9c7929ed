"""Comparison of models on the pixels that all of them map."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from scipy import ndimage

from talud import imaging, source_files
from talud.confusion_map import NOT_MAPPED, apply_threshold
from talud.data.patches import SplitPart
from talud.data.stack_record import check_held_out
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation.bootstrap import CONFIDENCE_LEVEL, Difference, f1_difference
from talud.files import atomic_replace
from talud.grid import Grid
from talud.imaging import LegendEntry
from talud.mapping.reader import StackReader, open_stack
from talud.measurement.assessment import Assessment
from talud.measurement.sites import (
    LabelledWindow,
    ProbabilityMap,
    Site,
    assess,
    labelled_windows,
    mapped_windows,
    temporary_maps,
)
from talud.metrics import LANDSLIDE, UNKNOWN, Confusion
from talud.products.quicklook import background
from talud.project import Project
from talud.raster import BLOCK_SIZE, Layout, open_raster, write_cog
from talud.text import counted

_FILES = "difference.tif", "difference.png", "comparison.json"
WHOLE_AREA, TEST_BLOCKS = "the whole area", "the test blocks"
_LINEAGE = ("MODEL", "VERSION", "RUN", "DATA_VERSION", "COMMIT", "WEIGHTS", "PRECISION", "THRESHOLD")


@dataclass(frozen=True)
class Comparison:
    """Scores of models A and B on an area.

    Attributes:
        area: name of the area.
        pixels: description of the counted pixels: `WHOLE_AREA` or `TEST_BLOCKS`.
        models: models A and B.
        counts: counts of A and B on the pixels of known truth that both map.
        known_pixels: number of pixels of known truth.
        difference: F1 of A minus F1 of B.
        notes: remarks that a reader needs in order to judge the scores.
    """

    area: str
    pixels: str
    models: tuple[Model, Model]
    counts: tuple[Confusion, Confusion]
    known_pixels: int
    difference: Difference
    notes: tuple[str, ...]

    @property
    def compared(self) -> int:
        """Number of pixels that were compared."""
        return self.counts[0].pixels

    @property
    def verdict(self) -> str:
        """Result of the comparison as text."""
        if self.difference.better or self.difference.worse:
            first, second = ("A", "B") if self.difference.better else ("B", "A")
            return f"{first} is better than {second}, by more than chance"
        return "the difference may be due to chance"

    def rows(self) -> Iterator[tuple[str, str, Confusion]]:
        """Yield letter, title and counts of each model."""
        titles = (model.title for model in self.models)
        yield from zip("AB", titles, self.counts, strict=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of comparison.json."""
        models = {
            letter: {
                "name": model.name,
                "version": model.version,
                "weights": model.contract.origin.weights,
                "threshold": model.contract.measured.threshold,
                **asdict(counts),
                **counts.scores(),
            }
            for letter, model, counts in zip("AB", self.models, self.counts, strict=True)
        }
        return {
            "area": self.area,
            "pixels": self.pixels,
            "known_pixels": self.known_pixels,
            "compared_pixels": self.compared,
            "models": models,
            "f1_difference": {**asdict(self.difference), "level": CONFIDENCE_LEVEL, "verdict": self.verdict},
            "notes": self.notes,
        }


def compare_blocks(
    models: Sequence[Model], project: Project, areas: Iterable[str], part: SplitPart
) -> tuple[Assessment, ...]:
    """Assess each model on the blocks of a part.

    Each block is read without its surroundings, and each model is used at the threshold of its contract. Pixels of
    unknown truth, or that one of the models does not map, are not counted: no model gains by skipping hard pixels.

    Raises:
        SourceError: a stack or mask is missing or cannot be read.
        MismatchError: a stack does not fit a model's contract.
    """
    sites = (Site.of(project, area) for area in areas)
    windows = chain.from_iterable(labelled_windows(site, site.windows(part), *models) for site in sites)
    return assess(windows, _thresholds(models))


def compare_maps(models: Sequence[Model], project: Project, area: str) -> tuple[Assessment, ...]:
    """Assess each model on maps of a whole area.

    The maps are temporary. Counts are by block of the split, or by patch.

    Raises:
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
    """
    site = Site.of(project, area)
    return assess(mapped_windows(site, site.windows(), *models), _thresholds(models))


def _thresholds(models: Sequence[Model]) -> list[float]:
    return [model.contract.measured.threshold for model in models]


def compare(a: Model, b: Model, project: Project, area: str, out: Path | None = None) -> Comparison:
    """Compare two models on an area.

    Only pixels that both map are compared.

    If one of them was trained on the area, only its test blocks are compared, each read without its surroundings.

    Args:
        a: model A.
        b: model B.
        project: project with the area.
        area: name of a labelled area.
        out: folder for difference.tif, difference.png and comparison.json of the whole area. Default: no files.

    Raises:
        ParamsError: there is no such area.
        StudyError: no pixel can be compared.
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
        OutputError: a file cannot be written.
    """
    project.params.area(area)
    models = (a, b)
    if out is not None:
        read = [a.path, b.path, project.stack(area), project.mask(area)]
        source_files.check_output_folder(out, _FILES, read, replaceable=_has_comparison(out))
    trained = any(area in model.contract.origin.areas for model in models)
    site = Site.of(project, area)
    with temporary_maps(site, *models) as maps:
        mapped = labelled_windows(site, site.windows(), *map(ProbabilityMap.of, maps))
        counts = compare_blocks(models, project, [area], "test") if trained else assess(mapped, _thresholds(models))
        if not counts[0].blocks:
            raise StudyError(f"{area}: no pixel of known truth is mapped by both models, so nothing can be compared")
        comparison = _comparison(models, project, area, counts, trained)
        if out is not None:
            _write(comparison, site, maps, out)
    return comparison


def _has_comparison(out: Path) -> bool:
    """Check if a folder holds an earlier comparison."""
    try:
        content = json.loads((out / "comparison.json").read_bytes())
        return isinstance(content["models"], dict) and "compared_pixels" in content
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _comparison(
    models: tuple[Model, Model], project: Project, area: str, counts: Sequence[Assessment], trained: bool
) -> Comparison:
    first, second = counts
    resamples, seed = project.params.promotion.resamples, project.params.seed
    return Comparison(
        area,
        TEST_BLOCKS if trained else WHOLE_AREA,
        models,
        (first.confusion, second.confusion),
        first.pixels,
        f1_difference(first.block_counts, second.block_counts, resamples, seed),
        tuple(_notes(models, project, area)),
    )


def _notes(models: tuple[Model, Model], project: Project, area: str) -> Iterator[str]:
    for letter, model in zip("AB", models, strict=True):
        tuned = model.contract.derived.finetuned
        if tuned and tuned.area == area:
            patches = counted(tuned.patches, "patch", "patches")
            yield f"{letter} was fine-tuned on {patches} of {area}, which are included in the scores"
        if area in model.contract.origin.areas:
            yield f"{letter} was trained on {area}, so only its test blocks are scored"
            try:
                check_held_out(model.contract, model.path, project)
            except StudyError as error:
                yield f"{letter} may have been trained on some of the test blocks: {error}"


def _write(comparison: Comparison, site: Site, maps: Sequence[Path], out: Path) -> None:
    """Write raster, picture and JSON file of a comparison.

    Args:
        comparison: scores of both models.
        site: area that was mapped.
        maps: folder of each model's map.
        out: output folder.
    """
    with open_stack(site.stack, comparison.models[0].contract) as stack:
        synthetic = stack.info.synthetic
        tags = {"TALUD_AREA": comparison.area} | ({"TALUD_SYNTHETIC": "yes"} if synthetic else {})
        for letter, folder in zip("AB", maps, strict=True):
            tags |= _lineage(letter, folder)
        windows = labelled_windows(site, site.windows(side=BLOCK_SIZE), *map(ProbabilityMap.of, maps))
        pixels = write_agreement(out / "difference.tif", stack.grid, windows, _thresholds(comparison.models), tags)
        caption = AgreementCaption(
            f"{comparison.area}: two models",
            _lines(comparison),
            "synthetic data" if synthetic else "",
            _shares(pixels),
        )
        with (
            open_raster(site.mask) as truths,
            open_raster(out / "difference.tif") as classes,
            atomic_replace(out / "difference.png") as scratch,
        ):
            draw_agreement(scratch, stack, classes, truths, caption)
    with atomic_replace(out / "comparison.json") as scratch:
        scratch.write_text(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _lineage(letter: str, folder: Path) -> dict[str, str]:
    """Return a map's provenance tags, renamed for A or B."""
    with open_raster(folder / "landslides.tif") as raster:
        tags = raster.tags()
    return {f"TALUD_{letter}_{key}": tags[f"TALUD_{key}"] for key in _LINEAGE if f"TALUD_{key}" in tags}


def _lines(comparison: Comparison) -> list[str]:
    scores = [
        f"{letter}: {title}. F1 {counts.f1:.3f}, precision {counts.precision:.3f}, recall {counts.recall:.3f}"
        for letter, title, counts in comparison.rows()
    ]
    return [
        *scores,
        f"F1 of A minus F1 of B: {comparison.difference}: {comparison.verdict}.",
        f"Scores cover {comparison.pixels}; shares below cover all pixels that both models map.",
    ]


def _shares(pixels: dict[Agreement, int]) -> dict[Agreement, float]:
    return {each: number / max(sum(pixels.values()), 1) for each, number in pixels.items()}


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
