"""Comparison of post-processing methods, chosen on validation blocks.

Each window is processed on its own: a block of the split, a patch of a stack of patches, or a large square of an area's
map. Objects are cut at the edges of windows.
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
from talud.data.stack_record import check_held_out
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
# Segmenting a window of this side needs about 1 GB of memory.
WINDOW_SIDE_PIXELS = 2048

# Differences in F1 up to this count as equal, as in `metrics.best_threshold`.
F1_TIE = 0.005

# Candidates of each method, mildest first: among equals the first is chosen.
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


# Type of `labelled_windows` and `mapped_windows`.
_Read = Callable[[Site, Sequence[Window], Model], Iterator[LabelledWindow]]


@dataclass(frozen=True, eq=False)
class StudyWindow:
    """Window that is post-processed.

    Attributes:
        probability: float32 (height, width), NaN where not mapped.
        truth: uint8 (height, width): 1 landslide, 0 background, 255 unknown.
        context: bands of the stack in the window.
    """

    probability: NDArray[np.float32]
    truth: NDArray[np.uint8]
    context: WindowContext


class MethodScores(BaseModel):
    """Scores of a method on one set of pixels."""

    model_config = ConfigDict(frozen=True)

    method: str
    scores: Scores
    difference: Difference | None = Field(
        description="F1 minus the F1 of the threshold alone; null for the threshold itself"
    )
    objects: ObjectCounts

    @computed_field  # type: ignore[prop-decorator]
    @property
    def object_f1(self) -> float:
        """F1 of objects (see `ObjectCounts`)."""
        return round(self.objects.f1, 6)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def false_alarms_per_km2(self) -> float:
        """False alarms per km² (see `ObjectCounts`)."""
        return round(self.objects.false_alarms_per_km2, 6)


class ChosenOptions(BaseModel):
    """Chosen parameters of a method, with their validation scores."""

    model_config = ConfigDict(frozen=True)

    options: Postprocessing
    validation_f1: float = Field(description="F1 of pixels on the validation blocks")
    validation_object_f1: float = Field(description="F1 of objects on the validation blocks")


class PostprocessingTable(BaseModel):
    """Results of all post-processing methods for a band set's model."""

    model_config = ConfigDict(frozen=True)

    band_set: str
    weights: str = Field(description="checksum of the model's weights")
    threshold: float
    detected_share: float = Field(
        description="least share of a landslide's mapped pixels that must be found for it to be detected"
    )
    chosen: dict[str, ChosenOptions]
    left_out: tuple[str, ...] = Field(description="methods that need a band which the stacks lack")
    places: dict[str, tuple[MethodScores, ...]]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        with atomic_replace(path) as scratch:
            scratch.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def compare_methods(project: Project, band_set: str, progress: Progress | None = None) -> PostprocessingTable:
    """Compare post-processing methods for a band set's model.

    Their parameters are chosen on the validation blocks. They are scored on the test blocks of all training areas
    together, and on each other labelled area. Writes evaluation/BAND_SET.postprocessing.json.

    Args:
        project: project with stacks and model.
        band_set: name of a band set of params.yaml.
        progress: callback that takes the windows done and all windows.

    Raises:
        StudyError: the current blocks differ from those of the model's training.
        SourceError: a stack or mask is missing or cannot be read.
        MismatchError: a stack does not fit the model's contract.
        ParamsError: there is no such band set, or params.yaml asks for a method whose band the stacks lack.
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
        site.name: (mapped_windows, [(site, site.windows(side=site.patch_side or WINDOW_SIDE_PIXELS))])
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


def choose_options(windows: Sequence[StudyWindow], threshold: float) -> dict[str, ChosenOptions]:
    """Choose the best candidate of each method, and a combination.

    Small objects hardly change the F1 of pixels, so candidates within `F1_TIE` of its maximum count as equal and the F1
    of objects decides. Methods that need a band which a window lacks are left out. `COMBINED` starts with the threshold
    alone and adds the methods one by one, best first, if they improve it by the same criterion.

    Args:
        windows: windows of the validation blocks, with the same pixel size.
        threshold: threshold of the model.
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
    chosen: Mapping[str, ChosenOptions],
    block: int,
    resamples: int,
    seed: int,
) -> tuple[MethodScores, ...]:
    """Score the chosen methods by pixels and by objects.

    Methods that need an absent band are left out.

    Args:
        windows: windows of one set of pixels, with the same pixel size.
        threshold: threshold of the model.
        chosen: method → parameters; the others are compared with `THRESHOLD_ONLY`.
        block: side of the bootstrap's blocks in pixels, from each window's corner.
        resamples: number of resamples.
        seed: seed of the random draws.
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
    """Running counts of a method, by block and by object."""

    blocks: list[Assessment] = field(default_factory=list)
    objects: ObjectCounts = field(default_factory=ObjectCounts)

    def add(self, mapped: NDArray[np.uint8], window: StudyWindow, block: int) -> None:
        self.blocks += [Assessment.of_class_map(window.truth[at], mapped[at]) for at in _blocks(mapped.shape, block)]
        self.objects += ObjectCounts.of(mapped, window.truth, window.context.pixel_area)

    @property
    def assessment(self) -> Assessment:
        return Assessment.total(self.blocks)


def _blocks(shape: tuple[int, ...], side: int) -> Iterator[tuple[slice, slice]]:
    """Yield the blocks of a window, row by row."""
    for row, column in itertools.product(range(0, shape[0], side), range(0, shape[1], side)):
        yield slice(row, row + side), slice(column, column + side)


def _evaluate_options(windows: Iterable[StudyWindow], threshold: float, options: Postprocessing) -> ChosenOptions:
    """Score options on all windows."""
    parts, objects = [], ObjectCounts()
    for window in windows:
        mapped = postprocess(window.probability, threshold, options, window.context)
        parts.append(Assessment.of_class_map(window.truth, mapped))
        objects += ObjectCounts.of(mapped, window.truth, window.context.pixel_area)
    return ChosenOptions(
        options=options,
        validation_f1=round(Assessment.total(parts).f1, 6),
        validation_object_f1=round(objects.f1, 6),
    )


def _best(choices: Sequence[ChosenOptions]) -> ChosenOptions:
    """Return the best choice by the criterion of `choose_options`."""
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
    """Yield windows of sites for post-processing."""
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
