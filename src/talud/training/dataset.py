"""Training data of a study: patches and their statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from talud.bands import band_named, groups_of
from talud.data.patches import SPLIT_PARTS, Block, Patches, SplitPart, patch_windows
from talud.data.stack_record import check_current_stack, data_version
from talud.errors import StudyError
from talud.grid import Grid
from talud.mapping.raster_checks import processing_options
from talud.measurement.sites import Site, join_patches
from talud.params import SplitOptions, StackOptions
from talud.project import Project
from talud.raster import BLOCK_SIZE, SOURCE_RESOLUTION_TAG, open_raster, patch_side

# Tags of a stack that state how it was processed, in lower case and without the prefix "TALUD_".
PROCESSING_TAGS = ("resolution", "slope", "curvature", "sar_unit", "lee_window")


@dataclass(frozen=True)
class Statistics:
    """Statistics of each band over the valid training pixels, (bands,)."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @classmethod
    def of(cls, stack: NDArray[np.float32], bands: tuple[str, ...]) -> Statistics:
        """Compute the statistics of patches (patches, height, width, bands).

        NaN is ignored. The standard deviation of a constant band is set to 1, so that the band is only centred.

        Raises:
            StudyError: A band has no valid pixel.
        """
        rows = []
        for name, values in zip(bands, np.moveaxis(stack, -1, 0), strict=True):
            valid = values[~np.isnan(values)].astype(np.float64)
            if not valid.size:
                raise StudyError(f"the band '{name}' has no valid pixel in the training patches; check its source")
            rows.append((valid.mean(), valid.std() or 1.0, valid.min(), valid.max()))
        return cls(*np.array(rows).T)


@dataclass(frozen=True)
class StackFormat:
    """Format of the stacks of all training areas.

    Attributes:
        units: unit of each band.
        pixel_size: side of a pixel of the network, in metres.
        processing: processing options by name, such as "slope", "curvature" and "sar_unit".
        area_pixel_sizes: pixel size of each area's stack, in metres, by name.
        source_pixel_sizes: the same before patches were resampled.
    """

    units: tuple[str, ...]
    pixel_size: float
    processing: Mapping[str, str]
    area_pixel_sizes: Mapping[str, float]
    source_pixel_sizes: Mapping[str, float]

    @property
    def trained_sizes(self) -> tuple[float, ...]:
        """Pixel sizes of the patches if there are several, ascending; else empty."""
        sizes = sorted(set(self.area_pixel_sizes.values()))
        return tuple(sizes) if len(sizes) > 1 else ()

    @property
    def differing_sizes(self) -> dict[str, float]:
        """Source pixel size of each area; empty if all equal the network's."""
        differ = any(size != self.pixel_size for size in self.source_pixel_sizes.values())
        return dict(self.source_pixel_sizes) if differ else {}


@dataclass(frozen=True)
class TrainingData:
    """Patches for training a network, and the statistics of their bands.

    Attributes:
        bands: names of the bands, in the order in which the network reads them.
        training: patches to fit the weights to.
        validation: patches to choose the epoch by.
        statistics: statistics of the bands over the training patches.
    """

    bands: tuple[str, ...]
    training: Patches
    validation: Patches
    statistics: Statistics


