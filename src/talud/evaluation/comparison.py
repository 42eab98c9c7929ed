"""Comparison of models on the same pixels: those of known truth that every one of them maps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from talud import source_files
from talud.data.held_out import check_held_out
from talud.data.patches import Part
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation import agreement
from talud.evaluation.agreement import Agreement
from talud.evaluation.bootstrap import LEVEL, Difference, f1_difference
from talud.files import replacing
from talud.mapping.reader import open_stack
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
from talud.metrics import Confusion
from talud.project import Project
from talud.raster import BLOCK, open_raster
from talud.text import counted

_FILES = "difference.tif", "difference.png", "comparison.json"
WHOLE, TEST_BLOCKS = "the whole area", "the test blocks"
_LINEAGE = ("MODEL", "VERSION", "RUN", "DATA_VERSION", "COMMIT", "WEIGHTS", "PRECISION", "THRESHOLD")


@dataclass(frozen=True)
class Comparison:
    """What two models, A and B, came to on an area.

    Attributes:
        area: its name.
        pixels: which of its pixels were counted: `WHOLE` or `TEST_BLOCKS`.
        models: A and B.
        counts: of A and B, on the pixels whose truth is known and that both map.
        known: pixels whose truth is known, among which those are.
        difference: the F1 of A less that of B.
        notes: what a reader must know to judge this.
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
        """How many pixels were counted."""
        return self.counts[0].pixels

    @property
    def verdict(self) -> str:
        """Whether the difference is more than chance, in words."""
        if self.difference.better or self.difference.worse:
            first, second = ("A", "B") if self.difference.better else ("B", "A")
            return f"{first} is better than {second}, by more than chance"
        return "the difference is no more than chance may bring"

    def rows(self) -> Iterator[tuple[str, str, Confusion]]:
        """The letter, the title and the counts of each model."""
        titles = (model.title for model in self.models)
        yield from zip("AB", titles, self.counts, strict=True)

    def record(self) -> dict[str, Any]:
        """All of it, for JSON."""
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
            "f1_difference": {**asdict(self.difference), "level": LEVEL, "verdict": self.verdict},
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
    return _assess(models, chain.from_iterable(labelled_windows(site, site.windows(part), *models) for site in sites))


def compare_maps(models: Sequence[Model], project: Project, area: str) -> tuple[Assessment, ...]:
    """Count each model over the map of a whole area, which is not kept, in blocks or patches.

    Raises:
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
    """
    site = Site.of(project, area)
    return _assess(models, mapped_windows(site, site.windows(), *models))


def _assess(models: Sequence[Model], windows: Iterable[LabelledWindow]) -> tuple[Assessment, ...]:
    return assess(windows, [model.contract.measured.threshold for model in models])


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
        if trained:
            counts = compare_blocks(models, project, [area], "test")
        else:
            counts = _assess(models, labelled_windows(site, site.windows(), *map(ProbabilityMap.of, maps)))
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
        TEST_BLOCKS if trained else WHOLE,
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
    first, second = (model.contract.measured.threshold for model in comparison.models)
    with open_stack(site.stack, comparison.models[0].contract) as stack:
        synthetic = stack.info.provenance.get("TALUD_SYNTHETIC") == "yes"
        tags = {"TALUD_AREA": comparison.area} | ({"TALUD_SYNTHETIC": "yes"} if synthetic else {})
        for letter, folder in zip("AB", maps, strict=True):
            tags |= _lineage(letter, folder)
        windows = labelled_windows(site, site.windows(side=BLOCK), *map(ProbabilityMap.of, maps))
        pixels = agreement.write(out / "difference.tif", stack.grid, windows, (first, second), tags)
        caption = agreement.Caption(
            f"{comparison.area}: two models",
            _lines(comparison),
            "synthetic data" if synthetic else "",
            _shares(pixels),
        )
        with (
            open_raster(site.mask) as truths,
            open_raster(out / "difference.tif") as classes,
            replacing(out / "difference.png") as scratch,
        ):
            agreement.draw(scratch, stack, classes, truths, caption)
    with replacing(out / "comparison.json") as scratch:
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
    total = max(sum(pixels.values()), 1)
    return {each: number / total for each, number in pixels.items()}
