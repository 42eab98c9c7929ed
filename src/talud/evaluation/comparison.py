"""Comparison of models on the pixels that all of them map."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from talud import source_files
from talud.data.patches import SplitPart
from talud.data.stack_record import check_held_out
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation.agreement import Agreement, AgreementCaption, draw_agreement, write_agreement
from talud.evaluation.bootstrap import CONFIDENCE_LEVEL, Difference, f1_difference
from talud.files import atomic_replace
from talud.mapping.reader import open_stack
from talud.measurement.assessment import Assessment
from talud.measurement.sites import (
    ProbabilityMap,
    Site,
    assess,
    labelled_windows,
    mapped_windows,
    temporary_maps,
)
from talud.metrics import Confusion
from talud.project import Project
from talud.raster import BLOCK_SIZE, open_raster
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
        """Yield letter, title with network, and counts of each model."""
        titles = (f"{model.title}, {model.contract.origin.network_name}" for model in self.models)
        yield from zip("AB", titles, self.counts, strict=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of comparison.json."""
        models = {
            letter: {
                "name": model.name,
                "version": model.version,
                "weights": model.contract.origin.weights,
                "network": model.contract.origin.network_name,
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