@dataclass(frozen=True)
class Dataset(TrainingData):
    """Training data of a study, with their origin.

    Attributes:
        stack_format: units, pixel size and processing options of the stacks.
        version: MD5 over the MD5s of all stacks and masks.
        sites: training areas with their splits.
        value_ranges: lowest and highest valid value of each band in the whole training areas, (2, bands). They define
            the plausible values of a raster, and are not used in training.
        synthetic: True if a training area is synthetic.
    """

    stack_format: StackFormat
    version: str
    sites: tuple[Site, ...]
    value_ranges: NDArray[np.float32]
    synthetic: bool

    @classmethod
    def load(cls, project: Project, band_set: str) -> Dataset:
        """Split the training areas and read their patches.

        Raises:
            ParamsError: There is no such band set.
            StudyError: A stack is missing or lacks a band, the areas' stacks differ in format, or the training or
                validation blocks show no landslide.
            SourceError: A raster cannot be read.
        """
        params = project.params
        bands, areas = params.band_set(band_set), params.areas_with_role("training")
        if not areas:
            raise StudyError("params.yaml has no area with role: training; a study needs one")
        version = data_version(project, areas)
        stack_format = _common_format(project, areas, bands)
        sites = tuple(Site.of(project, area) for area in areas)
        training, validation = (_patches(project, bands, sites, part) for part in ("training", "validation"))
        statistics, value_ranges = Statistics.of(training.stack, bands), _value_ranges(project, areas, bands)
        synthetic = _is_synthetic(project, areas)
        return cls(bands, training, validation, statistics, stack_format, version, sites, value_ranges, synthetic)

    @property
    def blocks(self) -> dict[str, tuple[Block, ...]]:
        """Blocks of each area by name."""
        return {site.name: site.blocks for site in self.sites}

    def counts(self, options: SplitOptions) -> dict[str, int]:
        """Count the blocks, patches and landslide pixels of each part.

        The keys are `training_blocks`, `training_patches`, `training_landslide_pixels` and so on.
        """
        counts = {}
        for part in SPLIT_PARTS:
            blocks = [block for split in self.blocks.values() for block in split if block.part == part]
            used = {"training": self.training, "validation": self.validation}.get(part)
            counts[f"{part}_blocks"] = len(blocks)
            counts[f"{part}_patches"] = (
                sum(len(patch_windows(block, options)) for block in blocks) if used is None else len(used)
            )
            counts[f"{part}_landslide_pixels"] = sum(block.landslide_pixels for block in blocks)
        return counts


def _value_ranges(project: Project, areas: tuple[str, ...], bands: tuple[str, ...]) -> NDArray[np.float32]:
    """Return the value range of each band in the stacks, (2, bands)."""
    lowest, highest = np.full(len(bands), np.inf, np.float32), np.full(len(bands), -np.inf, np.float32)
    for area in areas:
        with open_raster(check_current_stack(project, area)) as dataset:
            numbers = [dataset.descriptions.index(name) + 1 for name in bands]
            for window in Grid.of(dataset).windows(BLOCK_SIZE):
                values = dataset.read(numbers, window=window, out_dtype="float32").reshape(len(bands), -1)
                lowest = np.fmin(lowest, np.fmin.reduce(values, axis=1))
                highest = np.fmax(highest, np.fmax.reduce(values, axis=1))
    return np.stack([lowest, highest])


def _is_synthetic(project: Project, areas: tuple[str, ...]) -> bool:
    for area in areas:
        with open_raster(check_current_stack(project, area)) as stack:
            if stack.tags().get("TALUD_SYNTHETIC") == "yes":
                return True
    return False


def _common_format(project: Project, areas: tuple[str, ...], bands: tuple[str, ...]) -> StackFormat:
    """Return the format of all areas' stacks.

    Raises:
        StudyError: The areas differ in what a network cannot read together.
    """
    first, *others = formats = [_AreaFormat.of(project, area, bands) for area in areas]
    options = project.params.stack
    for other in others:
        _check_units(first, other, bands)
        _check_pixel_sizes(first, other, options)
    sides = [one.patch_side for one in formats]
    patch = project.params.split.patch
    if max(side or patch for side in sides) < patch:
        raise StudyError(
            f"split.patch is {patch} pixels, but the patches of {', '.join(areas)} have at most "
            f"{max(filter(None, sides))}; set split.patch to a smaller number"
        )
    pixel_size = _network_pixel_size(formats, options.resolution)
    processing = _common_processing(formats, bands, native=options.pixel_sizes == "native")
    if any(one.pixel_size != pixel_size for one in formats):
        processing = {"resolution": f"{pixel_size:.10g}"} | processing
    return StackFormat(
        first.units,
        pixel_size,
        processing,
        {one.area: one.pixel_size for one in formats},
        {one.area: one.source_pixel_size for one in formats},
    )


def _check_units(first: _AreaFormat, other: _AreaFormat, bands: tuple[str, ...]) -> None:
    """Check that the bands of two areas have the same units."""
    for band, unit, own in zip(bands, first.units, other.units, strict=True):
        if unit != own:
            raise StudyError(
                f"the stacks of '{first.area}' and '{other.area}' differ in the unit of {band}: {unit or 'none'} and "
                f"{own or 'none'}, so its values cannot be compared; convert the source of one (for optical bands with "
                "optical_scale and optical_offset), or train on areas with one unit"
            )


