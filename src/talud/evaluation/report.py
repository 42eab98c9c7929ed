"""HTML report of a project's results next to the published study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from talud.confusion_map import PIXEL_CLASS_COLOURS, PixelClass
from talud.errors import StudyError
from talud.evaluation import figures, paper
from talud.evaluation.area_facts import AreaFacts
from talud.evaluation.assumptions import Assumption, assumptions
from talud.evaluation.baselines import RecipeComparison, read_comparison
from talud.evaluation.figures import Viewer, adapted_title, area_viewer, reliability_diagram
from talud.evaluation.paper import IMAGE_MODELS, INFERENCE_BASIN, Finding
from talud.evaluation.results import BandSetResult, Scores, Trial, Trials
from talud.files import atomic_replace
from talud.metrics import Confusion
from talud.products.adaptation_record import AdaptationRecord
from talud.project import Project
from talud.text import counted, html_environment


@dataclass(frozen=True)
class ReportData:
    """Content of the report's template.

    Attributes:
        version: version of talud.
        areas: facts of all areas.
        results: results of the evaluated band sets.
        missing: band sets that have not been evaluated.
        labelled: scored areas other than the training areas.
        summary: summary of the results in sentences.
        study_summary: summary of the study in sentences.
        findings: findings of the study, checked on these results.
        assumptions: choices that the study does not state.
        viewers: map panels by area.
        recipe: chosen recipe of training.
        recipes: comparisons of the recipe with another, by band set.
    """

    version: str
    areas: list[AreaFacts]
    results: list[BandSetResult]
    missing: list[str]
    labelled: list[str]
    summary: list[str]
    study_summary: list[str]
    findings: list[Finding]
    assumptions: list[Assumption]
    viewers: list[Viewer]
    recipe: str
    recipes: list[RecipeComparison]

    @classmethod
    def gather(cls, project: Project) -> ReportData:
        """Read all results of a project.

        Raises:
            StudyError: no band set has been evaluated, or a result is damaged.
            SourceError: a raster is missing or cannot be read.
        """
        evaluated = [name for name in project.params.band_sets if project.scores(name).is_file()]
        if not evaluated:
            raise StudyError(f"{project.root / 'evaluation'}: has no scores; run talud evaluate BAND_SET first")
        results = [BandSetResult.read(project, name) for name in evaluated]
        scored = {area for result in results for area in result.scores.areas}
        labelled = [area for area in project.params.areas if area in scored]
        transfer = [area for area in labelled if project.params.area(area).role == "transfer"]
        return cls(
            version=version("talud"),
            areas=[AreaFacts.read(project, area) for area in project.params.areas],
            results=results,
            missing=[name for name in project.params.band_sets if name not in evaluated],
            labelled=labelled,
            summary=summary_sentences(results, transfer),
            study_summary=study_sentences(),
            findings=paper.check_findings(results, transfer) if _has_image_model(results) else [],
            assumptions=assumptions(project.params, results),
            viewers=[area_viewer(project, area, evaluated) for area in _areas_by_role(project)],
            recipe=project.params.recipe,
            recipes=[found for name in evaluated if (found := read_comparison(project, name))],
        )

    @property
    def synthetic(self) -> list[str]:
        """Names of the synthetic areas."""
        return [area.name for area in self.areas if area.synthetic]

    @property
    def compared(self) -> bool:
        """True if a band set is an image model of the study."""
        return _has_image_model(self.results)

    @property
    def kind_of_data(self) -> str:
        """Description of this project's data, within a sentence."""
        partly = "" if len(self.synthetic) == len(self.areas) else "partly "
        return f"this {partly}synthetic data" if self.synthetic else "this data"

    def facts(self, area: str) -> AreaFacts:
        """Return the facts of an area."""
        return next(facts for facts in self.areas if facts.name == area)

    @property
    def with_reliability(self) -> list[BandSetResult]:
        """Results of the band sets with a reliability diagram."""
        return [result for result in self.results if result.scores.reliability]

    @property
    def without_skill(self) -> bool:
        """True if any model with a reliability diagram lacks skill."""
        return any(
            result.contract.measured.lack_of_skill
            or any(result.lack_of_skill(part) for part in ("test", *result.scores.areas))
            for result in self.with_reliability
        )

    @property
    def adaptations(self) -> list[AdaptationRecord]:
        """Records of all requested adaptations."""
        return [record for result in self.results for record in result.adaptations.values()]

    def map_scores(self, row: str, area: str) -> list[Scores]:
        """Return the scores of a map, if it has any.

        Args:
            row: band set, or the title of its adapted model.
            area: name of the area.
        """
        tables = [
            {result.name: result.scores.areas, adapted_title(result.name): result.scores.adapted}
            for result in self.results
        ]
        return [table[row][area] for table in tables if area in table.get(row, {})]

    def scored(self, area: str) -> list[BandSetResult]:
        """Return the results that have scores on an area."""
        return [result for result in self.results if area in result.scores.areas]


