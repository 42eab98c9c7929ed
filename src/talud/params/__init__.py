"""Settings of a project in params.yaml, validated and immutable."""

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
    """Contents of params.yaml."""

    seed: int = Field(ge=0, description="seed of the split, of the weights and of the order of batches")
    areas: dict[Name, Area] = Field(description="name of an area → its sources, dates and role")
    band_sets: dict[Name, Annotated[tuple[str, ...], Len(1)]] = Field(
        description="name of a band set → bands that its models read, in order"
    )
    stack: StackOptions
    split: SplitOptions
    training: TrainingOptions
    recipe: str = Field("study", description="name of the recipe in `recipes` that is used")
    recipes: dict[Name, Recipe] = Field(
        {"study": Recipe()}, description="name of a recipe → augmentation, loss, schedule and regularisation"
    )
    reference: str | None = Field(
        None, description="name of the recipe of the baseline (talud baseline); null: no baseline"
    )
    search: str = Field(description="name of the search in `searches` that is used")
    searches: dict[Name, Search] = Field(description="name of a search → hyperparameters, epochs and method")
    promotion: Promotion = Promotion()
    postprocessing: Postprocessing = Postprocessing()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if self.search not in self.searches:
            raise ValueError(f"search: unknown search '{self.search}'; defined: {', '.join(self.searches)}")
        if self.recipe not in self.recipes and "recipe" not in self.model_fields_set:
            raise ValueError(f"the key 'recipe' is missing; give one of: {', '.join(self.recipes)}")
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe: unknown recipe '{self.recipe}'; defined: {', '.join(self.recipes)}")
        if self.reference not in (None, *self.recipes):
            raise ValueError(f"reference: unknown recipe '{self.reference}'; defined: {', '.join(self.recipes)}")
        for name, bands in self.band_sets.items():
            if len(set(bands)) < len(bands):
                raise ValueError(f"band_sets.{name} lists a band twice")
            masks = [one for one in bands if band_named(one).group is Group.OCCLUSION]
            if masks:
                raise ValueError(
                    f"band_sets.{name} lists {masks[0]}, a mask of other bands that no model can use as input"
                )
        return self

    @classmethod
    def read(cls, path: Path) -> Params:
        """Read and check params.yaml.

        Raises:
            ParamsError: the file is missing or not YAML, or a key or value is wrong.
        """
        try:
            text = path.read_text(encoding="utf-8")
            check_keys(text)
            content = yaml.safe_load(text)
        except FileNotFoundError as error:
            raise ParamsError(
                f"{path}: not found; change to the folder of a project, or see the README to create one"
            ) from error
        except ParamsError as error:
            raise ParamsError(f"{path}: {error}") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: invalid date or not UTF-8
            raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        try:
            params = cls.model_validate(content)
        except ValidationError as error:
            raise ParamsError(f"{path}: {validation_message(error, cls)}") from error
        pipeline = path.with_name("dvc.yaml")
        if "recipe" not in content and pipeline.is_file() and b"${recipe}" in pipeline.read_bytes():
            warnings.warn(
                f"{path}: the key 'recipe' is missing, so the recipe 'study' is used; dvc repro fails without the key, "
                f"because {pipeline.name} refers to it: add the line recipe: study",
                TaludWarning,
                stacklevel=2,
            )
        return params

    def area(self, name: str) -> Area:
        """Return an area by its name.

        Raises:
            ParamsError: params.yaml has no area of this name.
        """
        if name not in self.areas:
            raise ParamsError(f"no area '{name}' in params.yaml; it has: {', '.join(self.areas)}")
        return self.areas[name]

    def band_set(self, name: str) -> tuple[str, ...]:
        """Return the bands of a band set.

        Raises:
            ParamsError: params.yaml has no band set of this name.
        """
        if name not in self.band_sets:
            raise ParamsError(f"no band set '{name}' in params.yaml; it has: {', '.join(self.band_sets)}")
        return self.band_sets[name]

    @property
    def chosen_recipe(self) -> Recipe:
        """Recipe that `recipe` names."""
        recipes: dict[str, Recipe] = self.recipes
        return recipes[self.recipe]

    @property
    def split_hyperparameters(self) -> dict[str, float | int]:
        """Seed and split options, named as in a contract."""
        return {"seed": self.seed} | {f"split_{name}": value for name, value in self.split.model_dump().items()}

    def areas_with_role(self, role: str) -> tuple[str, ...]:
        """Return the names of the areas with a role."""
        return tuple(name for name, area in self.areas.items() if area.role == role)
