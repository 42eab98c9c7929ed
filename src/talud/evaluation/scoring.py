"""Scores of a shipped model: on blocks held out of training, and on the maps of whole areas."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.confusion_map import COLOURS, NO_OUTCOME, Outcome, at_threshold, classify
from talud.data.held_out import check_held_out
from talud.data.patches import Part, split
from talud.data.record import current_stack
from talud.engine.runtime import Model
from talud.errors import MismatchError, StudyError, TaludWarning
from talud.evaluation.reliability import Reliability
from talud.evaluation.results import Scores, ScoreTable
from talud.evaluation.tally import Tally
from talud.files import replacing
from talud.grid import Grid
from talud.mapping.tiles import probabilities
from talud.metrics import THRESHOLDS, UNKNOWN, ThresholdHistogram
from talud.progress import Progress
from talud.project import Project
from talud.raster import BLOCK, Layout, open_raster, writing_cog
from talud.text import dimensions


@dataclass(frozen=True)
class _Score:
    """A tally with the levels that its curve and the reliability of its probabilities follow from."""

    tally: Tally = field(default_factory=Tally)
    levels: ThresholdHistogram = field(default_factory=ThresholdHistogram)

    def __add__(self, other: _Score) -> _Score:
        return _Score(self.tally + other.tally, self.levels + other.levels)


def evaluate(project: Project, band_set: str, progress: Progress | None = None) -> ScoreTable:
    """Score a band set's model: on the test blocks of the training areas, and on each other labelled area's map.

    Writes the score table, its metrics for DVC, a curve of scores over the threshold for the test blocks and for each
    area, and the outcome map of every labelled area that has been mapped, training areas too.

    Args:
        project: with stacks, model and maps in place.
        band_set: of params.yaml.
        progress: told, after each window, how many are done and how many there are.

    Raises:
        StudyError: a gate or transfer area with an inventory has no map, or the present test blocks are not those
            that the model's training left out.
        MismatchError: a map does not lie on the grid of its area's mask, or another model or threshold made it.
        SourceError: a stack, mask or map is missing or cannot be read.
    """
    project.params.band_set(band_set)
    model = Model.load(project.model(band_set))
    check_held_out(model.contract, model.path, project)
    training = project.params.areas_of("training")
    maps = {area: _map_windows(project, band_set, area) for area in labelled(project)}
    blocks = {area: block_windows(project, area, "test") for area in training}
    step = _steps(progress, sum(map(len, [*maps.values(), *blocks.values()])))
    tests = {area: _score_windows(model, project, area, windows, step) for area, windows in blocks.items()}
    areas = {
        area: _score_map(model, project, band_set, area, windows, step) for area, windows in maps.items() if windows
    }
    for name, score in (*tests.items(), *areas.items()):
        if score.tally.missing_class:
            warnings.warn(f"{name}: {score.tally.missing_class}", TaludWarning, stacklevel=2)
    away = {area: score for area, score in areas.items() if area not in training}
    curves = {"test": sum(tests.values(), start=_Score()), **away}
    table = ScoreTable(
        band_set=band_set,
        weights=model.contract.origin.weights,
        threshold=model.contract.measured.threshold,
        test={area: Scores.of(score.tally) for area, score in tests.items()},
        areas={area: Scores.of(score.tally, project.params.area(area).role) for area, score in away.items()},
        reliability={part: Reliability.of(score.levels) for part, score in curves.items()},
    )
    for part, score in curves.items():
        _write_curve(project.curve(band_set, part), score.levels)
    table.write(project.scores(band_set))
    table.write_metrics(project.metrics(band_set))
    return table


def _steps(progress: Progress | None, total: int) -> Callable[[], None]:
    """What to call after each of the windows."""
    done = itertools.count(1)

    def step() -> None:
        if progress:
            progress(next(done), total)

    return step


def labelled(project: Project) -> list[str]:
    """The areas whose mask knows the truth of any pixel."""
    for area in project.params.areas:
        current_stack(project, area)  # whose mask has the same parameters
    return [area for area in project.params.areas if _knows_truth(project.mask(area))]


def _knows_truth(mask: Path) -> bool:
    with open_raster(mask) as truths:
        return any((truths.read(1, window=window) != UNKNOWN).any() for window in Grid.of(truths).windows(BLOCK))


def block_windows(project: Project, area: str, part: Part) -> list[Window]:
    """The blocks of one part of an area's split."""
    current_stack(project, area)  # whose mask has the same parameters
    blocks = split(project.mask(area), project.params.split, project.params.seed)
    return [block.window for block in blocks if block.part == part]


