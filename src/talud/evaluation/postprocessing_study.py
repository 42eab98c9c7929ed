"""Scores of methods of post-processing, chosen on validation blocks, on test blocks and on other areas.

Everything goes window by window, and no window knows of another: blocks of the split, cells of a stack of patches
(independent images side by side), or large squares of an area's map, at whose seams objects are cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, computed_field
from rasterio.windows import Window

from talud.bands import Group, band_named
from talud.data.record import check_held_out
from talud.engine.runtime import Model
from talud.evaluation.bootstrap import Difference, f1_difference
from talud.evaluation.postprocessing import MIN_DETECTED_SHARE, ObjectCounts, WindowContext, postprocess
from talud.evaluation.results import Scores
from talud.evaluation.scores import labelled_sites
from talud.files import atomic_replace
from talud.grid import Grid
from talud.measurement.assessment import Assessment
from talud.measurement.sites import LabelledWindow, Site, labelled_windows, mapped_windows
from talud.params import Postprocessing
from talud.progress import Progress, tracked
from talud.project import Project
from talud.raster import open_raster

TEST_BLOCKS = "test blocks"
THRESHOLD_ONLY, COMBINED, CONFIGURED = "threshold", "together", "params.yaml"
WINDOW_SIDE_PIXELS = 2048  # pixels a side; segmenting one takes about a gigabyte

F1_TIE = 0.005  # the difference in F1 that decides nothing, as in `metrics.best_threshold`

# What is tried of each method, the mildest first: of equals the first is taken.
CANDIDATES: Mapping[str, Sequence[Postprocessing]] = {
    "hysteresis": [
        Postprocessing(hysteresis_low=low, hysteresis_high=high)
        for low, high in itertools.product((0.5, 0.4, 0.3, 0.2, 0.1, 0.05), (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99))
        if low < high
    ],
    "minimum mapping unit": [
        Postprocessing(minimum_mapping_unit=area) for area in (250, 500, 1_000, 2_000, 4_000, 8_000)
    ],
    "felzenszwalb": [
        Postprocessing(segments="felzenszwalb", segment_scale=scale, segment_weight=weight)
        for scale, weight in itertools.product((5, 20, 80, 320), (0.5, 1))
    ],
    "slic": [
        Postprocessing(segments="slic", segment_scale=scale, segment_weight=weight)
        for scale, weight in itertools.product((16, 32, 64, 128), (0.5, 1))
    ],
    "slope rule": [Postprocessing(slope_rule=degrees) for degrees in (2, 5, 8, 10, 15, 20)],
}


# Either `labelled_windows` or `mapped_windows`.
_Read = Callable[[Site, Sequence[Window], Model], Iterator[LabelledWindow]]


@dataclass(frozen=True, eq=False)
class StudyWindow:
    """A window that is post-processed alone.

    Attributes:
        probability: float32 (height, width), NaN where not mapped.
        truth: uint8 (height, width): 1 landslide, 0 background, 255 unknown.
        context: bands of the stack there.
    """

    probability: NDArray[np.float32]
    truth: NDArray[np.uint8]
    context: WindowContext


class MethodScores(BaseModel):
    """Scores of one method of post-processing in one place."""

    model_config = ConfigDict(frozen=True)

    method: str
    scores: Scores
    difference: Difference | None = Field(description="of its F1 from that of the threshold alone; None for that")
    objects: ObjectCounts

    @computed_field  # type: ignore[prop-decorator]
    @property
    def object_f1(self) -> float:
        """See `ObjectCounts`."""
        return round(self.objects.f1, 6)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def false_alarms_per_km2(self) -> float:
        """See `ObjectCounts`."""
        return round(self.objects.false_alarms_per_km2, 6)


class Choice(BaseModel):
    """The parameters of a method, and what they come to on the validation blocks."""

    model_config = ConfigDict(frozen=True)

    options: Postprocessing
    validation_f1: float = Field(description="of pixels")
    validation_object_f1: float = Field(description="see `ObjectCounts`")


class PostprocessingTable(BaseModel):
    """The ways of post-processing that were tried with a band set's model."""

    model_config = ConfigDict(frozen=True)

    band_set: str
    weights: str = Field(description="digest of those of the model")
    threshold: float
    detected_share: float = Field(description="of a landslide's mapped pixels, the least that makes it detected")
    chosen: dict[str, Choice]
    left_out: tuple[str, ...] = Field(description="methods that lack a band")
    places: dict[str, tuple[MethodScores, ...]]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        with atomic_replace(path) as scratch:
            scratch.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def compare_methods(project: Project, band_set: str, progress: Progress | None = None) -> PostprocessingTable:
    """Choose the parameters of each method on the validation blocks, and score them on all that was held out.

    Places are the test blocks of the training areas, together, and each other labelled area. Writes
    evaluation/BAND_SET.postprocessing.json.

    Args:
        project: with stacks and model in place.
        band_set: of params.yaml.
        progress: told, after each window, how many are done and how many there are.

    Raises:
        StudyError: the present blocks are not those that the model's training left out.
        SourceError: a stack or mask is missing or cannot be read.
        MismatchError: a stack does not fit the model's contract.
        ParamsError: no such band set, or params.yaml asks for post-processing that the stacks have no band for.
    """
    project.params.band_set(band_set)
    model = Model.load(project.model(band_set))
    check_held_out(model.contract, model.path, project)
    training = project.params.areas_with_role("training")
    sites = [Site.of(project, area) for area in training]
    validation = [(site, site.windows("validation")) for site in sites]
    held_out: dict[str, tuple[_Read, list[tuple[Site, list[Window]]]]] = {
        TEST_BLOCKS: (labelled_windows, [(site, site.windows("test")) for site in sites])
    } | {
        site.name: (mapped_windows, [(site, site.windows(side=site.patch or WINDOW_SIDE_PIXELS))])
        for site in labelled_sites(project)
        if site.name not in training
    }
    total = sum(len(windows) for _, windows in chain(validation, *(parts for _, parts in held_out.values())))
    windows = list(tracked(_study_windows(model, labelled_windows, validation), progress, total))
    threshold = model.contract.measured.threshold
    chosen = choose_options(windows, threshold)
    if project.params.postprocessing.changes:
        chosen[CONFIGURED] = _evaluate_options(windows, threshold, project.params.postprocessing)
    block, resamples = project.params.split.block, project.params.promotion.resamples
    places, done = {}, len(windows)
    for place, (read, parts) in held_out.items():
        found = tracked(_study_windows(model, read, parts), progress, total, done)
        places[place] = score_methods(found, threshold, chosen, block, resamples, project.params.seed)
        done += sum(len(windows) for _, windows in parts)
    table = PostprocessingTable(
        band_set=band_set,
        weights=model.contract.origin.weights,
        threshold=threshold,
        detected_share=MIN_DETECTED_SHARE,
        chosen=chosen,
        left_out=tuple(method for method in CANDIDATES if method not in chosen),
        places=places,
    )
    table.write(project.postprocessing(band_set))
    return table


