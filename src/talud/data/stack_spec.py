"""Specification of a stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from talud.bands import OCCLUSION_MASKS, SAR_BANDS, TERRAIN_BANDS, Group, band_named, groups_of
from talud.contract import Contract
from talud.data import band_names, sources
from talud.data.band_names import BandDescriptions, BandNumbers, MissingBandError
from talud.errors import ModelError, SourceError
from talud.params import Area, Source, StackOptions
from talud.project import Project

RASTER_SOURCES: tuple[Source, ...] = ("optical", "dtm", "sar_pre", "sar_post")
_NUMBERED_SOURCES: tuple[Source, ...] = ("optical", "sar_pre", "sar_post")  # sources with numbered bands
OCCLUSION_SOURCES: tuple[Source, ...] = ("cloud", "sar_mask")


@dataclass(frozen=True)
class StackSpec:
    """Specification of a stack.

    Attributes:
        name: name of the area.
        area: the area: dates, units, and grid if it is set.
        files: paths of the sources.
        options: options for combining the sources.
        bands: names of the bands to write, in order.
        band_numbers: numbers of the bands in the optical and SAR sources, with the evidence for them.
    """

    name: str
    area: Area
    files: Mapping[Source, Path]
    options: StackOptions
    bands: tuple[str, ...]
    band_numbers: Mapping[Source, BandNumbers]


def spec_of_area(project: Project, name: str) -> StackSpec:
    """Return the specification of an area's stack.

    Raises:
        ParamsError: The area is unknown.
        SourceError: A source, or the number of a band that a band set needs, is missing.
    """
    area = project.params.area(name)
    files = sources.find_sources(project.folder(area), area.files)
    taken = _number_project_bands(area, files, project.params.band_sets)
    options = project.params.stack.for_area(area)
    spec = StackSpec(name, area, files, options, _available_bands(taken, files), taken)
    if not spec.bands:
        raise SourceError(
            f"{project.folder(area)}: has none of {', '.join(RASTER_SOURCES)} (for example as optical.tif)"
        )
    for band_set, bands in project.params.band_sets.items():
        _check_bands_available(dataclasses.replace(spec, bands=bands), f"band set '{band_set}'")
    if area.role != "transfer" and "inventory" not in files:
        raise SourceError(
            f"{project.folder(area)}: area '{name}' has the role {area.role} but no inventory "
            "(inventory.gpkg, .shp, .geojson, .fgb, .kml or .zip)"
        )
    return spec


def spec_for_model(contract: Contract, area: Area, files: Mapping[Source, Path], name: str) -> StackSpec:
    """Return the specification of a model's stack.

    Groups that the model can do without are left out if their sources are missing.

    Raises:
        MissingBandError: The sources lack a band.
        SourceError: The optical image cannot be read.
        ModelError: The contract states options that no stack can have.
    """
    names = _model_bands(contract, files)
    needed = [source for source in RASTER_SOURCES if any(source == _source_of(name) for name in names)]
    lacking = [source for source in needed if source not in files]
    if lacking:
        wanted = ", ".join(name for name in names if _source_of(name) in lacking)
        options = " ".join(f"--{source.replace('_', '-')} FILE" for source in lacking)
        raise MissingBandError(f"the model '{contract.origin.name}' needs {wanted}: give {options}")
    used = {s: path for s, path in files.items() if s in needed or OCCLUSION_MASKS.get(s) in groups_of(names)}
    taken = {
        source: _number_bands(area, source, path, _bands_of_source(names, source))
        for source, path in used.items()
        if source in _NUMBERED_SOURCES
    }
    spec = StackSpec(name, area, used, stack_options(contract), _with_occlusions(names, files), taken)
    _check_bands_available(spec, f"the model '{contract.origin.name}'")
    return spec


def _model_bands(contract: Contract, files: Mapping[Source, Path]) -> tuple[str, ...]:
    """Return a model's bands that sources can provide.

    Groups without sources are left out if the model can do without them.
    """
    lacking = {one.group for one in contract.input.bands if _source_of(one.name) not in files}
    if contract.input.subsets and frozenset(contract.input.groups) - lacking in contract.input.supported:
        return tuple(one.name for one in contract.input.bands if one.group not in lacking)
    return contract.input.band_names


def _available_bands(taken: Mapping[Source, BandNumbers], files: Mapping[Source, Path]) -> tuple[str, ...]:
    optical = tuple(taken["optical"].numbers) if "optical" in taken else ()
    elevation = tuple(one.name for one in TERRAIN_BANDS) if "dtm" in files else ()
    numbered = {source: taken[source].numbers for source in taken}
    radar = tuple(one.name for one in SAR_BANDS if one.name[:2] in numbered.get(_source_of(one.name), {}))
    return _with_occlusions((*optical, *elevation, *radar), files)


def _bands_of_source(names: Iterable[str], source: Source) -> tuple[str, ...]:
    """Return the named bands that a source contains.

    Bands of SAR scenes are named by polarisation.
    """
    return tuple(dict.fromkeys(_numbered_name(name) for name in names if _source_of(name) == source))


def _numbered_name(name: str) -> str:
    """Return a band's name in optical_bands or sar_bands."""
    return name[:2] if band_named(name).group is Group.SAR else name