def _check_pixel_sizes(first: _AreaFormat, other: _AreaFormat, options: StackOptions) -> None:
    """Check that the pixel sizes of two areas are equal or may differ."""
    if other.pixel_size == first.pixel_size or options.pixel_sizes == "native":
        return
    advice = (
        f"make both at stack.resolution ({options.resolution:g} m)"
        if options.pixel_sizes == "resample"
        else "set stack.pixel_sizes to resample, so that patches are resampled to stack.resolution "
        f"({options.resolution:g} m), or to native, so that each area keeps its own"
    )
    raise StudyError(
        f"the stacks of '{first.area}' and '{other.area}' differ in pixel size: {first.pixel_size:g} m and "
        f"{other.pixel_size:g} m; {advice}"
    )


def _network_pixel_size(formats: Sequence[_AreaFormat], resolution: float) -> float:
    """Return the pixel size of the stacks that a model asks for.

    It is `stack.resolution` if an area has it, else that of the first area.
    """
    return next((one.pixel_size for one in formats if one.pixel_size == resolution), formats[0].pixel_size)


def _common_processing(formats: Sequence[_AreaFormat], bands: tuple[str, ...], *, native: bool) -> dict[str, str]:
    """Return the processing options that all stacks share.

    An option that a patch stack does not state is taken to be that of the others. The window of the speckle filter may
    differ between areas of their own pixel size, since it is counted in pixels.

    Raises:
        StudyError: The stacks differ in an option on which a band depends.
    """
    common = {}
    concerned = processing_options({name: band_named(name).group for name in bands})
    for option in PROCESSING_TAGS:
        stated = {
            one.area: one.processing.get(option, "none")
            for one in formats
            if option in one.processing or not one.patch_side
        }
        if set(stated.values()) <= {"none"}:
            continue
        if len(set(stated.values())) == 1:
            common[option] = next(iter(stated.values()))
        elif option in concerned and not (native and option == "lee_window"):
            (first, value), *others = stated.items()
            other = next(area for area, own in others if own != value)
            raise StudyError(
                f"the stacks of '{first}' and '{other}' differ in {option}: {value} and {stated[other]}; "
                "run talud stack (or dvc repro) for all training areas"
            )
    return common


@dataclass(frozen=True)
class _AreaFormat:
    """Format of the stack of one area, see `StackFormat`."""

    area: str
    units: tuple[str, ...]
    pixel_size: float
    source_pixel_size: float
    processing: Mapping[str, str]
    patch_side: int | None

    @classmethod
    def of(cls, project: Project, area: str, bands: tuple[str, ...]) -> Self:
        """Read the format of an area's stack.

        Raises:
            StudyError: The stack is missing or lacks a band.
        """
        path = check_current_stack(project, area)
        if not path.is_file():
            raise StudyError(f"{path}: not found; run talud stack {area} (or dvc repro)")
        with open_raster(path) as dataset:
            units = dict(zip(dataset.descriptions, dataset.units, strict=True))
            missing = [name for name in bands if name not in units]
            if missing:
                raise StudyError(
                    f"{path}: has no band {', '.join(missing)}; it holds {', '.join(map(str, units))}; change the band "
                    "set in params.yaml, or add the source of the band and run talud stack (or dvc repro)"
                )
            tags, side = dataset.tags(), patch_side(dataset)
            processing = {
                name: tags[f"TALUD_{name.upper()}"] for name in PROCESSING_TAGS if f"TALUD_{name.upper()}" in tags
            }
            grid = Grid.of(dataset)
            size = grid.resolution * grid.metres_per_unit
            source = _positive_number(tags[SOURCE_RESOLUTION_TAG], path) if SOURCE_RESOLUTION_TAG in tags else size
            return cls(area, tuple(units[name] or "" for name in bands), size, source, processing, side)


def _positive_number(text: str, path: Path) -> float:
    """Return the number in a tag of a stack."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise StudyError(f"{path}: its tag {SOURCE_RESOLUTION_TAG} is {text[:20]!r}, not a size; run talud stack again")


def _patches(project: Project, bands: tuple[str, ...], sites: Sequence[Site], part: SplitPart) -> Patches:
    optional = project.params.chosen_recipe.dropping.optional_groups(groups_of(bands)) if part == "training" else ()
    patches = join_patches(sites, bands, part, optional)
    if not patches.landslide_pixels:
        raise StudyError(
            f"the {part} blocks hold no landslide where all of {', '.join(bands)} are valid; check clouds and invalid "
            "pixels, or make split.block smaller"
        )
    return patches
