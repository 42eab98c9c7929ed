"""Result files of a band set: scores, trials and threshold curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from talud.contract import Contract
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.files import atomic_replace
from talud.measurement.assessment import Assessment
from talud.metrics import CALIBRATION_BINS, THRESHOLDS, Confusion, ThresholdHistogram, lack_of_skill
from talud.params.networks import PLAIN_UNET
from talud.products.adaptation_record import AdaptationRecord
from talud.project import Project
from talud.text import duration

# Bins of probabilities with fewer pixels are not drawn, because their landslide share is uncertain.
MIN_BIN_PIXELS = 100
_Model = TypeVar("_Model", bound=BaseModel)


class Scores(BaseModel):
    """Counts and scores of a set of pixels.

    The scores cover the mapped pixels; pixels that are not mapped are counted separately.
    """

    model_config = ConfigDict(frozen=True)

    role: str | None = Field(None, description="role of the area, if a whole area was scored")
    tp: int
    fp: int
    fn: int
    tn: int
    precision: float
    recall: float
    f1: float
    iou: float
    mcc: float = Field(description="Matthews' correlation coefficient")
    not_mapped_pixels: int = Field(description="pixels of known truth that are not mapped, under cloud for example")
    not_mapped_landslide_pixels: int
    not_mapped_share: float = Field(description="share of the pixels of known truth that is not mapped")

    @classmethod
    def of(cls, assessment: Assessment, role: str | None = None) -> Self:
        """Return an assessment's scores, rounded to six decimals."""
        counts = assessment.confusion
        return cls(
            role=role,
            tp=counts.tp,
            fp=counts.fp,
            fn=counts.fn,
            tn=counts.tn,
            **{name: round(score, 6) for name, score in counts.scores().items()},
            not_mapped_pixels=assessment.not_mapped,
            not_mapped_landslide_pixels=assessment.not_mapped_landslide,
            not_mapped_share=round(assessment.not_mapped_share, 6),
        )

    @property
    def assessment(self) -> Assessment:
        """Counts as the assessment of one window."""
        counts = Confusion(self.tp, self.fp, self.fn, self.tn)
        blocks = (counts,) if counts.pixels else ()
        return Assessment(blocks, 1, self.not_mapped_pixels, self.not_mapped_landslide_pixels)


class Reliability(BaseModel):
    """Content of a reliability diagram, with the calibration error.

    It covers the mapped pixels of known truth.
    """

    model_config = ConfigDict(frozen=True)

    expected_calibration_error: float = Field(ge=0, le=1)
    pixels: tuple[int, ...] = Field(description=f"pixels by probability, in {CALIBRATION_BINS} equal bins from 0 to 1")
    landslide_pixels: tuple[int, ...] = Field(description="landslide pixels in each bin")
    mean_probability: tuple[float | None, ...] = Field(
        description="mean probability of each bin; null for an empty bin"
    )

    @classmethod
    def of(cls, histogram: ThresholdHistogram) -> Self:
        """Return a histogram's reliability, rounded to six decimals."""
        bins = histogram.bins()
        means = [
            round(float(total / pixels), 6) if pixels else None
            for total, pixels in zip(bins.probability, bins.pixels, strict=True)
        ]
        return cls(
            expected_calibration_error=round(bins.calibration_error, 6),
            pixels=tuple(bins.pixels.tolist()),
            landslide_pixels=tuple(bins.landslide.tolist()),
            mean_probability=tuple(means),
        )

    def points(self, least: int = MIN_BIN_PIXELS) -> list[tuple[float, float]]:
        """Return mean probability and landslide share of each bin.

        Args:
            least: least number of pixels; bins with fewer are left out.
        """
        rows = zip(self.mean_probability, self.landslide_pixels, self.pixels, strict=True)
        return [(mean, slides / pixels) for mean, slides, pixels in rows if mean is not None and pixels >= least]


