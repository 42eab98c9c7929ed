"""A pair of models over one area: their scores on the same pixels, and whether they differ by more than chance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rasterio.io import DatasetReader

from talud import source_files
from talud.data.held_out import check_held_out
from talud.data.patches import block_side
from talud.data.record import current_stack
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation import agreement
from talud.evaluation.agreement import Agreement
from talud.evaluation.bootstrap import LEVEL, Difference, f1_difference
from talud.evaluation.comparison import Counts, compare_blocks, count_maps, mapped
from talud.files import replacing
from talud.mapping.reader import open_stack
from talud.metrics import Confusion
from talud.project import Project
from talud.raster import open_raster
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
        first = self.counts[0]
        return first.tp + first.fp + first.fn + first.tn

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


def compare(a: Model, b: Model, project: Project, area: str, out: Path | None = None) -> Comparison:
    """Run two models over an area, and count both on the pixels whose truth is known and that both map.

    On an area that one of them was trained on, only the test blocks count, each read alone, as in `scoring`. With
    `out`: difference.tif, difference.png and comparison.json appear there, of the whole area.

    Raises:
        ParamsError: no such area.
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
    with mapped(models, project, area) as (truths, maps):
        block = block_side(truths, project.params.split)
        counts = compare_blocks(models, project, [area], "test") if trained else count_maps(truths, maps, block)
        if not counts.pixels:
            raise StudyError(f"{area}: has no pixel whose truth is known and that both models map, so none to compare")
        comparison = _comparison(models, project, area, counts, trained)
        if out is not None:
            _write(comparison, project, truths, maps, out)
    return comparison


def _has_comparison(out: Path) -> bool:
    """Check whether a folder holds the record of an earlier comparison."""
    try:
        content = json.loads((out / "comparison.json").read_bytes())
        return isinstance(content["models"], dict) and "compared_pixels" in content
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _comparison(models: tuple[Model, Model], project: Project, area: str, counts: Counts, trained: bool) -> Comparison:
    return Comparison(
        area,
        TEST_BLOCKS if trained else WHOLE,
        models,
        (counts.totals[0], counts.totals[1]),
        counts.known,
        f1_difference(counts.blocks[0], counts.blocks[1], project.params.promotion.resamples, project.params.seed),
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


def _write(
    comparison: Comparison, project: Project, truths: DatasetReader, maps: list[DatasetReader], out: Path
) -> None:
    with open_stack(current_stack(project, comparison.area), comparison.models[0].contract) as stack:
        synthetic = stack.info.synthetic
        tags = {"TALUD_AREA": comparison.area} | ({"TALUD_SYNTHETIC": "yes"} if synthetic else {})
        for letter, raster in zip("AB", maps, strict=True):
            lineage = raster.tags()
            tags |= {f"TALUD_{letter}_{key}": lineage[f"TALUD_{key}"] for key in _LINEAGE if f"TALUD_{key}" in lineage}
        pixels = agreement.write(out / "difference.tif", truths, maps, tags)
        caption = agreement.Caption(
            f"{comparison.area}: two models",
            _lines(comparison),
            "synthetic data" if synthetic else "",
            _shares(pixels),
        )
        with open_raster(out / "difference.tif") as classes, replacing(out / "difference.png") as scratch:
            agreement.draw(scratch, stack, classes, truths, caption)
    with replacing(out / "comparison.json") as scratch:
        scratch.write_text(json.dumps(comparison.record(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