def choose_options(windows: Sequence[StudyWindow], threshold: float) -> dict[str, Choice]:
    """Choose the best candidate of each method on all windows, and the best combination.

    The F1 of pixels hardly sees small objects, so its exact maximum sits anywhere by chance: among candidates within
    `F1_TIE` of it, the F1 of objects decides. A method that needs a band which a window lacks is left out. `COMBINED`
    begins with the threshold alone and takes one method after the other, the best first, where that gains by the same
    measure.

    Args:
        windows: of the validation blocks; pixels of the same size.
        threshold: of the model.
    """
    plain = _evaluate_options(windows, threshold, Postprocessing())
    chosen = {THRESHOLD_ONLY: plain}
    for method, candidates in CANDIDATES.items():
        if all(_usable(candidates[0], window.context) for window in windows):
            chosen[method] = _best([_evaluate_options(windows, threshold, each) for each in candidates])
    together, tried = plain, list(chosen.values())
    for choice in sorted(chosen.values(), key=lambda choice: -choice.validation_f1):
        ours, theirs = together.options.changes, choice.options.changes
        if theirs and not ours.keys() & theirs.keys():
            joint = _evaluate_options(windows, threshold, Postprocessing.model_validate(ours | theirs))
            tried.append(joint)
            least = max(each.validation_f1 for each in tried) - F1_TIE
            gains = joint.validation_object_f1 > together.validation_object_f1 or together.validation_f1 < least
            together = joint if gains and joint.validation_f1 >= least else together
    return chosen | {COMBINED: together}


