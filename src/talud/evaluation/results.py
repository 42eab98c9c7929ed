"""Results in files: the score table of a band set, the trials of its study, its curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from talud.contract import Contract
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.files import atomic_replace
from talud.measurement.assessment import Assessment
from talud.metrics import CALIBRATION_BINS, Confusion, ThresholdHistogram, lack_of_skill
from talud.project import Project
from talud.text import duration

MIN_BIN_PIXELS = 100  # pixels of a bin of probabilities, at least, from which its landslide share is known
_Model = TypeVar("_Model", bound=BaseModel)


class Scores(BaseModel):
    """Counts and scores of a set of pixels; the scores cover what was mapped, and the rest is counted beside them."""

    model_config = ConfigDict(frozen=True)

    role: str | None = Field(None, description="of the area, where a whole area was scored")
    tp: int
    fp: int
    fn: int
    tn: int
    precision: float
    recall: float
    f1: float
    iou: float
    mcc: float = Field(description="Matthews' correlation coefficient")
    not_mapped_pixels: int = Field(description="truth known, and nothing mapped: under cloud, for example")
    not_mapped_landslide_pixels: int
    not_mapped_share: float = Field(description="not mapped pixels / pixels whose truth is known")

    @classmethod
    def of(cls, assessment: Assessment, role: str | None = None) -> Self:
        """Return the scores of an assessment, to six decimals."""
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
        """The counts, as those of one window."""
        counts = Confusion(self.tp, self.fp, self.fn, self.tn)
        blocks = (counts,) if counts.pixels else ()
        return Assessment(blocks, 1, self.not_mapped_pixels, self.not_mapped_landslide_pixels)


class Reliability(BaseModel):
    """Probabilities and the landslide shares observed at them, over the mapped pixels of known truth."""

    model_config = ConfigDict(frozen=True)

    expected_calibration_error: float = Field(ge=0, le=1)
    pixels: tuple[int, ...] = Field(description=f"by probability, in {CALIBRATION_BINS} bins of one width from 0 to 1")
    landslide_pixels: tuple[int, ...] = Field(description="those of them that are landslide")
    mean_probability: tuple[float | None, ...] = Field(description="of them; null where a bin is empty")

    @classmethod
    def of(cls, histogram: ThresholdHistogram) -> Self:
        """Return what follows from a histogram, to six decimals."""
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
        """Return mean probability and landslide share of each bin of at least so many pixels."""
        rows = zip(self.mean_probability, self.landslide_pixels, self.pixels, strict=True)
        return [(mean, slides / pixels) for mean, slides, pixels in rows if mean is not None and pixels >= least]


class ScoreTable(BaseModel):
    """The scores of a band set's model: `test` blocks of each training area, and each other labelled area's map."""

    model_config = ConfigDict(frozen=True)

    band_set: str
    weights: str = Field("", description="digest of those that were scored")
    threshold: float
    test: dict[str, Scores]
    areas: dict[str, Scores]
    reliability: dict[str, Reliability] = Field(
        {}, description="of the probabilities, on all test blocks together (test) and each area; empty in older files"
    )

    @property
    def test_assessment(self) -> Assessment:
        """The counts of the test blocks of all training areas together."""
        return Assessment.total(scores.assessment for scores in self.test.values())

    def rows(self) -> list[tuple[str, Scores]]:
        """Return the description of each place, and its scores."""
        test = [(f"{area}, test blocks", scores) for area, scores in self.test.items()]
        return test + [(f"{area}, {scores.role} map", scores) for area, scores in self.areas.items()]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        with atomic_replace(path) as scratch:
            scratch.write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")

    def write_metrics(self, path: Path) -> None:
        """Write precision, recall and F1 as JSON for DVC.

        The scores are those of the test blocks together, and of each area.
        """
        confusions = {area: scores.assessment.confusion for area, scores in self.areas.items()}
        metrics = {
            "test": _metrics(self.test_assessment.confusion),
            "areas": {area: _metrics(counts) for area, counts in confusions.items()},
        }
        with atomic_replace(path) as scratch:
            scratch.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            StudyError: it is missing or damaged.
        """
        return read_table(cls, path, "talud evaluate")


def _metrics(counts: Confusion) -> dict[str, float]:
    return {name: round(counts.scores()[name], 6) for name in ("f1", "precision", "recall")}