def _has_image_model(results: list[BandSetResult]) -> bool:
    return any(result.name in paper.IMAGE_MODELS for result in results)


def _areas_by_role(project: Project) -> list[str]:
    """Return the areas: transfer first, then gate, then training."""
    roles = ("transfer", "gate", "training")
    return [area for role in roles for area in project.params.areas_with_role(role)]


def write_report(project: Project) -> Path:
    """Write the report of a project and return its path.

    Equal results give equal bytes.

    Raises:
        StudyError: no band set has been evaluated, or a result is damaged.
        SourceError: a raster is missing or cannot be read.
        OutputError: the page cannot be written.
    """
    html = render_report(ReportData.gather(project))
    with atomic_replace(project.report) as scratch:
        scratch.write_text(html, encoding="utf-8")
    return project.report


def render_report(page: ReportData) -> str:
    """Render the report as HTML."""
    environment = html_environment(
        "talud.evaluation",
        thousands=_thousands,
        score="{:.3f}".format,
        percent=_percent,
        css=_css,
        short=_short,
        counted=counted,
        top=axis_top,
    )
    return environment.get_template("report.html").render(
        page=page,
        study=paper,
        Outcome=PixelClass,
        outcome_colours=PIXEL_CLASS_COLOURS,
        figures=figures,
        adapted_title=adapted_title,
        strip_plots=strip_plots,
        reliability_diagram=reliability_diagram,
    )


_AXIS_LIMITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def axis_top(values: Iterable[float]) -> float:
    """Return the upper end of a score axis that starts at 0.

    It is the next round number above the highest score, so that small scores are visible.
    """
    highest = max(values, default=1.0)
    return next((top for top in _AXIS_LIMITS if top >= highest), 1.0)