def score_methods(
    windows: Iterable[StudyWindow],
    threshold: float,
    chosen: Mapping[str, Choice],
    block: int,
    resamples: int,
    seed: int,
) -> tuple[MethodScores, ...]:
    """Score the chosen methods by pixels and by objects, without those that need an absent band.

    Args:
        windows: of one place; pixels of the same size.
        threshold: of the model.
        chosen: by method; that of `THRESHOLD_ONLY` is what the others are compared with.
        block: pixels a side of the blocks, counted from each window's corner, that the bootstrap draws.
        resamples: of the blocks.
        seed: of the draws.
    """
    found = {method: _MethodCounts() for method in chosen}
    for window in windows:
        found = {method: one for method, one in found.items() if _usable(chosen[method].options, window.context)}
        for method, one in found.items():
            mapped = postprocess(window.probability, threshold, chosen[method].options, window.context)
            one.add(mapped, window, block)
    plain = found[THRESHOLD_ONLY].assessment.block_counts
    return tuple(
        MethodScores(
            method=method,
            scores=Scores.of(one.assessment),
            difference=None
            if method == THRESHOLD_ONLY
            else f1_difference(one.assessment.block_counts, plain, resamples, seed),
            objects=one.objects,
        )
        for method, one in found.items()
    )


@dataclass
class _MethodCounts:
    """Counts of one method so far, by block and by object."""

    blocks: list[Assessment] = field(default_factory=list)
    objects: ObjectCounts = field(default_factory=ObjectCounts)

    def add(self, mapped: NDArray[np.uint8], window: StudyWindow, block: int) -> None:
        self.blocks += [Assessment.of_class_map(window.truth[at], mapped[at]) for at in _blocks(mapped.shape, block)]
        self.objects += ObjectCounts.of(mapped, window.truth, window.context.pixel_area)

    @property
    def assessment(self) -> Assessment:
        return Assessment.total(self.blocks)


def _blocks(shape: tuple[int, ...], side: int) -> Iterator[tuple[slice, slice]]:
    """Squares of a window, row by row."""
    for row, column in itertools.product(range(0, shape[0], side), range(0, shape[1], side)):
        yield slice(row, row + side), slice(column, column + side)


def _evaluate_options(windows: Iterable[StudyWindow], threshold: float, options: Postprocessing) -> Choice:
    """Score options on all windows."""
    parts, objects = [], ObjectCounts()
    for window in windows:
        mapped = postprocess(window.probability, threshold, options, window.context)
        parts.append(Assessment.of_class_map(window.truth, mapped))
        objects += ObjectCounts.of(mapped, window.truth, window.context.pixel_area)
    return Choice(
        options=options,
        validation_f1=round(Assessment.total(parts).f1, 6),
        validation_object_f1=round(objects.f1, 6),
    )


def _best(choices: Sequence[Choice]) -> Choice:
    """Return the choice of the highest F1 of objects among those within `F1_TIE` of the highest F1."""
    least = max(choice.validation_f1 for choice in choices) - F1_TIE
    return max(
        (choice for choice in choices if choice.validation_f1 >= least), key=lambda choice: choice.validation_object_f1
    )


def _usable(options: Postprocessing, context: WindowContext) -> bool:
    """Check if the context has the bands that the options need."""
    return (options.segments == "none" or context.image is not None) and (
        not options.slope_rule or context.slope is not None
    )


def _study_windows(model: Model, read: _Read, parts: Iterable[tuple[Site, Sequence[Window]]]) -> Iterator[StudyWindow]:
    """Yield windows of sites with the bands of the stack that post-processing reads."""
    for site, windows in parts:
        for window in read(site, windows, model):
            yield StudyWindow(window.probabilities[0], window.truth, _context(site, window.window))


def _context(site: Site, window: Window) -> WindowContext:
    with open_raster(site.stack) as stack:
        names = stack.descriptions
        optical = [name for name in names if name and band_named(name).group is Group.OPTICAL]

        def read(bands: Sequence[str]) -> NDArray[np.float32]:
            numbers = [names.index(name) + 1 for name in bands]
            return np.asarray(stack.read(numbers, window=window, out_dtype="float32"))

        return WindowContext(
            pixel_area=Grid.of(stack).pixel_area,
            image=read(optical) if optical else None,
            slope=read(["slope"])[0] if "slope" in names else None,
        )
