"""Comparison of models on the same pixels: those of known truth that every one of them maps."""

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
from talud.data.patches import Part
from talud.data.record import check_held_out
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
    """Scores of two models, A and B, on an area.

    Attributes:
        area: name of the area.
        pixels: pixels that were counted: `WHOLE_AREA` or `TEST_BLOCKS`.
        models: models A and B.
        counts: counts of A and B on the pixels of known truth that both map.
        known: number of pixels of known truth.
        difference: F1 of A less that of B.
        notes: remarks that a reader needs in order to judge the scores.
    """

    area: str
    pixels: str
    models: tuple[Model, Model]
    counts: tuple[Confusion, Confusion]
    known: int
    difference: Difference
    notes: tuple[str, ...]

    @property
    def compared(self) -> int:
        """Return how many pixels were counted."""
        return self.counts[0].pixels

    @property
    def verdict(self) -> str:
        """Return in words if the difference is more than chance."""
        if self.difference.better or self.difference.worse:
            first, second = ("A", "B") if self.difference.better else ("B", "A")
            return f"{first} is better than {second}, by more than chance"
        return "the difference is no more than chance may bring"

    def rows(self) -> Iterator[tuple[str, str, Confusion]]:
        """Yield the letter, the title and the counts of each model."""
        titles = (model.title for model in self.models)
        yield from zip("AB", titles, self.counts, strict=True)

    def record(self) -> dict[str, Any]:
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
            "known_pixels": self.known,
            "compared_pixels": self.compared,
            "models": models,
            "f1_difference": {**asdict(self.difference), "level": CONFIDENCE_LEVEL, "verdict": self.verdict},
            "notes": self.notes,
        }


def compare_blocks(
    models: Sequence[Model], project: Project, areas: Iterable[str], part: Part
) -> tuple[Assessment, ...]:
    """Count each model over the blocks of one part of the areas' split, each block read alone.

    A pixel is landslide where its probability is at least the threshold of the model's contract. Pixels of unknown
    truth, and those that one of the models does not map, are not counted: a model must not gain by leaving hard pixels
    out.

    Raises:
        SourceError: a stack or mask is missing or cannot be read.
        MismatchError: a stack does not fit a model's contract.
    """
    sites = (Site.of(project, area) for area in areas)
    windows = chain.from_iterable(labelled_windows(site, site.windows(part), *models) for site in sites)
    return assess(windows, _thresholds(models))


def compare_maps(models: Sequence[Model], project: Project, area: str) -> tuple[Assessment, ...]:
    """Count each model over the map of a whole area, which is not kept, in blocks or patches.

    Raises:
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
    """
    site = Site.of(project, area)
    return assess(mapped_windows(site, site.windows(), *models), _thresholds(models))


def _thresholds(models: Sequence[Model]) -> list[float]:
    return [model.contract.measured.threshold for model in models]


def compare(a: Model, b: Model, project: Project, area: str, out: Path | None = None) -> Comparison:
    """Run two models over an area, and count both on the pixels of known truth that both map.

    On an area that one of them was trained on, only the test blocks count, each read alone. With `out`, the files
    difference.tif, difference.png and comparison.json of the whole area are written there.

    Raises:
        ParamsError: there is no such area.
        StudyError: no pixel of it can be compared.
        SourceError: its stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
        OutputError: a file cannot be written.
    """
    project.params.area(area)
    models = (a, b)
    if out is not None:
        read = [a.path, b.path, project.stack(area), project.mask(area)]
        source_files.check_output_folder(out, _FILES, read, ours=_has_comparison(out))
    trained = any(area in model.contract.origin.areas for model in models)
    site = Site.of(project, area)
    with temporary_maps(site, *models) as maps:
        mapped = labelled_windows(site, site.windows(), *map(ProbabilityMap.of, maps))
        counts = compare_blocks(models, project, [area], "test") if trained else assess(mapped, _thresholds(models))
        if not counts[0].blocks:
            raise StudyError(f"{area}: has no pixel whose truth is known and that both models map, so none to compare")
        comparison = _comparison(models, project, area, counts, trained)
        if out is not None:
            _write(comparison, site, maps, out)
    return comparison