def _thousands(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%".replace("-", "−")


def _short(value: float | str) -> str:
    """Format a hyperparameter briefly, such as 5e−4."""
    if isinstance(value, str):
        return value
    if value >= 0.01:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e−{-int(exponent)}"


def _css(colour: tuple[int, int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour[:3])


def summary_sentences(results: Sequence[BandSetResult], transfer: Sequence[str]) -> list[str]:
    """Summarise the results in sentences.

    Args:
        results: results of each evaluated band set.
        transfer: labelled transfer areas.
    """
    sentences = _skill_warnings(results, transfer)
    sentences += [
        "On the test blocks of the training areas "
        + ranking_sentence({result.name: result.test.f1 for result in results})
    ]
    for area in transfer:
        scored = [result for result in results if area in result.scores.areas]
        if scored:
            counts = {result.name: result.scores.areas[area].assessment.confusion for result in scored}
            sentences.append(
                f"On {area} " + ranking_sentence({name: confusion.f1 for name, confusion in counts.items()})
            )
            if any(not _lacks_skill(result, area) for result in scored):
                sentences.append(
                    transfer_sentence(
                        [result.f1_loss(area) for result in scored if not _lacks_skill(result, area)], area
                    )
                )
            sentences.append(constant_map_sentence(next(iter(counts.values())), area))
    return sentences


def _skill_warnings(results: Sequence[BandSetResult], areas: Sequence[str]) -> list[str]:
    """Return a sentence for each map without skill."""
    sentences = []
    for result in results:
        for part in ("test", *(area for area in areas if area in result.scores.areas)):
            if lack := result.lack_of_skill(part):
                place = "the test blocks of the training areas" if part == "test" else part
                sentences.append(f"{result.name} shows no skill: on {place} it is {lack}.")
    return sentences


def _lacks_skill(result: BandSetResult, area: str) -> bool:
    """Check if a model lacks skill on the test blocks or in an area.

    A change of F1 between them is then meaningless.
    """
    return bool(result.lack_of_skill("test") or result.lack_of_skill(area))


def study_sentences() -> list[str]:
    """Summarise the study's results in its inference zone."""
    scores = {name: model.inference.f1 for name, model in IMAGE_MODELS.items()}
    losses = [model.f1_loss for model in IMAGE_MODELS.values()]
    return [
        f"In the study’s own inference zone {INFERENCE_BASIN} (counts of its Table 4) {ranking_sentence(scores)}",
        transfer_sentence(losses, INFERENCE_BASIN),
        "The “around 0.70” in its text is the F1 of the training zone.",
    ]


def ranking_sentence(f1: Mapping[str, float]) -> str:
    """Rank band sets by F1, as the end of a sentence."""
    ranked = sorted(f1.items(), key=lambda item: -item[1])
    best, score = ranked[0]
    if len(ranked) == 1:
        return f"{best} reaches an F1 of {score:.3f}."
    rest = ", ".join(f"{name} {value:.3f}" for name, value in ranked[1:])
    if round(score, 3) == round(ranked[1][1], 3):
        return f"no band set stands out by F1: {best} {score:.3f}, {rest}."
    return f"{best} has the highest F1, {score:.3f}, before {rest}."


def transfer_sentence(losses: Sequence[float], area: str) -> str:
    """Describe the loss of F1 by transfer to an area.

    Args:
        losses: relative loss from the test blocks, by band set.
        area: name of the area.
    """
    low, high = round(100 * min(losses)), round(100 * max(losses))
    if high <= 0:
        gain = _percent_range(-high, -low)
        return f"Transfer to {area} costs no F1: it is {gain}% higher there than on the test blocks."
    if low < 0:
        return f"Transfer to {area} changes F1 by between +{-low}% and −{high}% of that on the test blocks."
    return f"Transfer to {area} costs {_percent_range(low, high)}% of the F1."


def constant_map_sentence(counts: Confusion, area: str) -> str:
    """State the F1 of a map that is landslide everywhere."""
    everything = Confusion(tp=counts.tp + counts.fn, fp=counts.fp + counts.tn)
    return f"A map that calls all of {area} a landslide has an F1 of {everything.f1:.3f}."


def _percent_range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


HYPERPARAMETER_LABELS = {
    "network": "Network",
    "filters": "Filters",
    "learning_rate": "Learning rate",
    "batch_size": "Batch size",
}
_STRIP_CHARACTERS = 40  # that fit below a strip plot, in all its columns


@dataclass(frozen=True)
class StripColumn:
    """Trials with the same value of a hyperparameter, lowest F1 first."""

    value: float | str
    trials: tuple[Trial, ...]

    @property
    def median(self) -> float:
        """Median of the trials' validation F1."""
        return median(trial.scores["f1"] for trial in self.trials)


@dataclass(frozen=True)
class StripPlot:
    """Strip plot of a hyperparameter: F1 of trials by value.

    Numbers ascend. Names are those of the highest F1 first.
    """

    label: str
    columns: tuple[StripColumn, ...]

    @property
    def slanted(self) -> bool:
        """True if the values are names that are too long for their columns."""
        return any(len(self.columns) * len(str(column.value)) > _STRIP_CHARACTERS for column in self.columns)


def strip_plots(trials: Trials) -> list[StripPlot]:
    """Return a strip plot of each hyperparameter that was searched."""
    made = []
    for choice, label in HYPERPARAMETER_LABELS.items():
        values: list[float | str] = list(dict.fromkeys(getattr(trial, choice) for trial in trials.ranked))
        if choice != "network":
            values.sort(key=float)
        rising = trials.ranked[::-1]
        columns = [StripColumn(value, tuple(t for t in rising if getattr(t, choice) == value)) for value in values]
        if len(columns) > 1:
            made.append(StripPlot(label, tuple(columns)))
    return made
