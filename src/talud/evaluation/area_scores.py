"""Where the truth is known, an area or a patch folder, and what a model comes to there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rasterio.windows import Window

from talud.confusion_map import at_threshold
from talud.contract import FineTuning
from talud.data.held_out import check_held_out
from talud.data.record import current_stack
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation.assessment import Assessment, Sight, Subject, Unit
from talud.evaluation.comparison import mapped
from talud.evaluation.scoring import block_windows
from talud.files import md5
from talud.grid import Grid
from talud.mapping.tiles import probabilities
from talud.metrics import UNKNOWN
from talud.progress import Progress
from talud.project import Project
from talud.raster import open_raster, patch_side
from talud.text import counted


@dataclass(frozen=True)
class Place:
    """Pixels of an area, in units that the bootstrap draws.

    Attributes:
        area: its name.
        pixels: which of its pixels these are, in words.
        unit: what its windows are.
        windows: of the stack.
        alone: whether each window is read alone, so that nothing outside it helps.
    """

    area: str
    pixels: str
    unit: Unit
    windows: Sequence[Window]
    alone: bool


def place(project: Project, area: str, *, test: bool) -> Place:
    """The test blocks of an area, or all of it.

    Raises:
        SourceError: its stack or mask is missing or cannot be read.
        StudyError: it cannot be split.
    """
    with open_raster(current_stack(project, area)) as stack:
        side, grid = patch_side(stack), Grid.of(stack)
    unit: Unit = "patches" if side else "blocks"
    if test:
        return Place(area, f"the test {unit}", unit, block_windows(project, area, "test"), alone=True)
    whole = "all patches" if side else "the whole area"
    return Place(area, whole, unit, grid.windows(side or project.params.split.block), alone=side is not None)


def assess_area(model: Model, project: Project, area: str, progress: Progress | None = None) -> Assessment:
    """Score a model on an area: on its test blocks where the model was trained on it, else on all of it.

    Pixels of the area that the model was fine-tuned on count as unknown. Test blocks, and the patches of a patch data
    set, are read alone; else the whole area is mapped, and the map not kept.

    Raises:
        ParamsError: no such area.
        StudyError: the present test blocks are not those that the model's training left out, nobody knows any more
            which patches it was fine-tuned on, or no pixel can be scored.
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit the model's contract.
    """
    role = project.params.area(area).role
    trained = area in model.contract.origin.areas
    if trained:
        check_held_out(model.contract, model.path, project)
    where = place(project, area, test=trained)
    notes = [f"trained on {area}, so that {where.pixels} alone count"] if trained else []
    if role == "training" and not trained:
        notes.append(f"{area} is a training area, but not of this model, so that all of it counts")
    tuned = model.contract.derived.finetuned
    sights = _sights(model, project, where)
    if tuned and tuned.area == area:
        notes += _tuning_notes(tuned, model, project, where)
        sights = _untaught(sights, where, tuned)
    sights = told(sights, len(where.windows), progress)
    return Assessment.of(Subject.of(model), area, where.pixels, where.unit, sights, notes)


def _tuning_notes(tuned: FineTuning, model: Model, project: Project, where: Place) -> list[str]:
    """What to say of the patches that are left out.

    Raises:
        StudyError: the patches of a patch data set may lie elsewhere now.
    """
    notes = [f"fine-tuned on {counted(tuned.patches, 'patch', 'patches')} of {tuned.area}, which are left out"]
    if md5(project.mask(tuned.area)) != tuned.labels:
        if where.unit == "patches":
            raise StudyError(
                f"{model.path}: was fine-tuned on {tuned.area} before its patches or masks changed, so nobody knows "
                "which of them it has seen; run talud finetune again"
            )
        notes.append(
            f"the labels of {tuned.area} have changed since: left out is what lies in the same rows and columns"
        )
    return notes


def _untaught(sights: Iterable[Sight], where: Place, tuned: FineTuning) -> Iterator[Sight]:
    """The sights, in which the truth is unknown where the model was fine-tuned on it."""
    for window, (truth, classes) in zip(where.windows, sights, strict=True):
        left = truth.copy()
        for row, column in tuned.cells:
            top, first = row - int(window.row_off), column - int(window.col_off)
            rows, columns = (slice(max(start, 0), max(start + tuned.side, 0)) for start in (top, first))
            left[rows, columns] = UNKNOWN
        yield left, classes


def told(sights: Iterable[Sight], total: int, progress: Progress | None) -> Iterator[Sight]:
    """The sights, of which each is told to `progress` when it has been dealt with."""
    for done, sight in enumerate(sights, start=1):
        yield sight
        if progress:
            progress(done, total)


def _sights(model: Model, project: Project, where: Place) -> Iterator[Sight]:
    if not where.alone:
        with mapped([model], project, where.area) as (truths, (classes,)):
            for window in where.windows:
                yield truths.read(1, window=window), classes.read(1, window=window)
        return
    levels = probabilities(model, current_stack(project, where.area), where.windows)
    with open_raster(project.mask(where.area)) as truths:
        for window, probability in zip(where.windows, levels, strict=True):
            yield truths.read(1, window=window), at_threshold(probability, model.contract.measured.threshold)
