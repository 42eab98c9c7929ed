"""Stacks of areas, with mask and record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetWriter

from talud import source_files
from talud.contract import Contract
from talud.data import patch_stack, source_checks, sources
from talud.data.band_names import MissingBandError
from talud.data.inventory import Polygons
from talud.data.masks import KnownPixels, check_both_classes, mask_layout
from talud.data.resampling import SourceStack, open_sources
from talud.data.source_checks import check_overlap
from talud.data.stack_record import BANDS_TAG_PREFIX, StackRecord, remove_stale_records, sources_tag, stack_settings
from talud.data.stack_spec import StackSpec, spec_for_model, spec_of_area
from talud.errors import MismatchError, SourceError
from talud.files import atomic_replace_all, md5, sync_to_disk
from talud.grid import Grid
from talud.metrics import BACKGROUND, LANDSLIDE, UNKNOWN
from talud.params import Area, Source
from talud.process import stderr_suppressed
from talud.progress import Progress, tracked
from talud.project import Project
from talud.raster import ORIGIN_TAG, Layout, check_readable, write_cog
from talud.source_files import fingerprint


@dataclass(frozen=True)
class MaskPolygons:
    """Polygons from which a mask is made.

    Without an inventory, or outside the boundary, pixels are unknown.
    """

    inventory: Polygons | None
    boundary: Polygons | None
    all_touched: bool

    def mask(self, grid: Grid) -> NDArray[np.uint8]:
        """Return the mask (height, width), uint8.

        1 is landslide, 0 background and 255 unknown.
        """
        if self.inventory is None:
            return np.full(grid.shape, UNKNOWN, np.uint8)
        mask = np.where(self.inventory.rasterise(grid, self.all_touched), LANDSLIDE, BACKGROUND).astype(np.uint8)
        if self.boundary is not None:
            mask[~self.boundary.rasterise(grid, all_touched=False)] = UNKNOWN
        return mask


def build_stack(project: Project, area: str, progress: Progress | None = None) -> StackRecord:
    """Make stack, mask and record of an area.

    After an error, none of them is written.

    Args:
        project: the project.
        area: name of the area.
        progress: callback that receives the number of finished windows and that of all windows.

    Raises:
        ParamsError: The area is unknown, its grid is not usable, or it overlaps another area.
        SourceError: A source is missing, cannot be read, or cannot be used.
        OutputError: The files cannot be written.
    """
    make = patch_stack.build_patch_stack if project.params.area(area).patches else _build_from_rasters
    record = make(project, area, progress)
    remove_stale_records(project, area)
    return record


def _build_from_rasters(project: Project, area: str, progress: Progress | None) -> StackRecord:
    """Make stack, mask and record from rasters."""
    spec = spec_of_area(project, area)
    fingerprints = {source: fingerprint(path) for source, path in spec.files.items()}
    targets = project.stack(area), project.mask(area), project.stack_record(area)
    for target in targets:
        source_files.check_output_file(target, spec.files.values())
    with open_sources(spec) as source_stack:
        check_overlap(project, spec, source_stack)
        labels = _read_mask_polygons(spec, source_stack.grid)
        source_checks.warn_about_sources(spec)
        with atomic_replace_all(*targets) as (stack, mask, record_file):
            known = _write_stack(spec, source_stack, progress, stack, (mask, labels), sources_tag(fingerprints))
            if spec.area.role != "transfer" and not known.landslide:
                raise SourceError(
                    f"area '{area}': the inventory covers no pixel inside the boundary by the rule "
                    f"'{spec.options.inventory_rule}'; check its location, or set inventory_rule to all_touched"
                )
            check_both_classes(known, f"the mask of area '{spec.name}'", spec.area.role)
            record = _make_record(spec, source_stack, labels, known.landslide, fingerprints, (md5(stack), md5(mask)))
            record.write(record_file)
    return record


def build_stack_for_model(
    contract: Contract,
    area: Area,
    files: Mapping[Source, Path],
    out: Path,
    progress: Progress | None = None,
    *,
    name: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Grid:
    """Make the stack that a model needs.

    Returns its grid.

    Args:
        contract: contract of the model.
        area: properties of the sources: band numbers, SAR unit, dates. Optical bands without a number are found by
            their description or colour in the file, else taken as red, green, blue.
        files: paths of the sources; those that the model does not need are ignored.
        out: path of the stack.
        progress: callback that receives the number of finished windows and that of all windows.
        name: name of the area; default: that of the file.
        provenance: result of `describe_provenance`, to be stored in the stack for `read_provenance`.

    Raises:
        SourceError: A source that the model needs is missing, cannot be read, or cannot be used.
        MismatchError: The unit of a band is not that of the training data.
        OutputError: The stack cannot be written, or would replace a source.
    """
    source_files.check_output_file(out, files.values())
    spec = spec_for_model(contract, area, files, name or out.stem)
    with open_sources(spec) as source_stack:
        _check_units(source_stack, contract)
        source_checks.warn_about_sources(spec)
        with atomic_replace_all(out) as (stack,):
            contents = {
                source: (provenance or {}).get(source) or fingerprint(spec.files[source]) for source in spec.files
            }
            tags = sources_tag(contents) | ({ORIGIN_TAG: json.dumps(provenance)} if provenance else {})
            _write_stack(spec, source_stack, progress, stack, None, tags)
            sync_to_disk(stack)
    return source_stack.grid


def find_mismatch(contract: Contract, area: Area, files: Mapping[Source, Path]) -> str | None:
    """Return why sources do not suit a model, or None.

    Raises:
        SourceError: A source that the model needs cannot be read or used.
    """
    try:
        with open_sources(spec_for_model(contract, area, files, "")) as source_stack:
            _check_units(source_stack, contract)
    except (MissingBandError, MismatchError) as error:
        return str(error).removeprefix(f"the model '{contract.origin.name}' ")
    return None


def describe_provenance(contract: Contract, area: Area, files: Mapping[Source, Path], name: str) -> dict[str, str]:
    """Return everything that determines the stack of `build_stack_for_model`.

    Sources are identified by content, not by name.

    Raises:
        SourceError: A source that the model needs is missing, or cannot be read.
    """
    spec = spec_for_model(contract, area, files, name)
    bands = ", ".join(f"{band.name} in {band.unit}" for band in contract.input.bands)
    options = spec.options.model_dump(mode="json", exclude={"inventory_rule", "overlap", "pixel_sizes"})
    settings_of_area = spec.area.model_dump(mode="json", include={"sar_unit", "acquired", "event"})
    if "sar_unit" in settings_of_area:
        settings_of_area["unit of the SAR scenes"] = settings_of_area.pop(
            "sar_unit"
        )  # the options contain that of the stack
    for key in ("optical_scale", "optical_offset"):
        if (value := getattr(spec.area, key)) is not None:
            settings_of_area[key] = value
    taken = {f"bands of {source}": one.text for source, one in spec.band_numbers.items()}
    stated = {"area": name, "talud": version("talud"), "bands": bands, **options, **settings_of_area, **taken}
    contents = {source: fingerprint(path) for source, path in spec.files.items()}
    return {key: str(value) for key, value in stated.items()} | contents


def read_provenance(stack: Path) -> dict[str, str]:
    """Return the provenance stored in a stack, see `describe_provenance`.

    Empty if the stack is missing or damaged, or does not state it.
    """
    try:
        with sources.open_source(stack) as dataset:
            origin = json.loads(dataset.tags().get(ORIGIN_TAG, "{}"))
            if origin:
                check_readable(dataset)
    except (SourceError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def read_band_evidence(stack: Path) -> dict[str, str]:
    """Return the bands taken from each source, with evidence.

    Empty for older stacks.

    Raises:
        SourceError: The stack cannot be read.
    """
    with sources.open_source(stack) as dataset:
        tags = dataset.tags()
    return {
        name.removeprefix(BANDS_TAG_PREFIX).lower(): text
        for name, text in tags.items()
        if name.startswith(BANDS_TAG_PREFIX)
    }


def _check_units(source_stack: SourceStack, contract: Contract) -> None:
    units = dict(zip(source_stack.bands, source_stack.units, strict=True))
    for asked in contract.input.bands:
        unit = units.get(asked.name, asked.unit)  # a band that the model can do without may be missing
        if unit != asked.unit:
            raise MismatchError(
                f"{asked.name} is in {unit}, but the model '{contract.origin.name}' was trained on {asked.unit}; "
                f"{_conversion_advice(unit, asked.unit)}"
            )


def _conversion_advice(found: str, expected: str) -> str:
    """Explain how to convert a band's unit."""
    if (found, expected) == ("DN", "reflectance"):
        return (
            "give --optical-scale and --optical-offset (optical_scale, optical_offset in params.yaml): 0.0001 and, "
            "since processing baseline 04.00 of January 2022, -0.1 for Sentinel-2 L2A, 0.0000275 and -0.2 for Landsat "
            "Collection 2; or write them into a copy of the file with gdal_edit.py -scale and -offset"
        )
    return "convert the source to that unit (gdal_edit.py -scale, -offset, or -units if only the label is missing)"


