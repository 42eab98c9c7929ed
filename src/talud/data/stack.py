"""The stack of an area: all its sources on one grid, beside the mask of its inventory and a record of both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window

from talud.bands import SAR_BANDS, SHADES, TERRAIN_BANDS, Group, band, groups
from talud.contract import Contract
from talud.data import sar, sources, terrain
from talud.data.inventory import Polygons
from talud.data.record import Record
from talud.data.sources import Layer
from talud.errors import MismatchError, ModelError, OutputError, ParamsError, SourceError
from talud.files import md5, replacing_together, synchronise
from talud.grid import Grid
from talud.metrics import BACKGROUND, LANDSLIDE, UNKNOWN
from talud.params import Area, Source, StackOptions
from talud.project import Project
from talud.raster import Layout, read_through, writing_cog
from talud.terminal import hushed

Progress = Callable[[int, int], None]
_RASTERS: tuple[Source, ...] = ("optical", "dtm", "sar_pre", "sar_post")
_SHADES: tuple[Source, ...] = ("cloud", "sar_mask")
_WINDOW = 512  # stack pixels a side of what is worked on at once; fewer where a source is much finer
_SOURCE_WINDOW = 1536  # and about so many source pixels a side, at most
_TOUCHED = 1e-3  # share of a pixel under cloud from which it counts as cloud; less is rounding
_ORIGIN = "TALUD_ORIGIN"  # the tag of what `origin_like` says
_COLOURS = {BACKGROUND: (224, 224, 224, 255), LANDSLIDE: (204, 51, 17, 255), UNKNOWN: (0, 0, 0, 0)}


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


@dataclass(frozen=True)
class Labels:
    """The polygons that the mask is made of; without an inventory, or outside the boundary, pixels are unknown."""

    inventory: Polygons | None
    boundary: Polygons | None
    all_touched: bool

    def mask(self, grid: Grid) -> NDArray[np.uint8]:
        """1 landslide, 0 background, 255 unknown; (height, width)."""
        if self.inventory is None:
            return np.full(grid.shape, UNKNOWN, np.uint8)
        mask = np.where(self.inventory.cover(grid, self.all_touched), LANDSLIDE, BACKGROUND).astype(np.uint8)
        if self.boundary is not None:
            mask[~self.boundary.cover(grid, all_touched=False)] = UNKNOWN
        return mask


@dataclass(frozen=True)
class Mixer:
    """The open sources of an area on their way to one grid."""

    grid: Grid
    layers: Mapping[Layer, float]  # → the side of a stack pixel in source pixels
    shades: Mapping[Source, Callable[[Grid], NDArray[np.bool_]]]
    bands: tuple[str, ...]
    synthetic: bool

    @property
    def units(self) -> tuple[str, ...]:
        """The unit of each band."""
        known = {name: unit for layer in self.layers for name, unit in zip(layer.bands, layer.units, strict=True)}
        return tuple(known.get(name, "") for name in self.bands)  # a shade has none

    @property
    def windows(self) -> list[Window]:
        """The windows to work in, so small that memory does not depend on the area or a source's pixels."""
        size = _WINDOW
        while size > 16 and size * max(self.layers.values()) > _SOURCE_WINDOW:
            size //= 2
        return self.grid.windows(size)

    def mix(self, window: Window) -> tuple[NDArray[np.float32], set[Path]]:
        """The bands in a window, float32 (bands, height, width), and the sources that have a valid pixel there."""
        target = self.grid.crop(window)
        values: dict[str, NDArray[np.float32]] = {}
        seen = set()
        for layer, ratio in self.layers.items():
            pixels = sources.resample(layer, target, ratio)
            if np.isfinite(pixels).any():
                seen.add(layer.path)
            values.update(zip(layer.bands, pixels, strict=True))
        for shade, cover in self.shades.items():
            hidden = cover(target)
            for name in self.bands:
                if band(name).group is SHADES[shade]:
                    values[name][hidden] = np.nan
            values[shade] = hidden.astype(np.float32)
        return np.stack([values[name] for name in self.bands]), seen


