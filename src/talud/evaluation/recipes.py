"""Two recipes side by side: what the chosen one comes to, and what the one that it is compared with does."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from talud.engine.runtime import Model
from talud.evaluation.results import read_table
from talud.evaluation.scores import SiteScores, assess_area, labelled_sites
from talud.files import replacing
from talud.metrics import lack_of_skill
from talud.params import Params, Search
from talud.progress import Progress, tracked
from talud.project import REFERENCES, Project


class Scored(BaseModel):
    """What a recipe's model came to on an area, with 95 % intervals."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    area: str
    pixels: str = Field(description="which of the area's were counted, in words")
    f1: float
    precision: float
    recall: float
    intervals: dict[str, tuple[float, float]] = Field(description="of f1, precision and recall")
    lack_of_skill: str = Field("", description="that it is no better than a constant map; empty in older files")

    @classmethod
    def of(cls, recipe: str, found: SiteScores) -> Self:
        """The row of an assessment, to six decimals."""
        scores = {name: found.scores[name] for name in ("f1", "precision", "recall")}
        return cls(
            recipe=recipe,
            area=found.source,
            pixels=found.pixels,
            **{name: round(score.estimate, 6) for name, score in scores.items()},
            intervals={name: (round(score.low, 6), round(score.high, 6)) for name, score in scores.items()},
            lack_of_skill=lack_of_skill(found.assessment.confusion),
        )


class Comparison(BaseModel):
    """The recipes of a band set, on each labelled area: the chosen one, and its reference if there is one."""

    model_config = ConfigDict(frozen=True)

    band_set: str
    scored: tuple[Scored, ...]

    def write(self, path: Path) -> None:
        """Write as JSON."""
        with replacing(path) as scratch:
            scratch.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            StudyError: it is missing or damaged.
        """
        return read_table(cls, path, "talud reference")


def reference(project: Project, best: Search) -> Project | None:
    """The same project whose studies train the reference recipe, on one configuration, into a folder of their own.

    Args:
        project: whose params.yaml may name a reference.
        best: the configuration.

    Returns:
        None where no recipe is to be compared with, or the chosen one is that recipe itself.
    """
    params = project.params
    if params.reference in (None, params.recipe):
        return None
    changed = {"recipe": params.reference, "search": "reference", "searches": {"reference": best}}
    return Project(project.root, Params.model_validate({**dict(params), **changed}), REFERENCES)


def compared(project: Project, band_set: str, models: Mapping[str, Model], progress: Progress | None) -> Comparison:
    """Score the models of recipes on every labelled area, as `assess_area` does, and write it down.

    Args:
        project: whose areas they are.
        band_set: of the models.
        models: recipe → the model that was trained with it.
        progress: told of each model and area.

    Raises:
        TaludError: as `assess_area` does.
        OutputError: the comparison cannot be written.
    """
    pairs = list(itertools.product(labelled_sites(project), models.items()))
    scored = [
        Scored.of(recipe, assess_area(model, project, site.name))
        for site, (recipe, model) in tracked(pairs, progress, len(pairs))
    ]
    result = Comparison(band_set=band_set, scored=tuple(scored))
    result.write(project.recipes(band_set))
    return result