def _number_project_bands(
    area: Area, files: Mapping[Source, Path], band_sets: Mapping[str, tuple[str, ...]]
) -> dict[Source, BandNumbers]:
    """Return the band numbers for a project's band sets.

    Bands that areas have by default are included if they exist.
    """
    taken: dict[Source, BandNumbers] = {}
    for source in (source for source in _NUMBERED_SOURCES if source in files):
        needed = _bands_of_source((name for bands in band_sets.values() for name in bands), source)
        try:
            taken[source] = _number_bands(
                area, source, files[source], tuple(dict.fromkeys((*_default_positions(source), *needed)))
            )
        except MissingBandError:
            for band_set, bands in band_sets.items():
                try:
                    _number_bands(area, source, files[source], _bands_of_source(bands, source))
                except MissingBandError as error:
                    raise MissingBandError(f"band set '{band_set}' needs {', '.join(bands)}: {error}") from error
            if needed:
                taken[source] = _number_bands(area, source, files[source], needed)
    return taken


def _default_positions(source: Source) -> dict[str, int]:
    """Return the default positions of bands."""
    usual: dict[str, int] = Area.model_fields["optical_bands" if source == "optical" else "sar_bands"].get_default()
    return usual


def _number_bands(area: Area, source: Source, path: Path, wanted: tuple[str, ...]) -> BandNumbers:
    """Return the numbers of bands in a source.

    They are given by the user, or else follow from the file's description of its bands.

    Raises:
        MissingBandError: The file does not identify a band.
        SourceError: The file cannot be read.
    """
    key = "optical_bands" if source == "optical" else "sar_bands"
    with sources.open_source(path) as dataset:
        file = BandDescriptions.of(dataset)
    if not wanted:
        return BandNumbers({}, "none")
    if key in area.model_fields_set:
        return band_names.check_given_numbers(file, dict(getattr(area, key)), key)
    default = _default_positions(source)
    if source == "optical":
        return band_names.find_optical_bands(file, wanted, default)
    return band_names.find_sar_bands(file, wanted, source.removeprefix("sar_"), default)


def _with_occlusions(names: tuple[str, ...], files: Mapping[Source, Path]) -> tuple[str, ...]:
    """Return bands and their occlusion masks.

    The masks mark cloud, layover or shadow.
    """
    return (
        *names,
        *(shade for shade in OCCLUSION_SOURCES if shade in files and OCCLUSION_MASKS[shade] in groups_of(names)),
    )


def _source_of(name: str) -> Source:
    group = band_named(name).group
    if group is Group.OCCLUSION:
        return "cloud" if name == "cloud" else "sar_mask"
    if group is Group.SAR:
        return "sar_pre" if name.endswith("_pre") else "sar_post"
    return "dtm" if group is Group.TERRAIN else "optical"


def _check_bands_available(spec: StackSpec, needs: str) -> None:
    """Check that sources provide all bands."""
    available = _available_bands(spec.band_numbers, spec.files)
    for name in spec.bands:
        source = _source_of(name)
        if source not in spec.files:
            raise MissingBandError(
                f"area '{spec.name}' has no {source}, but {needs} needs its band {name}; add the file, or remove "
                "the band from the set"
            )
        if name not in available:
            key = "sar_bands" if band_named(name).group is Group.SAR else "optical_bands"
            raise MissingBandError(
                f"area '{spec.name}': {needs} needs {name}, but {key} does not state which band of {source} it is"
            )


def stack_options(contract: Contract) -> StackOptions:
    """Return the options with which a model's stacks are made.

    Raises:
        ModelError: The contract states an option that does not exist.
    """
    # The origin of the grid, and the rules on overlaps and pixel sizes, apply to the model's own project only.
    known = StackOptions.model_fields.keys() - {"origin", "overlap", "pixel_sizes"}
    stated = {key: value for key, value in contract.input.stack.items() if key in known}
    try:
        return StackOptions.model_validate({**stated, "resolution": contract.input.pixel_size})
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(
            f"the model '{contract.origin.name}' needs a stack that cannot be made: {first['msg']}"
        ) from error