def build(project: Project, area: str, progress: Progress | None = None) -> Record:
    """Make the stack, the mask and the record of an area: all three, or, after an error, none.

    Args:
        project: the project.
        area: the name of one of its areas.
        progress: told, after each window, how many are done and how many there are.

    Raises:
        ParamsError: there is no such area, or its grid is not usable.
        SourceError: a source is missing, cannot be read, or cannot be used.
        OutputError: the files cannot be written.
    """
    recipe = _recipe(project, area)
    fingerprints = {source: sources.fingerprint(path) for source, path in recipe.files.items()}
    outputs = project.stack(area), project.mask(area), project.record(area)
    with _mixer(recipe) as mixer:
        labels = _labels(recipe, mixer.grid)
        with replacing_together(*outputs) as (stack, mask, record_file):
            landslides = _write(recipe, mixer, progress, stack, (mask, labels))
            if recipe.area.role != "transfer" and not landslides:
                raise SourceError(
                    f"area '{area}': the inventory marks no pixel inside the boundary by the rule "
                    f"'{recipe.options.inventory_rule}'; look at its position, or set inventory_rule to all_touched"
                )
            record = _record(recipe, mixer, labels, landslides, fingerprints, (md5(stack), md5(mask)))
            record_file.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n", encoding="utf-8")
    _forget_other_roles(project, area)
    return record


def build_like(
    contract: Contract,
    area: Area,
    files: Mapping[Source, Path],
    out: Path,
    progress: Progress | None = None,
    *,
    name: str | None = None,
    origin: Mapping[str, str] | None = None,
) -> Grid:
    """Make the stack that a model asks for, with its bands, resolution and methods; returns its grid.

    Args:
        contract: of the model.
        area: what there is to say about the sources: band numbers, SAR unit, dates. Optical bands that it does not
            number are found by their description or colour in the file, else taken as red, green, blue.
        files: the sources; those that the model does not need are left aside.
        out: the stack.
        progress: told, after each window, how many are done and how many there are.
        name: of the area; default: that of the file.
        origin: what `origin_like` says, to be kept in the stack, where `origin_of` finds it.

    Raises:
        SourceError: a source that the model needs is missing, cannot be read, or cannot be used.
        MismatchError: a band comes in another unit than the model was trained on.
        OutputError: the stack cannot be written, or would take the place of a source.
    """
    refuse_source(out, files)
    recipe = _recipe_like(contract, area, files, name or out.stem)
    with _mixer(recipe) as mixer:
        _refuse_other_units(mixer, contract)
        with replacing_together(out) as (stack,):
            _write(recipe, mixer, progress, stack, None, {_ORIGIN: json.dumps(origin)} if origin else {})
            synchronise(stack)
    return mixer.grid


def refuse_source(out: Path, files: Mapping[Source, Path]) -> None:
    """Refuse to write a stack over one of its sources.

    Raises:
        OutputError: it would be.
    """
    if any(out.exists() and path.exists() and out.samefile(path) for path in files.values()):
        raise OutputError(f"{out}: is one of the sources, which the stack would replace; give the stack another name")


def misfit(contract: Contract, area: Area, files: Mapping[Source, Path]) -> str | None:
    """Why sources do not make the stack that a model asks for, in words: what is missing. None where they do.

    Raises:
        SourceError: a source that the model would read cannot be read or used.
    """
    try:
        with _mixer(_recipe_like(contract, area, files, "")) as mixer:
            _refuse_other_units(mixer, contract)
    except (MissingBandError, MismatchError) as error:
        return str(error).removeprefix(f"the model '{contract.name}' ")
    return None


def origin_like(contract: Contract, area: Area, files: Mapping[Source, Path], name: str) -> dict[str, str]:
    """By what it is known whether `build_like` would make the same stack again: contents, not names, of the sources.

    Raises:
        SourceError: a source that the model needs is missing, or cannot be read.
    """
    recipe = _recipe_like(contract, area, files, name)
    bands = ", ".join(f"{band.name} in {band.unit}" for band in contract.bands)
    options = recipe.options.model_dump(mode="json", exclude={"inventory_rule"})
    said = recipe.area.model_dump(mode="json", include={"optical_bands", "sar_bands", "sar_unit", "acquired", "event"})
    if "sar_unit" in said:
        said["unit of the SAR scenes"] = said.pop("sar_unit")  # that of the stack is among the options
    stated = {"area": name, "talud": version("talud"), "bands": bands, **options, **said}
    contents = {source: sources.fingerprint(path) for source, path in recipe.files.items()}
    return {key: str(value) for key, value in stated.items()} | contents