def _read_mask_polygons(spec: StackSpec, grid: Grid) -> MaskPolygons:
    """Read the polygons of an area's mask.

    Raises:
        SourceError: The area needs landslides, and its inventory has no polygon on its grid.
    """
    all_touched = spec.options.inventory_rule == "all_touched"
    path = spec.files.get("inventory")
    if path is None:
        return MaskPolygons(None, None, all_touched)
    inventory = Polygons.read(path, "inventory", grid.crs, spec.area.inventory_filter)
    here = inventory.within(grid)
    clause = f" that match {spec.area.inventory_filter!r}" if spec.area.inventory_filter else ""
    _check_location(spec, path, inventory, grid, clause)
    if not len(here.geometries) and spec.area.role != "transfer":
        skipped = f" ({inventory.skipped} features without one)" if inventory.skipped else ""
        raise SourceError(f"{path}: has no polygons{clause}{skipped}, and area '{spec.name}' needs landslides")
    return MaskPolygons(here, _read_boundary(spec, grid), all_touched)


def _read_boundary(spec: StackSpec, grid: Grid) -> Polygons | None:
    """Read the surveyed part of an area.

    The result is None if all of it is surveyed.

    Raises:
        SourceError: The file has no polygon in the area.
    """
    path = spec.files.get("boundary")
    if path is None:
        return None
    boundary = Polygons.read(path, "boundary", grid.crs)
    _check_location(spec, path, boundary, grid)
    if not len(boundary.geometries):
        raise SourceError(f"{path}: has no polygons, so all of area '{spec.name}' would be unknown")
    return boundary


