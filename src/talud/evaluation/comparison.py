"""Models compared on the same pixels: those whose truth is known and that every one of them maps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from talud.confusion_map import NOT_MAPPED, at_threshold
from talud.data.patches import Part, block_side
from talud.data.record import current_stack
from talud.engine.runtime import Model
from talud.evaluation.scoring import block_windows
from talud.grid import Grid
from talud.mapping.tiles import probabilities
from talud.metrics import LANDSLIDE, UNKNOWN, Confusion, confusion
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import open_raster

# The truth of a block, and what each model says there: 1 landslide, 0 background, 255 not mapped.
Sight = tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]


@dataclass(frozen=True, eq=False)
class Counts:
    """What the maps of several models came to, on the pixels whose truth is known and that every one of them maps.

    Attributes:
        blocks: int64 (models, blocks, 4): TP, FP, FN and TN of each model in each block that holds such a pixel.
        known: the pixels whose truth is known, mapped or not.
    """

    blocks: NDArray[np.int64]
    known: int

    @classmethod
    def of(cls, models: int, sights: Iterable[Sight]) -> Counts:
        """Count blocks one by one."""
        found, known = [], 0
        for truth, maps in sights:
            mapped = np.all([classes != NOT_MAPPED for classes in maps], axis=0)
            counts = [confusion(classes == LANDSLIDE, truth, mapped) for classes in maps]
            known += int(np.count_nonzero(truth != UNKNOWN))
            block = [(count.tp, count.fp, count.fn, count.tn) for count in counts]
            if any(block[0]):
                found.append(block)
        blocks = np.array(found, np.int64).reshape(-1, models, 4)
        return cls(np.ascontiguousarray(blocks.swapaxes(0, 1)), known)

    def __add__(self, other: Counts) -> Counts:
        return Counts(np.concatenate([self.blocks, other.blocks], axis=1), self.known + other.known)

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.blocks[0].sum())

    @property
    def totals(self) -> tuple[Confusion, ...]:
        """The counts of each model over all blocks."""
        return tuple(Confusion(*counts.tolist()) for counts in self.blocks.sum(axis=1))


def compare_blocks(models: Sequence[Model], project: Project, areas: Iterable[str], part: Part) -> Counts:
    """Count each model's map against the masks, over the blocks of one part of the areas' split.

    Each block is read alone, so no pixel outside it helps; a pixel is landslide where its probability is at least
    the threshold of the model's contract. Pixels of unknown truth, and those that one of the models does not map, are
    in none of the counts: a model must gain nothing by leaving hard pixels out.

    Raises:
        SourceError: a stack or mask is missing or cannot be read.
        MismatchError: a stack does not fit a model's contract.
    """
    return Counts.of(len(models), (sight for area in areas for sight in _blocks(models, project, area, part)))


def compare_maps(models: Sequence[Model], project: Project, area: str) -> Counts:
    """The same over the maps of a whole area, which are not kept, in blocks (see `block_side`).

    Raises:
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
    """
    with mapped(models, project, area) as (truths, maps):
        return count_maps(truths, maps, block_side(truths, project.params.split))


def count_maps(truths: DatasetReader, maps: Sequence[DatasetReader], block: int) -> Counts:
    """Count open class maps against the mask on their grid, in blocks of that many pixels a side."""
    windows = Grid.of(truths).windows(block)
    sights = ((truths.read(1, window=at), [each.read(1, window=at) for each in maps]) for at in windows)
    return Counts.of(len(maps), sights)


@contextmanager
def mapped(models: Sequence[Model], project: Project, area: str) -> Iterator[tuple[DatasetReader, list[DatasetReader]]]:
    """The mask of an area, and each model's class map of it, open; the maps go when the block ends.

    Raises:
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
    """
    with tempfile.TemporaryDirectory(prefix="talud-") as folder, ExitStack() as opened:
        truths = opened.enter_context(open_raster(project.mask(area)))
        maps = []
        for number, model in enumerate(models):
            out = Path(folder) / str(number)
            predict(model, current_stack(project, area), out)
            maps.append(opened.enter_context(open_raster(out / "landslides.tif")))
        yield truths, maps


def _blocks(models: Sequence[Model], project: Project, area: str, part: Part) -> Iterator[Sight]:
    windows = block_windows(project, area, part)
    answers = (probabilities(model, current_stack(project, area), windows) for model in models)
    with open_raster(project.mask(area)) as truths:
        for window, *levels in zip(windows, *answers, strict=True):
            maps = [
                at_threshold(level, model.contract.measured.threshold)
                for model, level in zip(models, levels, strict=True)
            ]
            yield truths.read(1, window=window), maps