def origin_of(stack: Path) -> dict[str, str]:
    """What `origin_like` said when a stack was made; empty where there is none, none that says it, or it is damaged."""
    try:
        with sources.open_source(stack) as dataset:
            origin = json.loads(dataset.tags().get(_ORIGIN, "{}"))
            if origin:
                read_through(dataset)
    except (SourceError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _recipe_like(contract: Contract, area: Area, files: Mapping[Source, Path], name: str) -> Recipe:
    """What the stack that a model asks for is made from.

    Raises:
        MissingBandError: the sources lack a band.
        SourceError: the optical image cannot be read.
    """
    names = contract.band_names
    needed = [source for source in _RASTERS if any(source == _source_of(name) for name in names)]
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


def _refuse_other_units(mixer: Mixer, contract: Contract) -> None:
    for asked, unit in zip(contract.bands, mixer.units, strict=False):  # shades follow
        if unit != asked.unit:
            raise MismatchError(
                f"{asked.name} comes in {unit}, but the model '{contract.name}' was trained on {asked.unit}; "
                "bring the source to that unit (gdal_edit.py -scale, -offset or -units, where only the label lacks)"
            )


def _recipe(project: Project, name: str) -> Recipe:
    area = project.params.area(name)
    files = sources.find(project.folder(area), area.files)
    recipe = Recipe(name, area, files, project.params.stack, _available(area, files))
    if not recipe.bands:
        raise SourceError(f"{project.folder(area)}: holds none of {', '.join(_RASTERS)} (as optical.tif, for example)")
    for band_set, bands in project.params.band_sets.items():
        _refuse_missing(dataclasses.replace(recipe, bands=bands), f"band set '{band_set}'")
    if area.role != "transfer" and "inventory" not in files:
        raise SourceError(
            f"{project.folder(area)}: area '{name}' has the role {area.role} but no inventory "
            "(inventory.gpkg, .shp or .geojson)"
        )
    return recipe


def _available(area: Area, files: Mapping[Source, Path]) -> tuple[str, ...]:
    optical = tuple(area.optical_bands) if "optical" in files else ()
    elevation = tuple(one.name for one in TERRAIN_BANDS) if "dtm" in files else ()
    radar = tuple(one.name for one in SAR_BANDS if _source_of(one.name) in files and one.name[:2] in area.sar_bands)
    return _with_shades((*optical, *elevation, *radar), files)


def _with_shades(names: tuple[str, ...], files: Mapping[Source, Path]) -> tuple[str, ...]:
    """The named bands, and after them what says where cloud, or layover or shadow, hides some of them."""
    return (*names, *(shade for shade in _SHADES if shade in files and SHADES[shade] in groups(names)))


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


@contextmanager
def _mixer(recipe: Recipe) -> Iterator[Mixer]:
    """Open the sources of a recipe on their common grid."""
    with ExitStack() as opened:
        datasets = {
            source: opened.enter_context(sources.open_source(recipe.files[source]))
            for source in _RASTERS
            if source in recipe.files
        }
        grid = _grid(recipe, next(iter(datasets.values())))
        for dataset in datasets.values():
            _refuse_disjoint(recipe, dataset, grid)
        layers = [_layer(recipe, source, dataset, grid) for source, dataset in datasets.items()]
        shades = {
            source: _shade(recipe.files[source], source, grid, opened) for source in _SHADES if source in recipe.bands
        }
        ratios = {layer: grid.resolution / sources.pixel_side(layer.grid, grid) for layer in layers}
        synthetic = any(dataset.tags().get("TALUD_SYNTHETIC") == "yes" for dataset in datasets.values())
        yield Mixer(grid, ratios, shades, recipe.bands, synthetic)


def _grid(recipe: Recipe, first: DatasetReader) -> Grid:
    """The grid of a stack: CRS and extent of the first source unless set, metres that are metres on the ground."""
    own = Grid.of(first)
    place = sources.centre(own)
    if recipe.area.crs:
        try:
            crs = CRS.from_user_input(recipe.area.crs)
        except (CRSError, ValueError) as error:
            raise ParamsError(f"areas.{recipe.name}.crs: '{recipe.area.crs}' is no coordinate system") from error
        if not sources.true_to_scale(crs, *place):
            raise ParamsError(
                f"areas.{recipe.name}.crs: {recipe.area.crs} does not count true metres at the area; take its UTM "
                f"zone, {sources.utm(*place)}, or a national grid in metres"
            )
    else:
        crs = own.crs if sources.true_to_scale(own.crs, *place) else sources.utm(*place)
    bounds = recipe.area.bounds or sources.bounds_in(crs, own)
    return Grid.from_bounds(crs, bounds, recipe.options.resolution)


def _refuse_disjoint(recipe: Recipe, dataset: DatasetReader, grid: Grid) -> None:
    source = Grid.of(dataset)
    left, bottom, right, top = source.bounds
    west, south, east, north = sources.bounds_in(source.crs, grid)
    if west >= right or east <= left or south >= top or north <= bottom:
        origin = "the bounds that params.yaml sets" if recipe.area.bounds else "that of the first source"
        raise SourceError(
            f"{dataset.name}: does not overlap area '{recipe.name}': it spans {left:.6g} to {right:.6g} east and "
            f"{bottom:.8g} to {top:.8g} north in {source.crs}, the area's extent ({origin}) {west:.6g} to {east:.6g} "
            f"and {south:.8g} to {north:.8g}"
        )


def _layer(recipe: Recipe, source: Source, dataset: DatasetReader, grid: Grid) -> Layer:
    area, options = recipe.area, recipe.options
    if source == "optical":
        wanted = {name: number for name, number in area.optical_bands.items() if name in recipe.bands}
        return sources.optical(dataset, wanted)
    if source == "dtm":
        return terrain.layer(dataset, grid, options.slope, options.curvature)
    time: Literal["pre", "post"] = "pre" if source == "sar_pre" else "post"
    polarisations = {name: number for name, number in area.sar_bands.items() if f"{name}_{time}" in recipe.bands}
    return sar.layer(dataset, polarisations, time, area.sar_unit, options.sar_unit, options.lee_window)


def _shade(path: Path, source: Source, grid: Grid, opened: ExitStack) -> Callable[[Grid], NDArray[np.bool_]]:
    """Which pixels of a window cloud (or layover, shadow) touches: polygons, or a raster's non-zero pixels."""
    if path.suffix.lower() in sources.VECTOR_SUFFIXES:
        polygons = Polygons.read(path, source, grid.crs)
        return lambda target: polygons.cover(target, all_touched=True)
    dataset = opened.enter_context(sources.open_source(path))

    def clouded(window: Window) -> NDArray[np.floating]:
        pixels = np.nan_to_num(sources.read(dataset, (1,), window))
        return np.not_equal(pixels, 0).astype(np.float32)

    layer = Layer(path, Grid.of(dataset), (source,), ("",), clouded, resampling=Resampling.nearest)
    ratio = grid.resolution / sources.pixel_side(layer.grid, grid)

    def touched(target: Grid) -> NDArray[np.bool_]:
        cover: NDArray[np.bool_] = sources.resample(layer, target, ratio)[0] > _TOUCHED
        return cover

    return touched


def _labels(recipe: Recipe, grid: Grid) -> Labels:
    """The polygons of an area's mask.

    Raises:
        SourceError: the inventory of a labelled area holds no polygon on its grid.
    """
    all_touched = recipe.options.inventory_rule == "all_touched"
    path = recipe.files.get("inventory")
    if path is None:
        return Labels(None, None, all_touched)
    inventory = Polygons.read(path, "inventory", grid.crs, recipe.area.inventory_filter)
    here = inventory.within(grid)
    clause = f" that match {recipe.area.inventory_filter!r}" if recipe.area.inventory_filter else ""
    if len(inventory.geometries) and not len(here.geometries):
        raise SourceError(
            f"{path}: none of its {len(inventory.geometries)} polygons{clause} lies in area '{recipe.name}'; look at "
            "its coordinate reference system"
        )
    if not len(here.geometries) and recipe.area.role != "transfer":
        skipped = f" ({inventory.skipped} features without one)" if inventory.skipped else ""
        raise SourceError(f"{path}: holds no polygons{clause}{skipped}, and area '{recipe.name}' needs landslides")
    boundary = Polygons.read(recipe.files["boundary"], "boundary", grid.crs) if "boundary" in recipe.files else None
    return Labels(here, boundary, all_touched)


def _write(
    recipe: Recipe,
    mixer: Mixer,
    progress: Progress | None,
    stack: Path,
    mask: tuple[Path, Labels] | None,
    more_tags: Mapping[str, str] | None = None,
) -> int:
    """Write a stack, and a mask where asked for, window by window; returns the landslide pixels."""
    tags = _tags(recipe, mixer) | dict(more_tags or {})
    layout = Layout("float32", float("nan"), mixer.bands, mixer.units, tags)
    seen: set[Path] = set()
    landslides = 0
    with ExitStack() as writers:
        writer = writers.enter_context(writing_cog(stack, mixer.grid, layout))
        if mask:
            path, labels = mask
            mask_layout = Layout("uint8", UNKNOWN, ("landslide",), (), _origin(tags), _COLOURS, "mode")
            mask_writer: DatasetWriter = writers.enter_context(writing_cog(path, mixer.grid, mask_layout))
        windows = mixer.windows
        for done, window in enumerate(windows, start=1):
            values, here = mixer.mix(window)
            seen |= here
            with hushed():  # as in `writing_cog`
                writer.write(values, window=window)
            if mask:
                pixels = labels.mask(mixer.grid.crop(window))
                landslides += int(np.count_nonzero(pixels == LANDSLIDE))
                with hushed():
                    mask_writer.write(pixels, 1, window=window)
            if progress:
                progress(done, len(windows))
        for layer in mixer.layers:
            if layer.path not in seen:
                raise SourceError(f"{layer.path}: has no valid pixel in area '{recipe.name}'; all is nodata there")
    return landslides


def _tags(recipe: Recipe, mixer: Mixer) -> dict[str, str]:
    options, acquired = recipe.options, recipe.area.acquired
    tags = {
        "TALUD_AREA": recipe.name,
        "TALUD_EVENT": recipe.area.event,
        "TALUD_ACQUIRED_OPTICAL": acquired.optical,
        "TALUD_ACQUIRED_SAR_PRE": acquired.sar_pre,
        "TALUD_ACQUIRED_SAR_POST": acquired.sar_post,
        "TALUD_SYNTHETIC": "yes" if mixer.synthetic else None,
        "TALUD_SLOPE": options.slope,
        "TALUD_CURVATURE": options.curvature,
        "TALUD_SAR_UNIT": options.sar_unit,
        "TALUD_LEE_WINDOW": options.lee_window,
        "TALUD_RESOLUTION": f"{options.resolution:.10g}",
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _origin(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: tags[key] for key in ("TALUD_AREA", "TALUD_EVENT", "TALUD_SYNTHETIC") if key in tags}


def _record(
    recipe: Recipe,
    mixer: Mixer,
    labels: Labels,
    landslides: int,
    fingerprints: Mapping[Source, str],
    digests: tuple[str, str],
) -> Record:
    inventory, acquired = labels.inventory, recipe.area.acquired
    dates = {"event": recipe.area.event, **dict(acquired)}
    return Record(
        area=recipe.name,
        role=recipe.area.role,
        stack_md5=digests[0],
        mask_md5=digests[1],
        sources=dict(sorted(fingerprints.items())),
        dates={name: day.isoformat() if day else None for name, day in dates.items()},
        bands=mixer.bands,
        height=mixer.grid.height,
        width=mixer.grid.width,
        landslide_pixels=None if inventory is None else landslides,
        polygons=None if inventory is None else len(inventory.geometries),
        repaired_polygons=None if inventory is None else inventory.repaired,
        skipped_polygons=None if inventory is None else inventory.skipped,
    )


def _forget_other_roles(project: Project, area: str) -> None:
    """Remove the record that the area had in another role: training must not go on depending on it."""
    current = project.record(area)
    for stale in current.parent.parent.glob(f"*/{area}.json"):
        if stale != current:
            stale.unlink()
