"""The report: one page that holds the study's tables and figures beside ours, and needs no other file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from talud.confusion_map import COLOURS, Outcome
from talud.data.record import current_stack
from talud.errors import StudyError
from talud.evaluation import figures, findings, study, summary
from talud.evaluation.assumptions import Assumption, assumptions
from talud.evaluation.distribution import strips
from talud.evaluation.findings import Finding
from talud.evaluation.maps import Viewer, view
from talud.evaluation.recipes import Comparison
from talud.evaluation.reliability import diagram
from talud.evaluation.results import Result
from talud.files import replacing
from talud.grid import Grid
from talud.project import Project
from talud.raster import open_raster
from talud.text import counted, html_environment


@dataclass(frozen=True)
class AreaFacts:
    """What a reader must know of an area before its scores.

    Attributes:
        dates: what happened or was acquired → when.
        square_kilometres: of its grid.
    """

    name: str
    role: str
    synthetic: bool
    dates: dict[str, date]
    width: int
    height: int
    resolution: float
    square_kilometres: float

    @classmethod
    def read(cls, project: Project, name: str) -> AreaFacts:
        """Read an area's facts from params.yaml and its stack.

        Raises:
            SourceError: the stack is missing or cannot be read.
        """
        area = project.params.area(name)
        with open_raster(current_stack(project, name)) as stack:
            grid, tags = Grid.of(stack), stack.tags()
        dates = {
            "event": area.event,
            "optical": area.acquired.optical,
            "SAR before": area.acquired.sar_pre,
            "SAR after": area.acquired.sar_post,
        }
        return cls(
            name=name,
            role=area.role,
            synthetic=tags.get("TALUD_SYNTHETIC") == "yes",
            dates={what: day for what, day in dates.items() if day},
            width=grid.width,
            height=grid.height,
            resolution=grid.resolution,
            square_kilometres=grid.width * grid.height * grid.pixel_area / 1e6,
        )


@dataclass(frozen=True)
class Page:
    """Everything that the template shows.

    Attributes:
        missing: the band sets that have not been evaluated.
        labelled: the areas beside the training areas that have been scored.
        recipe: that was chosen.
        recipes: of the band sets whose recipe was compared with another.
    """

    version: str
    areas: list[AreaFacts]
    results: list[Result]
    missing: list[str]
    labelled: list[str]
    summary: list[str]
    study_summary: list[str]
    findings: list[Finding]
    assumptions: list[Assumption]
    viewers: list[Viewer]
    recipe: str
    recipes: list[Comparison]

    @classmethod
    def gather(cls, project: Project) -> Page:
        """Read all results of a project.

        Raises:
            StudyError: no band set has been evaluated, or a result is damaged.
            SourceError: a raster is missing or cannot be read.
        """
        evaluated = [name for name in project.params.band_sets if project.scores(name).is_file()]
        if not evaluated:
            raise StudyError(f"{project.root / 'evaluation'}: holds no scores; run talud evaluate BAND_SET first")
        results = [Result.read(project, name) for name in evaluated]
        scored = {area for result in results for area in result.scores.areas}
        labelled = [area for area in project.params.areas if area in scored]
        transfer = [area for area in labelled if project.params.area(area).role == "transfer"]
        return cls(
            version=version("talud"),
            areas=[AreaFacts.read(project, area) for area in project.params.areas],
            results=results,
            missing=[name for name in project.params.band_sets if name not in evaluated],
            labelled=labelled,
            summary=summary.sentences(results, transfer),
            study_summary=summary.study_sentences(),
            findings=findings.of(results, transfer) if _compared(results) else [],
            assumptions=assumptions(project.params, results),
            viewers=[view(project, area, evaluated) for area in _last_first(project)],
            recipe=project.params.recipe,
            recipes=[Comparison.read(path) for path in map(project.recipes, evaluated) if path.is_file()],
        )

    @property
    def synthetic(self) -> list[str]:
        """The areas that are not of this world."""
        return [area.name for area in self.areas if area.synthetic]

    @property
    def compared(self) -> bool:
        """Whether any band set is one of the study's image models."""
        return _compared(self.results)

    @property
    def kind_of_data(self) -> str:
        """This project's data, in a sentence."""
        partly = "" if len(self.synthetic) == len(self.areas) else "partly "
        return f"this {partly}synthetic data" if self.synthetic else "this data"

    def facts(self, area: str) -> AreaFacts:
        """The facts of an area."""
        return next(facts for facts in self.areas if facts.name == area)

    @property
    def reliable(self) -> list[Result]:
        """The band sets whose probabilities were compared with what they came to."""
        return [result for result in self.results if result.scores.reliability]

    @property
    def without_skill(self) -> bool:
        """Return whether a shown model is no better than a constant map somewhere.

        Models are shown among the probabilities.
        """
        return any(
            result.contract.measured.lack_of_skill
            or any(result.lack_of_skill(part) for part in ("test", *result.scores.areas))
            for result in self.reliable
        )

    def scored(self, area: str) -> list[Result]:
        """The band sets that have scores on an area."""
        return [result for result in self.results if area in result.scores.areas]


def _compared(results: list[Result]) -> bool:
    return any(result.name in study.IMAGE_MODELS for result in results)


def _last_first(project: Project) -> list[str]:
    """The areas with transfer before gate before training: the reader wants the unseen basin first."""
    roles = ("transfer", "gate", "training")
    return [area for role in roles for area in project.params.areas_of(role)]


def write(project: Project) -> Path:
    """Write the report of a project and return its path. The same results give the same bytes.

    Raises:
        StudyError: no band set has been evaluated, or a result is damaged.
        SourceError: a raster is missing or cannot be read.
        OutputError: the page cannot be written.
    """
    html = render(Page.gather(project))
    with replacing(project.report) as scratch:
        scratch.write_text(html, encoding="utf-8")
    return project.report


def render(page: Page) -> str:
    """The page as HTML."""
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
        study=study,
        Outcome=Outcome,
        outcome_colours=COLOURS,
        figures=figures,
        strips=strips,
        diagram=diagram,
    )


_AXIS_TOPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def axis_top(values: Iterable[float]) -> float:
    """Return the upper end of an axis of scores that starts at 0.

    It is a round number not below the highest score, so that small scores are visible.
    """
    highest = max(values, default=1.0)
    return next((top for top in _AXIS_TOPS if top >= highest), 1.0)


def _thousands(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%".replace("-", "−")


def _short(value: float) -> str:
    """A hyperparameter in few characters: 5e-4 rather than 0.0005."""
    if value >= 0.01:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e−{-int(exponent)}"


def _css(colour: tuple[int, int, int, int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour[:3])