def _check_location(spec: StackSpec, path: Path, polygons: Polygons, grid: Grid, clause: str = "") -> None:
    place = polygons.find_misplacement(grid)
    if place:
        number = len(polygons.geometries) + polygons.unplaced
        raise SourceError(
            f"{path}: none of its {number} polygons{clause} is in area '{spec.name}'; {place.explanation}"
        )


def _write_stack(
    spec: StackSpec,
    source_stack: SourceStack,
    progress: Progress | None,
    stack: Path,
    mask: tuple[Path, MaskPolygons] | None,
    more_tags: Mapping[str, str],
) -> KnownPixels:
    """Write a stack, and its mask if requested.

    Returns:
        The counts of the mask's known pixels.
    """
    tags = _stack_tags(spec, source_stack) | dict(more_tags)
    layout = Layout("float32", float("nan"), source_stack.bands, source_stack.units, tags)
    seen: set[Path] = set()
    known = KnownPixels()
    with ExitStack() as writers:
        writer = writers.enter_context(write_cog(stack, source_stack.grid, layout))
        if mask:
            path, labels = mask
            mask_writer: DatasetWriter = writers.enter_context(write_cog(path, source_stack.grid, mask_layout(tags)))
        windows = source_stack.windows
        for window in tracked(windows, progress, len(windows)):
            values, here = source_stack.read(window)
            seen |= here
            with stderr_suppressed():  # as in `write_cog`
                writer.write(values, window=window)
            if mask:
                pixels = labels.mask(source_stack.grid.crop(window))
                known += KnownPixels.of(pixels)
                with stderr_suppressed():
                    mask_writer.write(pixels, 1, window=window)
        for layer in source_stack.layers:
            if layer.path not in seen:
                raise SourceError(f"{layer.path}: has no valid pixel in area '{spec.name}', only nodata")
    return known


def _stack_tags(spec: StackSpec, source_stack: SourceStack) -> dict[str, str]:
    options, acquired = spec.options, spec.area.acquired
    tags = {
        "TALUD_AREA": spec.name,
        "TALUD_EVENT": spec.area.event,
        "TALUD_ACQUIRED_OPTICAL": acquired.optical,
        "TALUD_ACQUIRED_SAR_PRE": acquired.sar_pre,
        "TALUD_ACQUIRED_SAR_POST": acquired.sar_post,
        "TALUD_SYNTHETIC": "yes" if source_stack.synthetic else None,
        "TALUD_SLOPE": options.slope,
        "TALUD_CURVATURE": options.curvature,
        "TALUD_SAR_UNIT": options.sar_unit,
        "TALUD_LEE_WINDOW": options.lee_window,
        "TALUD_RESOLUTION": f"{options.resolution:.10g}",
        "TALUD_OPTICAL_SCALE": spec.area.optical_scale,
        "TALUD_OPTICAL_OFFSET": spec.area.optical_offset,
        **{f"{BANDS_TAG_PREFIX}{source.upper()}": one.text for source, one in spec.band_numbers.items()},
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _make_record(
    spec: StackSpec,
    source_stack: SourceStack,
    labels: MaskPolygons,
    landslides: int,
    fingerprints: Mapping[Source, str],
    digests: tuple[str, str],
) -> StackRecord:
    inventory, acquired = labels.inventory, spec.area.acquired
    dates = {"event": spec.area.event, **dict(acquired)}
    return StackRecord(
        area=spec.name,
        role=spec.area.role,
        stack_md5=digests[0],
        mask_md5=digests[1],
        sources=dict(sorted(fingerprints.items())),
        dates={name: day.isoformat() if day else None for name, day in dates.items()},
        bands=source_stack.bands,
        height=source_stack.grid.height,
        width=source_stack.grid.width,
        landslide_pixels=None if inventory is None else landslides,
        polygons=None if inventory is None else len(inventory.geometries),
        repaired_polygons=None if inventory is None else inventory.repaired,
        skipped_polygons=None if inventory is None else inventory.skipped,
        settings=stack_settings(spec.area, spec.options),
    )
