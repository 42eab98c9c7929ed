"""Choices of a project in params.yaml, as one frozen and checked object."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Self

import yaml
from annotated_types import Len
from pydantic import Field, ValidationError, model_validator

from talud.bands import Group, band_named
from talud.errors import ParamsError, TaludWarning
from talud.params.areas import (
    Acquired,
    Area,
    CurvatureKind,
    PatchData,
    SarUnit,
    SlopeMethod,
    Source,
    SplitOptions,
    StackOptions,
)
from talud.params.models import (
    Augmentation,
    DroppingOptions,
    Postprocessing,
    Promotion,
    Recipe,
    Search,
    Segmentation,
    TrainingOptions,
)
from talud.params.reading import Frozen, Name, check_keys, validation_message

__all__ = [
    "Acquired",
    "Area",
    "Augmentation",
    "CurvatureKind",
    "DroppingOptions",
    "Params",
    "PatchData",
    "Postprocessing",
    "Promotion",
    "Recipe",
    "SarUnit",
    "Search",
    "Segmentation",
    "SlopeMethod",
    "Source",
    "SplitOptions",
    "StackOptions",
    "TrainingOptions",
]


class Params(Frozen):
    """All of params.yaml."""

    seed: int = Field(ge=0)
    areas: dict[Name, Area]
    band_sets: dict[Name, Annotated[tuple[str, ...], Len(1)]]
    stack: StackOptions
    split: SplitOptions
    training: TrainingOptions
    recipe: str = Field("study", description="the name of one of `recipes`")
    recipes: dict[Name, Recipe] = Field({"study": Recipe()})
    reference: str | None = Field(
        None, description="the recipe that the chosen one is compared with: the best trial is trained once more with it"
    )
    search: str = Field(description="the name of one of `searches`")
    searches: dict[Name, Search]
    promotion: Promotion = Promotion()
    postprocessing: Postprocessing = Postprocessing()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if self.search not in self.searches:
            raise ValueError(f"search: '{self.search}' is none of the searches: {', '.join(self.searches)}")
        if self.recipe not in self.recipes and "recipe" not in self.model_fields_set:
            raise ValueError(f"the key 'recipe' is missing; it names one of the recipes: {', '.join(self.recipes)}")
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe: '{self.recipe}' is none of the recipes: {', '.join(self.recipes)}")
        if self.reference not in (None, *self.recipes):
            raise ValueError(f"reference: '{self.reference}' is none of the recipes: {', '.join(self.recipes)}")
        for name, bands in self.band_sets.items():
            if len(set(bands)) < len(bands):
                raise ValueError(f"band_sets.{name} names a band twice")
            shades = [one for one in bands if band_named(one).group is Group.OCCLUSION]
            if shades:
                raise ValueError(
                    f"band_sets.{name} names {shades[0]}, which says what hides other bands: no model reads it"
                )
        return self

    @classmethod
    def read(cls, path: Path) -> Params:
        """Read and check params.yaml.

        Raises:
            ParamsError: it is missing, not YAML, or a key or value is wrong (all allowed keys are named).
        """
        try:
            text = path.read_text(encoding="utf-8")
            check_keys(text)
            content = yaml.safe_load(text)
        except FileNotFoundError as error:
            raise ParamsError(
                f"{path}: not found; run talud inside a project, or see the README to start one"
            ) from error
        except ParamsError as error:
            raise ParamsError(f"{path}: {error}") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: no such day, or no UTF-8
            raise ParamsError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
        try:
            params = cls.model_validate(content)
        except ValidationError as error:
            raise ParamsError(f"{path}: {validation_message(error, cls)}") from error
        pipeline = path.with_name("dvc.yaml")
        if "recipe" not in content and pipeline.is_file() and b"${recipe}" in pipeline.read_bytes():
            warnings.warn(
                f"{path}: has no key 'recipe', so talud takes the recipe 'study'; {pipeline.name} needs the key, and "
                "dvc repro fails without it: add the line recipe: study",
                TaludWarning,
                stacklevel=2,
            )
        return params

    def area(self, name: str) -> Area:
        """Return the area of a name.

        Raises:
            ParamsError: there is none.
        """
        if name not in self.areas:
            raise ParamsError(f"no area '{name}' in params.yaml; it has: {', '.join(self.areas)}")
        return self.areas[name]

    def band_set(self, name: str) -> tuple[str, ...]:
        """Return the bands of a band set.

        Raises:
            ParamsError: there is none.
        """
        if name not in self.band_sets:
            raise ParamsError(f"no band set '{name}' in params.yaml; it has: {', '.join(self.band_sets)}")
        return self.band_sets[name]

    @property
    def chosen_recipe(self) -> Recipe:
        """The recipe that is chosen."""
        recipes: dict[str, Recipe] = self.recipes
        return recipes[self.recipe]

    @property
    def split_hyperparameters(self) -> dict[str, float | int]:
        """The seed and all of `split`, named as in a contract's hyperparameters."""
        return {"seed": self.seed} | {f"split_{name}": value for name, value in self.split.model_dump().items()}

    def areas_with_role(self, role: str) -> tuple[str, ...]:
        """Return the names of the areas of a role, in the order of params.yaml."""
        return tuple(name for name, area in self.areas.items() if area.role == role)
