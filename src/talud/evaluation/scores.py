"""Scores of a model on labelled areas and folders of patches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from talud.contract import FineTuning
from talud.data.stack_record import check_held_out
from talud.engine.runtime import Model
from talud.errors import StudyError, TaludWarning
from talud.evaluation.bootstrap import CONFIDENCE_LEVEL, FEW_BLOCKS, Interval, score_intervals
from talud.evaluation.map_scores import adapted_maps, map_windows, scored_map
from talud.evaluation.results import ScoreTable, write_results
from talud.files import md5
from talud.measurement.assessment import Assessment
from talud.measurement.sites import (
    FolderSite,
    LabelledWindow,
    Site,
    assess,
    labelled_windows,
    mapped_windows,
)
from talud.metrics import UNKNOWN, lack_of_skill
from talud.progress import Progress, tracked
from talud.project import Project
from talud.text import counted

BOOTSTRAP_RESAMPLES = 2000
# Fixed, so that the same pixels give the same interval on every machine.
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class ScoredModel:
    """Model whose maps are scored.

    Attributes:
        title: name and version for display.
        name: name of the model.
        version: version in the registry; empty if it is not registered.
        weights: checksum of the weights; empty for a model without any.
        threshold: least probability that is mapped as landslide.
        network: name of the network; empty for a model that is none.
    """

    title: str
    name: str
    version: str
    weights: str
    threshold: float
    network: str = ""

    @classmethod
    def of(cls, model: Model) -> ScoredModel:
        """Describe a model at its own threshold."""
        origin, threshold = model.contract.origin, model.contract.measured.threshold
        return cls(model.title, model.name, model.version, origin.weights, threshold, origin.network_name)


@dataclass(frozen=True)
class SiteScores:
    """Scores of a model on a site, with intervals.

    Attributes:
        model: scored model.
        source: name of the site: an area or a folder.
        pixels: description of the pixels that were counted.
        unit: unit of the bootstrap: patches or blocks.
        assessment: counts of the site.
        scores: interval of each of `talud.metrics.SCORES`, over the mapped pixels.
        notes: remarks that a reader needs in order to judge the scores.
    """

    model: ScoredModel
    source: str
    pixels: str
    unit: str
    assessment: Assessment
    scores: dict[str, Interval]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, model: ScoredModel, site: Site | FolderSite, pixels: str, assessment: Assessment, notes: Iterable[str] = ()
    ) -> SiteScores:
        """Bootstrap the intervals over the blocks of an assessment.

        Raises:
            StudyError: no pixel is both mapped and of known truth.
        """
        blocks = assessment.block_counts
        if not len(blocks):
            raise StudyError(f"{site.name}: no pixel is both mapped and of known truth, so nothing can be scored")
        remarks = (
            _few_blocks_note(len(blocks), site.unit),
            assessment.single_class_warning,
            lack_of_skill(assessment.confusion),
        )
        return cls(
            model,
            site.name,
            pixels,
            site.unit,
            assessment,
            score_intervals(blocks, BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED),
            (*notes, *filter(None, remarks)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON output."""
        return {
            "model": {name: getattr(self.model, name) for name in ("name", "version", "weights", "network")},
            "source": self.source,
            "pixels": self.pixels,
            "threshold": self.model.threshold,
            self.unit: self.assessment.windows,
            **asdict(self.assessment.confusion),
            **{name: round(score.estimate, 6) for name, score in self.scores.items()},
            "intervals": {name: [round(score.low, 6), round(score.high, 6)] for name, score in self.scores.items()},
            "not_mapped_pixels": self.assessment.not_mapped,
            "not_mapped_landslide_pixels": self.assessment.not_mapped_landslide,
            "not_mapped_share": round(self.assessment.not_mapped_share, 6),
            "bootstrap": {
                "level": CONFIDENCE_LEVEL,
                "drawn": self.unit,
                "resamples": BOOTSTRAP_RESAMPLES,
                "seed": BOOTSTRAP_SEED,
            },
            "notes": list(self.notes),
        }


def _few_blocks_note(blocks: int, unit: str) -> str:
    """Return a note if there are too few blocks for the bootstrap, else empty."""
    if blocks >= FEW_BLOCKS:
        return ""
    if blocks == 1:
        return f"only 1 of the {unit} is scored, so the intervals are unknown"
    return f"only {blocks} {unit}, so the intervals are too narrow"


def describe_pixels(site: Site, *, test: bool) -> str:
    """Describe the pixels of a site that are scored."""
    if test:
        return f"the test {site.unit}"
    return "all patches" if site.patch_side else "the whole area"


def assess_area(model: Model, project: Project, area: str, progress: Progress | None = None) -> SiteScores:
    """Score a model on an area.

    If the model was trained on the area, only its test blocks are scored. Pixels on which it was fine-tuned count as
    unknown. Test blocks, and the patches of a patch data set, are read without their surroundings; otherwise the whole
    area is mapped into a temporary folder.

    Args:
        model: model to score.
        project: project with the area.
        area: name of a labelled area.
        progress: callback that takes the windows done and all windows.

    Raises:
        ParamsError: there is no such area.
        StudyError: the current test blocks differ from those of the model's training, the patches of its fine-tuning
            have changed, or no pixel can be scored.
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit the model's contract.
    """
    role, contract = project.params.area(area).role, model.contract
    trained = area in contract.origin.areas
    if trained:
        check_held_out(contract, model.path, project)
    site = Site.of(project, area)
    pixels = describe_pixels(site, test=trained)
    notes = [f"the model was trained on {area}, so only {pixels} are scored"] if trained else []
    if role == "training" and not trained:
        notes.append(f"{area} is a training area, but not of this model, so all of it is scored")
    windows = site.windows("test" if trained else None)
    read = labelled_windows if trained or site.patch_side else mapped_windows
    found = read(site, windows, model)
    tuned = contract.derived.finetuned
    if tuned and tuned.area == area:
        notes += _fine_tuning_notes(tuned, model, site)
        found = _without_learned_cells(found, tuned)
    (assessment,) = assess(tracked(found, progress, len(windows)), [contract.measured.threshold])
    return SiteScores.of(ScoredModel.of(model), site, pixels, assessment, notes)