class ScoreTable(BaseModel):
    """Scores of a band set's model.

    `test` holds the test blocks of each training area, `areas` the maps of the other labelled areas.
    """

    model_config = ConfigDict(frozen=True)

    band_set: str
    weights: str = Field("", description="checksum of the weights that were scored")
    network: str = Field("", description="name of the network that was scored; empty in older files")
    threshold: float
    test: dict[str, Scores]
    areas: dict[str, Scores]
    adapted: dict[str, Scores] = Field(
        {}, description="scores of the maps of adapted models, by area; empty if no area was adapted to"
    )
    reliability: dict[str, Reliability] = Field(
        {}, description="reliability on all test blocks together (test) and on each area; empty in older files"
    )

    @property
    def test_assessment(self) -> Assessment:
        """Counts of the test blocks of all training areas."""
        return Assessment.total(scores.assessment for scores in self.test.values())

    def rows(self) -> list[tuple[str, Scores]]:
        """Return a description and the scores of each set of pixels."""
        test = [(f"{area}, test blocks", scores) for area, scores in self.test.items()]
        maps = [(f"{area}, {scores.role} map", scores) for area, scores in self.areas.items()]
        return test + maps + [(f"{area}, adapted map", scores) for area, scores in self.adapted.items()]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        with atomic_replace(path) as scratch:
            scratch.write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")

    def write_metrics(self, path: Path) -> None:
        """Write precision, recall and F1 as JSON for DVC.

        They cover all test blocks together, and each area.
        """
        confusions = {area: scores.assessment.confusion for area, scores in self.areas.items()}
        metrics = {
            "test": _metrics(self.test_assessment.confusion),
            "areas": {area: _metrics(counts) for area, counts in confusions.items()},
        }
        if self.adapted:
            metrics["adapted"] = {area: _metrics(one.assessment.confusion) for area, one in self.adapted.items()}
        with atomic_replace(path) as scratch:
            scratch.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a score table.

        Raises:
            StudyError: the file is missing or damaged.
        """
        return read_table(cls, path, "talud evaluate")


def _metrics(counts: Confusion) -> dict[str, float]:
    return {name: round(counts.scores()[name], 6) for name in ("f1", "precision", "recall")}


class Trial(BaseModel):
    """Trial of a study."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    name: str
    filters: int
    learning_rate: float
    batch_size: int
    epochs: int
    patience: int | None = None
    training_seed: int | None = None
    network: str = PLAIN_UNET
    best_epoch: int = Field(description="epoch of the highest validation F1, whose weights were kept")
    seconds: float
    parameters: int = Field(description="number of weights of the network")
    scores: dict[str, float] = Field(
        description="precision, recall, f1 and iou on the validation blocks at threshold 0.5, before calibration"
    )


