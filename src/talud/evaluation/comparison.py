"""Models compared on the same pixels: those whose truth is known and that every one of them maps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talud.data.patches import Part
from talud.evaluation.outcome import NOT_MAPPED, at_threshold
from talud.evaluation.scoring import block_windows
from talud.grid import Grid
from talud.inference.prediction import predict, probabilities
from talud.inference.runtime import Model
from talud.metrics import LANDSLIDE, Confusion, confusion
from talud.project import Project
from talud.raster import BLOCK, open_raster

# The truth of a window, and what each model says there: 1 landslide, 0 background, 255 not mapped.
Sight = tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]


def compare_blocks(
    models: Sequence[Model], project: Project, areas: Iterable[str], part: Part
) -> tuple[Confusion, ...]:
    """Count each model's map against the masks, over the blocks of one part of the areas' split.

    Each block is read alone, so no pixel outside it helps; a pixel is landslide where its probability is at least
    the threshold of the model's contract. Pixels of unknown truth, and those that one of the models does not map, are
    in none of the counts: a model must gain nothing by leaving hard pixels out.

    Raises:
        SourceError: a stack or mask is missing or cannot be read.
        MismatchError: a stack does not fit a model's contract.
    """
    return _counts(len(models), (sight for area in areas for sight in _blocks(models, project, area, part)))


def compare_maps(models: Sequence[Model], project: Project, area: str) -> tuple[Confusion, ...]:
    """The same over the maps of a whole area, which are not kept.

    Raises:
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
    """
    return _counts(len(models), _maps(models, project, area))


def _counts(models: int, sights: Iterable[Sight]) -> tuple[Confusion, ...]:
    totals = [Confusion()] * models
    for truth, maps in sights:
        mapped = np.all([found != NOT_MAPPED for found in maps], axis=0)
        totals = [
            total + confusion(found == LANDSLIDE, truth, mapped) for total, found in zip(totals, maps, strict=True)
        ]
    return tuple(totals)


def _blocks(models: Sequence[Model], project: Project, area: str, part: Part) -> Iterator[Sight]:
    windows = block_windows(project, area, part)
    answers = (probabilities(model, project.stack(area), windows) for model in models)
    with open_raster(project.mask(area)) as truths:
        for window, *levels in zip(windows, *answers, strict=True):
            maps = [at_threshold(level, model.contract.threshold) for model, level in zip(models, levels, strict=True)]
            yield truths.read(1, window=window), maps


def _maps(models: Sequence[Model], project: Project, area: str) -> Iterator[Sight]:
    with tempfile.TemporaryDirectory(prefix="talud-") as folder, ExitStack() as opened:
        truths = opened.enter_context(open_raster(project.mask(area)))
        rasters = []
        for number, model in enumerate(models):
            out = Path(folder) / str(number)
            predict(model, project.stack(area), out)
            rasters.append(opened.enter_context(open_raster(out / "landslides.tif")))
        for window in Grid.of(truths).windows(BLOCK):
            yield truths.read(1, window=window), [raster.read(1, window=window) for raster in rasters]
