"""The recipe of a stack: its sources, its bands, and how they are brought together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from talud.bands import SAR_BANDS, SHADES, TERRAIN_BANDS, Group, band, groups
from talud.contract import Contract
from talud.data import sources
from talud.errors import ModelError, SourceError
from talud.params import Area, Source, StackOptions
from talud.project import Project

RASTERS: tuple[Source, ...] = ("optical", "dtm", "sar_pre", "sar_post")
SHADE_SOURCES: tuple[Source, ...] = ("cloud", "sar_mask")


class MissingBandError(SourceError):
    """The sources of an area lack a band that is asked for."""


@dataclass(frozen=True)
class Recipe:
    """What a stack is made from, and how.

    Attributes:
        name: of the area.
        area: the numbers of its bands, its dates, its grid where that is set.
        files: its sources.
        options: how the sources are brought together.
        bands: the bands to write, in order.
    """

    name: str
    area: Area
    files: Mapping[Source, Path]
    options: StackOptions
    bands: tuple[str, ...]


def recipe_of(project: Project, name: str) -> Recipe:
    """What the stack of an area of a project is made from.

    Raises:
        ParamsError: there is no such area.
        SourceError: a source, or the number of a band that a band set needs, is missing.
    """
    area = project.params.area(name)
    files = sources.find(project.folder(area), area.files)
    recipe = Recipe(name, area, files, project.params.stack, _available(area, files))
    if not recipe.bands:
        raise SourceError(f"{project.folder(area)}: holds none of {', '.join(RASTERS)} (as optical.tif, for example)")
    for band_set, bands in project.params.band_sets.items():
        _refuse_missing(dataclasses.replace(recipe, bands=bands), f"band set '{band_set}'")
    if area.role != "transfer" and "inventory" not in files:
        raise SourceError(
            f"{project.folder(area)}: area '{name}' has the role {area.role} but no inventory "
            "(inventory.gpkg, .shp or .geojson)"
        )
    return recipe


def recipe_like(contract: Contract, area: Area, files: Mapping[Source, Path], name: str) -> Recipe:
    """What the stack that a model asks for is made from; without the groups that it can do without and nobody gave.

    Raises:
        MissingBandError: the sources lack a band.
        SourceError: the optical image cannot be read.
        ModelError: the contract asks for options that no stack has.
    """
    names = _read_by(contract, files)
    needed = [source for source in RASTERS if any(source == _source_of(name) for name in names)]
    lacking = [source for source in needed if source not in files]
    if lacking:
        wanted = ", ".join(name for name in names if _source_of(name) in lacking)
        options = " ".join(f"--{source.replace('_', '-')} FILE" for source in lacking)
        raise MissingBandError(f"the model '{contract.name}' needs {wanted}: give {options}")
    used = {s: path for s, path in files.items() if s in needed or SHADES.get(s) in groups(names)}
    wanted_optical = tuple(name for name in names if band(name).group is Group.OPTICAL)
    if wanted_optical and "optical_bands" not in area.model_fields_set:
        area = area.model_copy(update={"optical_bands": _optical_numbers(files["optical"], wanted_optical)})
    recipe = Recipe(name, area, used, _options(contract), _with_shades(names, files))
    _refuse_missing(recipe, f"the model '{contract.name}'")
    return recipe


def _read_by(contract: Contract, files: Mapping[Source, Path]) -> tuple[str, ...]:
    """The bands that a model is given: without those groups whose sources are missing, where it can do without them."""
    lacking = {one.group for one in contract.bands if _source_of(one.name) not in files}
    if contract.subsets and frozenset(contract.groups) - lacking in contract.supported:
        return tuple(one.name for one in contract.bands if one.group not in lacking)
    return contract.band_names


def _available(area: Area, files: Mapping[Source, Path]) -> tuple[str, ...]:
    optical = tuple(area.optical_bands) if "optical" in files else ()
    elevation = tuple(one.name for one in TERRAIN_BANDS) if "dtm" in files else ()
    radar = tuple(one.name for one in SAR_BANDS if _source_of(one.name) in files and one.name[:2] in area.sar_bands)
    return _with_shades((*optical, *elevation, *radar), files)


def _with_shades(names: tuple[str, ...], files: Mapping[Source, Path]) -> tuple[str, ...]:
    """The named bands, and after them what says where cloud, or layover or shadow, hides some of them."""
    return (*names, *(shade for shade in SHADE_SOURCES if shade in files and SHADES[shade] in groups(names)))


def _source_of(name: str) -> Source:
    group = band(name).group
    if group is Group.SHADE:
        return "cloud" if name == "cloud" else "sar_mask"
    if group is Group.SAR:
        return "sar_pre" if name.endswith("_pre") else "sar_post"
    return "dtm" if group is Group.TERRAIN else "optical"


def _refuse_missing(recipe: Recipe, needs: str) -> None:
    """Say which source or band number is missing for the bands of a recipe."""
    available = _available(recipe.area, recipe.files)
    for name in recipe.bands:
        source = _source_of(name)
        if source not in recipe.files:
            raise MissingBandError(
                f"area '{recipe.name}' has no {source}, but {needs} needs its band {name}; add the file, or take the "
                "band out of the set"
            )
        if name not in available:
            key = "sar_bands" if band(name).group is Group.SAR else "optical_bands"
            raise MissingBandError(
                f"area '{recipe.name}': {needs} needs {name}, but {key} does not say which band of {source} it is"
            )


def _options(contract: Contract) -> StackOptions:
    stated = {key: value for key, value in contract.stack.items() if key in StackOptions.model_fields}
    try:
        return StackOptions.model_validate({**stated, "resolution": contract.pixel_size})
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"the model '{contract.name}' asks for a stack that cannot be made: {first['msg']}") from error


def _optical_numbers(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Band numbers by the file's descriptions, else by its colours, else in the order red, green, blue."""
    with sources.open_source(path) as dataset:
        described = [(text or "").strip().lower() for text in dataset.descriptions]
        coloured = [meaning.name for meaning in dataset.colorinterp]
    default = list(Area.model_fields["optical_bands"].get_default())
    for labels in (described, coloured, default):
        if set(names) <= set(labels):
            return {name: labels.index(name) + 1 for name in names}
    raise MissingBandError(
        f"{path}: which bands are {', '.join(names)}? Its bands are not named so; say it with --optical-bands, "
        "for example red=3,green=2,blue=1"
    )