class Trial(BaseModel):
    """One trial of a study."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    name: str
    filters: int
    learning_rate: float
    batch_size: int
    epochs: int
    patience: int | None = None
    training_seed: int | None = None
    best_epoch: int = Field(description="whose weights were kept: the highest validation F1")
    seconds: float
    parameters: int = Field(description="weights of the network")
    scores: dict[str, float] = Field(
        description="precision, recall, f1 and iou on validation blocks at 0.5, uncalibrated"
    )


class FailedTrial(BaseModel):
    """A trial that came to nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    reason: str


class Trials(BaseModel):
    """The trials of a study, and which of them was best."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    band_set: str
    search: str
    data_version: str
    seed: int
    parent_run_id: str = Field(description="the run of the study")
    best: str = Field(description="the run of the best trial")
    trials: tuple[Trial, ...]
    failed: tuple[FailedTrial, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a trials table.

        Raises:
            StudyError: it is missing or damaged, or has no best trial.
        """
        table = read_table(cls, path, "talud train")
        if table.best not in {trial.run_id for trial in table.trials}:
            raise StudyError(f"{path}: the best run '{table.best}' is none of its trials; run talud train again")
        return table

    @property
    def best_trial(self) -> Trial:
        """The trial whose model was exported."""
        return next(trial for trial in self.trials if trial.run_id == self.best)

    @property
    def hours(self) -> str:
        """Time that all trials took, one after the other, in words."""
        seconds = sum(trial.seconds for trial in self.trials)
        return duration(seconds)

    @property
    def ranked(self) -> list[Trial]:
        """The trials, highest validation F1 first."""
        return sorted(self.trials, key=lambda trial: -trial.scores["f1"])


@dataclass(frozen=True)
class BandSetResult:
    """All that is known of a band set: its model's contract, its study's trials, and its scores.

    Attributes:
        curves: "test" or an area's name → rows of threshold, precision, recall and F1.
        registered: the name and version under which the model is registered, empty where it is not.
    """

    contract: Contract
    trials: Trials
    scores: ScoreTable
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    registered: str = ""

    @classmethod
    def read(cls, project: Project, band_set: str) -> Self:
        """Read the results of a band set.

        Raises:
            StudyError: its scores or trials are missing or damaged.
            ModelError: its model cannot be opened.
        """
        scores = ScoreTable.read(project.scores(band_set))
        contract = Model.load(project.model(band_set)).contract
        return cls(
            contract,
            Trials.read(project.trials(band_set)),
            scores,
            {part: _read_curve(project.curve(band_set, part)) for part in ("test", *scores.areas)},
            _registered(project.registration(band_set), contract),
        )

    @property
    def name(self) -> str:
        """The band set."""
        return self.scores.band_set

    @property
    def test(self) -> Confusion:
        """The counts over the test blocks of all training areas."""
        return self.scores.test_assessment.confusion

    def lack_of_skill(self, part: str) -> str:
        """Return a sentence if the model is no better than a constant map.

        The place is an area, or the test blocks (`test`).
        """
        return lack_of_skill(self.test if part == "test" else self.scores.areas[part].assessment.confusion)

    def f1_loss(self, area: str) -> float:
        """Return the share of the test blocks' F1 that is lost in an area; 0 if that F1 is 0."""
        home = self.test.f1
        return 1 - self.scores.areas[area].assessment.confusion.f1 / home if home else 0.0


def _registered(path: Path, contract: Contract) -> str:
    """Return the name and version under which a model is registered.

    The source is the record of `talud register`.
    """
    try:
        stated = json.loads(path.read_bytes())
        if stated["weights"] == contract.origin.weights:
            return f"{stated['name']} version {stated['version']} ({stated['alias']})"
    except (OSError, ValueError, TypeError, KeyError):  # missing, or of an earlier talud: not a result of this model
        return ""
    return ""


def _read_curve(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except FileNotFoundError as error:
        raise StudyError(f"{path}: not found; run talud evaluate again") from error


def read_table(model: type[_Model], path: Path, command: str) -> _Model:
    """Read a file that a command wrote as JSON.

    Raises:
        StudyError: it is missing or damaged.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StudyError(f"{path}: not found; run {command} {path.name.partition('.')[0]} first") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the file"
        raise StudyError(f"{path}: damaged at '{where}': {error.errors()[0]['msg']}; run {command} again") from error