def _has_comparison(out: Path) -> bool:
    """Check whether a folder holds the record of an earlier comparison."""
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
            yield f"{letter} was fine-tuned on {patches} of {area}, which are counted too"
        if area in model.contract.origin.areas:
            yield f"{letter} was trained on {area}, so that its test blocks alone are counted"
            try:
                check_held_out(model.contract, model.path, project)
            except StudyError as error:
                yield f"{letter} may have learned from some of the test blocks: {error}"


def _write(comparison: Comparison, site: Site, maps: Sequence[Path], out: Path) -> None:
    """Write the raster, the picture and the record of a comparison.

    Args:
        comparison: scores of both models.
        site: area that was mapped.
        maps: folder of each model's map.
        out: folder of the files.
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
        scratch.write_text(json.dumps(comparison.record(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _lineage(letter: str, folder: Path) -> dict[str, str]:
    """Return the tags of a map that state its model, renamed for model A or B."""
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
        f"F1 of A less that of B: {comparison.difference}: {comparison.verdict}.",
        f"Scores are of {comparison.pixels}; shares below are of all pixels that both models map.",
    ]


def _shares(pixels: dict[Agreement, int]) -> dict[Agreement, float]:
    return {each: number / max(sum(pixels.values()), 1) for each, number in pixels.items()}


NOT_COMPARED = 255  # truth unknown, or not mapped by one of the two


class Agreement(IntEnum):
    """Agreement of two maps, A and B, with the truth of a pixel; the values of the raster."""

    BOTH_RIGHT = 0
    ONLY_A_RIGHT = 1
    ONLY_B_RIGHT = 2
    BOTH_WRONG = 3

    @property
    def label(self) -> str:
        """Return the name for a reader."""
        return self.name.replace("_", " ").lower().replace(" a ", " A ").replace(" b ", " B ")


AGREEMENT_COLOURS: dict[int, tuple[int, int, int, int]] = {
    Agreement.BOTH_RIGHT: (226, 226, 222, 255),
    Agreement.ONLY_A_RIGHT: (0, 114, 178, 255),
    Agreement.ONLY_B_RIGHT: (230, 159, 0, 255),
    Agreement.BOTH_WRONG: (204, 61, 139, 255),
}
_FOUND_BY_BOTH = (0, 158, 115)  # of the same palette: in the picture, landslides that both maps show


def agreement(a: NDArray[np.uint8], b: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the `Agreement` of two class maps, uint8, 255 where they are not compared.

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


def write_agreement(
    path: Path,
    grid: Grid,
    windows: Iterable[LabelledWindow],
    thresholds: Sequence[float],
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
    """The words of the picture.

    Attributes:
        shares: the share of each class in the compared pixels.
    """

    shares: Mapping[Agreement, float]


def draw_agreement(
    path: Path, stack: StackReader, classes: DatasetReader, truths: DatasetReader, caption: AgreementCaption
) -> None:
    """Draw the raster and the outlines of the inventory over a pale image of the area, as PNG."""
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
        Agreement.ONLY_A_RIGHT: "only A is right: B misses a landslide here, or shows one that is none",
        Agreement.ONLY_B_RIGHT: "only B is right",
        Agreement.BOTH_WRONG: "both are wrong",
    }
    shares = [
        LegendEntry(f"{words} ({caption.shares[each]:.2%})", AGREEMENT_COLOURS[each][:3], 0.9)
        for each, words in meanings.items()
    ]
    both = LegendEntry("a landslide that both show", _FOUND_BY_BOTH, 0.9)
    return [both, *shares, LegendEntry("not mapped by one of the two, or truth unknown", None)]
