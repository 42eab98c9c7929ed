"""Scores of a shipped model: on blocks held out of training, and on the maps of whole areas."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.data.patches import split
from talud.errors import MismatchError, StudyError
from talud.evaluation.outcome import COLOURS, NO_OUTCOME, NOT_MAPPED, Outcome, classify
from talud.evaluation.results import Scores, ScoreTable
from talud.evaluation.tally import Levels, Tally
from talud.files import replacing
from talud.grid import Grid
from talud.inference.prediction import probabilities
from talud.inference.runtime import Model
from talud.metrics import UNKNOWN, Confusion
from talud.project import Project
from talud.raster import BLOCK, Layout, open_raster, writing_cog

Part = Literal["training", "validation", "test"]


@dataclass(frozen=True)
class _Score:
    """A tally with the levels that its curve is drawn from."""

    tally: Tally
    levels: Levels

    def __add__(self, other: _Score) -> _Score:
        return _Score(self.tally + other.tally, self.levels + other.levels)


def score_blocks(model: Model, project: Project, areas: Iterable[str], part: Part) -> Confusion:
    """Count the model's map against the masks, over the blocks of one part of the areas' split.

    Each block is read alone, so no pixel outside it helps; a pixel is landslide where its probability is at least
    the contract's threshold. Pixels of unknown truth, and those that cannot be mapped, are in none of the counts.

    Raises:
        SourceError: a stack or mask is missing or cannot be read.
        MismatchError: a stack does not fit the model's contract.
    """
    scores = (_block_score(model, project, area, part) for area in areas)
    return Tally.total(score.tally for score in scores).confusion


def evaluate(project: Project, band_set: str) -> ScoreTable:
    """Score a band set's model: on the test blocks of the training areas, and on each other labelled area's map.

    Writes the score table, a curve of scores over the threshold for the test blocks and for each area, and the
    outcome map of every labelled area that has been predicted, training areas too.

    Raises:
        StudyError: a gate or transfer area with an inventory has not been predicted.
        MismatchError: a map does not lie on the grid of its area's mask.
        SourceError: a stack, mask or map is missing or cannot be read.
    """
    project.params.band_set(band_set)
    model = Model.load(project.model(band_set))
    training = project.params.areas_of("training")
    blocks = {area: _block_score(model, project, area, "test") for area in training}
    areas = {area: _area_score(project, band_set, area) for area in _labelled(project) if area not in training}
    for area in training:
        if project.prediction(band_set, area).is_dir():
            _area_score(project, band_set, area)
    table = ScoreTable(
        band_set=band_set,
        threshold=model.contract.threshold,
        test={area: Scores.of(score.tally) for area, score in blocks.items()},
        areas={area: Scores.of(score.tally, project.params.area(area).role) for area, score in areas.items()},
    )
    _write_curve(project.curve(band_set, "test"), _sum(blocks.values()).levels)
    for area, score in areas.items():
        _write_curve(project.curve(band_set, area), score.levels)
    table.write(project.scores(band_set))
    return table


def _sum(scores: Iterable[_Score]) -> _Score:
    return sum(scores, start=_Score(Tally(), Levels()))


def _block_score(model: Model, project: Project, area: str, part: Part) -> _Score:
    mask = project.mask(area)
    blocks = split(mask, project.params.split, project.params.seed)
    windows = [block.window for block in blocks if block.part == part]
    score = _Score(Tally(), Levels())
    with open_raster(mask) as truths:
        for window, probability in zip(windows, probabilities(model, project.stack(area), windows), strict=True):
            truth = truths.read(1, window=window)
            mapped = np.where(np.isfinite(probability), probability >= model.contract.threshold, NOT_MAPPED)
            score += _Score(Tally.of(mapped.astype(np.uint8), truth), Levels.of(probability, truth))
    return score


def _labelled(project: Project) -> list[str]:
    """The areas whose mask knows the truth of any pixel."""
    return [area for area in project.params.areas if project.mask(area).is_file() and _knows_truth(project.mask(area))]


def _knows_truth(mask: Path) -> bool:
    with open_raster(mask) as truths:
        return any((truths.read(1, window=window) != UNKNOWN).any() for window in Grid.of(truths).windows(BLOCK))


def _area_score(project: Project, band_set: str, area: str) -> _Score:
    """Score an area's map from its files, and write its outcome map."""
    score = _Score(Tally(), Levels())
    folder = project.prediction(band_set, area)
    if not (folder / "landslides.tif").is_file():
        raise StudyError(
            f"{folder}: holds no map; run: talud predict {project.model(band_set).relative_to(project.root)} "
            f"{project.stack(area).relative_to(project.root)} --out {folder.relative_to(project.root)}"
        )
    with (
        open_raster(folder / "landslides.tif") as classes,
        open_raster(folder / "probability.tif") as levels,
        open_raster(project.mask(area)) as truths,
    ):
        grid = _common_grid(truths, classes, levels)
        with writing_cog(project.outcome(band_set, area), grid, _layout(classes, project, band_set, area)) as writer:
            for window, mapped, probability, truth in _windows(grid, classes, levels, truths):
                writer.write(classify(mapped, truth), 1, window=window)
                score += _Score(Tally.of(mapped, truth), Levels.of(probability, truth))
    return score


def _windows(
    grid: Grid, classes: DatasetReader, levels: DatasetReader, truths: DatasetReader
) -> Iterator[tuple[Window, NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]]:
    for window in grid.windows(BLOCK):
        probability = levels.read(1, window=window, masked=True).filled(np.nan)
        yield window, classes.read(1, window=window), probability, truths.read(1, window=window)


def _common_grid(mask: DatasetReader, *maps: DatasetReader) -> Grid:
    grid = Grid.of(mask)
    for other in maps:
        if Grid.of(other) != grid:
            raise MismatchError(
                f"{other.name}: {other.width} × {other.height} pixels that are not those of the mask {mask.name} "
                f"({mask.width} × {mask.height}); run talud predict on the present stack again"
            )
    return grid


def _layout(classes: DatasetReader, project: Project, band_set: str, area: str) -> Layout:
    lineage = {key: value for key, value in classes.tags().items() if key.startswith("TALUD_")}
    meanings = {f"CLASS_{outcome.value}": outcome.label for outcome in Outcome}
    return Layout(
        dtype="uint8",
        nodata=NO_OUTCOME,
        bands=["outcome: " + ", ".join(f"{outcome.value} {outcome.label}" for outcome in Outcome)],
        tags={
            **lineage,
            **meanings,
            f"CLASS_{NO_OUTCOME}": "not mapped, or truth unknown",
            "TALUD_AREA": area,
            "TALUD_BAND_SET": band_set,
            "TALUD_ROLE": project.params.area(area).role,
        },
        colours=COLOURS,
        overviews="mode",
    )


def _write_curve(path: Path, levels: Levels) -> None:
    with replacing(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["threshold", "precision", "recall", "f1"])
        for threshold, counts in levels.curve():
            scores = (counts.precision, counts.recall, counts.f1)
            writer.writerow([f"{threshold:.2f}", *(f"{score:.6f}" for score in scores)])