def _fine_tuning_notes(tuned: FineTuning, model: Model, site: Site) -> list[str]:
    """Return notes on patches of fine-tuning that are not scored.

    Raises:
        StudyError: the patches or masks of a patch data set have changed.
    """
    notes = [
        f"the model was fine-tuned on {counted(tuned.patches, 'patch', 'patches')} of {tuned.area}, which are left out"
    ]
    if md5(site.mask) != tuned.labels:
        if site.patch_side:
            raise StudyError(
                f"{model.path}: the patches or masks of {tuned.area} have changed since it was fine-tuned on them; run "
                "talud finetune again"
            )
        notes.append(f"the labels of {tuned.area} have changed since; the same rows and columns are left out")
    return notes


def _without_learned_cells(windows: Iterable[LabelledWindow], tuned: FineTuning) -> Iterator[LabelledWindow]:
    """Yield windows with the cells of fine-tuning marked as unknown."""
    for each in windows:
        truth = each.truth.copy()
        for row, column in tuned.cells:
            top, first = row - int(each.window.row_off), column - int(each.window.col_off)
            rows, columns = (slice(max(start, 0), max(start + tuned.side, 0)) for start in (top, first))
            truth[rows, columns] = UNKNOWN
        yield replace(each, truth=truth)


def assess_folder(
    model: Model, folder: Path, bands: Mapping[str, int] | None = None, progress: Progress | None = None
) -> SiteScores:
    """Score a model on a folder of patches.

    Args:
        model: model to score.
        folder: folder with `images` and `masks` (see `talud.data.patch_folder`); every image needs a mask.
        bands: band name → channel number in an image, from 1. Default: band names of TIFF images; else red, green and
            blue for three channels.
        progress: callback that takes the patches done and all patches.

    Raises:
        ParamsError: a channel number is less than 1.
        SourceError: images or masks are missing, cannot be read, or do not fit together.
        MismatchError: the images lack a band of the contract, or their values are implausible for it.
        StudyError: no pixel can be scored.
        ModelError: the network fails.
    """
    site = FolderSite.find(folder, model.contract, bands)
    windows = site.windows()
    found = tracked(labelled_windows(site, windows, model), progress, len(windows))
    (assessment,) = assess(found, [model.contract.measured.threshold])
    tuned = model.contract.derived.finetuned
    patches = counted(tuned.patches, "patch", "patches") if tuned else ""
    notes = (
        [f"the model was fine-tuned on {patches} of {tuned.area}; any of them in this folder are scored too"]
        if tuned
        else []
    )
    return SiteScores.of(ScoredModel.of(model), site, "all patches", assessment, notes)


def evaluate(project: Project, band_set: str, progress: Progress | None = None) -> ScoreTable:
    """Score a band set's model on all labelled areas of a project.

    Training areas are scored on their test blocks, other labelled areas on their maps, including those of adapted
    models. Writes the score table, its metrics for DVC, curves of scores over the threshold (test blocks and each
    area), and the confusion map of every labelled area that has been mapped, including training areas.

    Args:
        project: project with stacks, model and maps.
        band_set: name of a band set of params.yaml.
        progress: callback that takes the windows done and all windows.

    Raises:
        StudyError: a gate or transfer area with an inventory has no map, or the current test blocks differ from those
            of the model's training.
        MismatchError: a map has another grid than its area's mask, or was made by another model or threshold.
        SourceError: a stack, mask or map is missing or cannot be read.
    """
    project.params.band_set(band_set)
    model = Model.load(project.model(band_set))
    check_held_out(model.contract, model.path, project)
    training = project.params.areas_with_role("training")
    maps = [(site, map_windows(project, band_set, site)) for site in labelled_sites(project)]
    blocks = [(site, site.windows("test")) for site in (Site.of(project, area) for area in training)]
    adapted = adapted_maps(model, project, band_set, [site for site, _ in maps])
    total, done = sum(len(windows) for _, windows in blocks + maps), 0
    total += sum(len(windows) for _, _, windows in adapted)
    tests: dict[str, Assessment] = {}
    areas: dict[str, Assessment] = {}
    areas_adapted: dict[str, Assessment] = {}
    for site, windows in blocks:
        found = tracked(labelled_windows(site, windows, model), progress, total, done)
        (tests[site.name],) = assess(found, [model.contract.measured.threshold])
        done += len(windows)
    for site, windows in maps:
        if windows:
            outcomes = scored_map(model, project, band_set, site, windows)
            areas[site.name] = Assessment.total(tracked(outcomes, progress, total, done))
            done += len(windows)
    for site, other, windows in adapted:
        outcomes = scored_map(other, project, band_set, site, windows)
        areas_adapted[site.name] = Assessment.total(tracked(outcomes, progress, total, done))
        done += len(windows)
    for name, assessment in (*tests.items(), *areas.items()):
        if assessment.single_class_warning:
            warnings.warn(f"{name}: {assessment.single_class_warning}", TaludWarning, stacklevel=2)
    areas = {name: one for name, one in areas.items() if name not in training}
    return write_results(project, band_set, model, tests, areas, areas_adapted)


def labelled_sites(project: Project) -> list[Site]:
    """Return the labelled sites of a project."""
    sites = [Site.of(project, area) for area in project.params.areas]
    return [site for site in sites if site.labelled]