class FailedTrial(BaseModel):
    """Failed trial of a study."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    reason: str


class Trials(BaseModel):
    """Trials of a study, with the best one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    band_set: str
    search: str
    data_version: str
    seed: int
    parent_run_id: str = Field(description="MLflow run of the study")
    best: str = Field(description="MLflow run of the best trial")
    trials: tuple[Trial, ...]
    failed: tuple[FailedTrial, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a trials table.

        Raises:
            StudyError: the file is missing or damaged, or has no best trial.
        """
        table = read_table(cls, path, "talud train")
        if table.best not in {trial.run_id for trial in table.trials}:
            raise StudyError(f"{path}: has no trial of the best run '{table.best}'; run talud train again")
        return table

    @property
    def best_trial(self) -> Trial:
        """Best trial, whose model was exported."""
        return next(trial for trial in self.trials if trial.run_id == self.best)

    @property
    def total_duration(self) -> str:
        """Total duration of all trials as text."""
        seconds = sum(trial.seconds for trial in self.trials)
        return duration(seconds)

    @property
    def ranked(self) -> list[Trial]:
        """Trials by validation F1, highest first."""
        return sorted(self.trials, key=lambda trial: -trial.scores["f1"])


@dataclass(frozen=True)
class BandSetResult:
    """Results of a band set.

    Attributes:
        contract: contract of its model.
        trials: trials of its study.
        scores: scores of its model.
        curves: "test" or an area's name → rows of threshold, precision, recall and F1.
        registered: name and version of the registered model; empty if it is not registered.
        adaptations: record of each requested adaptation, by area.
    """

    contract: Contract
    trials: Trials
    scores: ScoreTable
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    registered: str = ""
    adaptations: Mapping[str, AdaptationRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, project: Project, band_set: str) -> Self:
        """Read the results of a band set.

        Raises:
            StudyError: scores, trials or curves are missing or damaged.
            ModelError: the model cannot be opened.
        """
        scores = ScoreTable.read(project.scores(band_set))
        contract = Model.load(project.model(band_set)).contract
        return cls(
            contract,
            Trials.read(project.trials(band_set)),
            scores,
            {part: _read_curve(project.curve(band_set, part)) for part in ("test", *scores.areas)},
            _registered(project.registration(band_set), contract),
            AdaptationRecord.read_all(project, band_set),
        )

    @property
    def name(self) -> str:
        """Name of the band set."""
        return self.scores.band_set

    @property
    def test(self) -> Confusion:
        """Counts over the test blocks of all training areas."""
        return self.scores.test_assessment.confusion

    def lack_of_skill(self, part: str) -> str:
        """Return a warning of a lack of skill, else an empty text.

        Args:
            part: name of an area, or `test` for the test blocks.
        """
        return lack_of_skill(self.test if part == "test" else self.scores.areas[part].assessment.confusion)

    def f1_loss(self, area: str) -> float:
        """Return the relative loss of F1 in an area.

        The reference is the F1 of the test blocks. If that is 0, the loss is 0.
        """
        home = self.test.f1
        return 1 - self.scores.areas[area].assessment.confusion.f1 / home if home else 0.0


def _registered(path: Path, contract: Contract) -> str:
    """Read the registered version from the record of `talud register`."""
    try:
        stated = json.loads(path.read_bytes())
        if stated["weights"] == contract.origin.weights:
            return f"{stated['name']} version {stated['version']} ({stated['alias']})"
    except (OSError, ValueError, TypeError, KeyError):
        # The record is missing, or an earlier version of talud wrote it.
        return ""
    return ""


def _read_curve(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError as error:
        raise StudyError(f"{path}: not found; run talud evaluate again") from error


def read_table(model: type[_Model], path: Path, command: str) -> _Model:
    """Read a JSON file that a command wrote.

    Args:
        model: type of the content.
        path: path of the file.
        command: command that writes it, for error messages.

    Raises:
        StudyError: the file is missing or damaged.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StudyError(f"{path}: not found; run {command} {path.name.partition('.')[0]} first") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the file"
        raise StudyError(f"{path}: damaged at '{where}': {error.errors()[0]['msg']}; run {command} again") from error


def write_results(
    project: Project,
    band_set: str,
    model: Model,
    tests: Mapping[str, Assessment],
    areas: Mapping[str, Assessment],
    adapted: Mapping[str, Assessment],
) -> ScoreTable:
    """Write score table, metrics and curves.

    `tests` are the test blocks of training areas, `areas` the maps of others, `adapted` those of adapted models.
    """
    histograms = {"test": Assessment.total(tests.values()).histogram}
    histograms |= {area: one.histogram for area, one in areas.items()}
    table = ScoreTable(
        band_set=band_set,
        weights=model.contract.origin.weights,
        network=model.contract.origin.network_name,
        threshold=model.contract.measured.threshold,
        test={area: Scores.of(one) for area, one in tests.items()},
        areas={area: Scores.of(one, project.params.area(area).role) for area, one in areas.items()},
        adapted={area: Scores.of(one, project.params.area(area).role) for area, one in adapted.items()},
        reliability={part: Reliability.of(histogram) for part, histogram in histograms.items()},
    )
    for part, histogram in histograms.items():
        _write_curve(project.curve(band_set, part), histogram)
    table.write(project.scores(band_set))
    table.write_metrics(project.metrics(band_set))
    return table


def _write_curve(path: Path, histogram: ThresholdHistogram) -> None:
    with atomic_replace(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["threshold", "precision", "recall", "f1"])
        for threshold, counts in zip(THRESHOLDS, histogram.curve(), strict=True):
            scores = (counts.precision, counts.recall, counts.f1)
            writer.writerow([f"{threshold:.2f}", *(f"{score:.6f}" for score in scores)])