def _map_windows(project: Project, band_set: str, area: str) -> list[Window]:
    """The windows of an area's map; none for a training area that has not been mapped, which is scored by blocks."""
    folder = project.prediction(band_set, area)
    if (folder / "landslides.tif").is_file():
        with open_raster(project.mask(area)) as truths:
            return Grid.of(truths).windows(BLOCK)
    if project.params.area(area).role == "training":
        return []
    model, stack, out = (
        path.relative_to(project.root) for path in (project.model(band_set), project.stack(area), folder)
    )
    raise StudyError(f"{out}: holds no map of {area}; run: talud predict {model} {stack} --out {out}")


def _score_windows(
    model: Model, project: Project, area: str, windows: list[Window], step: Callable[[], None]
) -> _Score:
    """Score the model on windows of an area's stack, each read alone."""
    score = _Score()
    with open_raster(project.mask(area)) as truths:
        for window, probability in zip(
            windows, probabilities(model, current_stack(project, area), windows), strict=True
        ):
            truth = truths.read(1, window=window)
            mapped = at_threshold(probability, model.contract.measured.threshold)
            score += _Score(Tally.of(mapped, truth), ThresholdHistogram.of(probability, truth))
            step()
    return score


def _score_map(
    model: Model, project: Project, band_set: str, area: str, windows: list[Window], step: Callable[[], None]
) -> _Score:
    """Score an area's map from its files, and write its outcome map."""
    score = _Score()
    folder = project.prediction(band_set, area)
    with (
        open_raster(folder / "landslides.tif") as classes,
        open_raster(folder / "probability.tif") as levels,
        open_raster(project.mask(area)) as truths,
    ):
        grid = _common_grid(truths, classes, levels)
        _check_maker(model, classes)
        with writing_cog(project.outcome(band_set, area), grid, _layout(classes, project, band_set, area)) as writer:
            for window in windows:
                mapped, truth = classes.read(1, window=window), truths.read(1, window=window)
                probability = levels.read(1, window=window, masked=True).filled(np.nan)
                writer.write(classify(mapped, truth), 1, window=window)
                score += _Score(Tally.of(mapped, truth), ThresholdHistogram.of(probability, truth))
                step()
    return score


def _common_grid(mask: DatasetReader, *maps: DatasetReader) -> Grid:
    grid = Grid.of(mask)
    for other in maps:
        if Grid.of(other) != grid:
            raise MismatchError(
                f"{other.name}: {dimensions(other.width, other.height)} that are not those of the mask {mask.name} "
                f"({dimensions(mask.width, mask.height)}); run talud predict on the present stack again"
            )
    return grid


def _check_maker(model: Model, classes: DatasetReader) -> None:
    """That the model made the map, at its own threshold: an earlier model's map lies in the same place."""
    tags, contract = classes.tags(), model.contract
    made_by = tags.get("TALUD_WEIGHTS"), tags.get("TALUD_THRESHOLD"), tags.get("TALUD_PRECISION", "float32")
    unusual = tags.keys() & {"TALUD_HALO", "TALUD_TTA"}
    if made_by != (contract.origin.weights, f"{contract.measured.threshold:g}", contract.derived.precision) or unusual:
        raise MismatchError(
            f"{classes.name}: is not the map that {model.path.name} makes at its threshold of "
            f"{contract.measured.threshold:g}, with its exact halo and in one pass; "
            "run talud predict (or dvc repro) again"
        )


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


def _write_curve(path: Path, levels: ThresholdHistogram) -> None:
    with replacing(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["threshold", "precision", "recall", "f1"])
        for threshold, counts in zip(THRESHOLDS, levels.curve(), strict=True):
            scores = (counts.precision, counts.recall, counts.f1)
            writer.writerow([f"{threshold:.2f}", *(f"{score:.6f}" for score in scores)])
