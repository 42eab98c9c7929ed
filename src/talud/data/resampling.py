"""Open sources of an area, read and resampled to one grid by windows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.bands import OCCLUSION_MASKS, band_named
from talud.data import sar, sources, terrain, warping
from talud.data.inventory import Polygons
from talud.data.sources import SourceLayer
from talud.data.stack_spec import OCCLUSION_SOURCES, RASTER_SOURCES, StackSpec
from talud.errors import ParamsError, SourceError, TaludWarning
from talud.grid import Grid
from talud.params import Source
from talud.vector import OTHER_VECTOR_SUFFIXES, VECTOR_SUFFIXES

_WINDOW_PIXELS = 512  # stack pixels a side of what is worked on at once; fewer where a source is much finer
_MAX_SOURCE_WINDOW_PIXELS = 1536  # and about so many source pixels a side, at most
_MIN_COVERED_SHARE = 1e-3  # share of a pixel under cloud from which it counts as cloud; less is rounding


@dataclass(frozen=True)
class SourceStack:
    """The open sources of an area and their common grid."""

    grid: Grid
    layers: Mapping[SourceLayer, float]  # → the side of a stack pixel in source pixels
    occlusions: Mapping[Source, Callable[[Grid], NDArray[np.bool_]]]
    bands: tuple[str, ...]
    synthetic: bool

    @property
    def units(self) -> tuple[str, ...]:
        """The unit of each band."""
        known = {name: unit for layer in self.layers for name, unit in zip(layer.bands, layer.units, strict=True)}
        return tuple(known.get(name, "") for name in self.bands)  # a shade has none

    @property
    def windows(self) -> list[Window]:
        """The windows to work in.

        They are so small that memory does not depend on the area or on a source's pixels.
        """
        size = _WINDOW_PIXELS
        while size > 16 and size * max(self.layers.values()) > _MAX_SOURCE_WINDOW_PIXELS:
            size //= 2
        return self.grid.windows(size)

    def read(self, window: Window) -> tuple[NDArray[np.float32], set[Path]]:
        """Read the bands of a window, and list the sources with a valid pixel there.

        The bands are float32 (bands, height, width).
        """
        target = self.grid.crop(window)
        values: dict[str, NDArray[np.float32]] = {}
        seen = set()
        for layer, ratio in self.layers.items():
            pixels = warping.resample(layer, target, ratio)
            if np.isfinite(pixels).any():
                seen.add(layer.path)
            values.update(zip(layer.bands, pixels, strict=True))
        for shade, cover in self.occlusions.items():
            hidden = cover(target)
            for name in self.bands:
                if band_named(name).group is OCCLUSION_MASKS[shade]:
                    values[name][hidden] = np.nan
            values[shade] = hidden.astype(np.float32)
        return np.stack([values[name] for name in self.bands]), seen


@contextmanager
def open_sources(spec: StackSpec) -> Iterator[SourceStack]:
    """Open the sources of a stack on their common grid.

    Raises:
        ParamsError: the grid that the area sets is not usable.
        SourceError: a source cannot be read or used, or does not overlap the area.
    """
    with ExitStack() as opened:
        datasets = _open_rasters(spec, opened)
        grid = _grid(spec, list(datasets.values()))
        for dataset in datasets.values():
            _check_overlap(spec, dataset, grid)
        layers = [_layer(spec, source, dataset, grid) for source, dataset in datasets.items()]
        shades = {
            source: _occlusion_mask(spec, source, grid, opened) for source in OCCLUSION_SOURCES if source in spec.bands
        }
        ratios = {layer: grid.resolution / warping.pixel_side(layer.grid, grid) for layer in layers}
        synthetic = any(dataset.tags().get("TALUD_SYNTHETIC") == "yes" for dataset in datasets.values())
        yield SourceStack(grid, ratios, shades, spec.bands, synthetic)


def stack_grid(spec: StackSpec) -> Grid:
    """Return the grid of a stack.

    The rasters are opened, but no pixels are read.

    Raises:
        ParamsError: the grid that the area sets is not usable.
        SourceError: a raster cannot be opened or located.
    """
    with ExitStack() as opened:
        return _grid(spec, list(_open_rasters(spec, opened).values()))


def _open_rasters(spec: StackSpec, opened: ExitStack) -> dict[Source, DatasetReader]:
    """Open the rasters of a stack until the exit stack is closed."""
    return {
        source: opened.enter_context(sources.open_source(spec.files[source]))
        for source in RASTER_SOURCES
        if source in spec.files
    }


def _grid(spec: StackSpec, datasets: Sequence[DatasetReader]) -> Grid:
    """Return the grid of a stack.

    Its CRS and extent are those of the first source unless set, in metres that are metres on the ground. Its pixels
    are those of the first source that has this CRS and the stack's resolution, so that source is not resampled.
    """
    own = Grid.of(datasets[0])
    place = warping.centre(own)
    if spec.area.crs:
        try:
            crs = CRS.from_user_input(spec.area.crs)
        except (CRSError, ValueError) as error:
            raise ParamsError(f"areas.{spec.name}.crs: '{spec.area.crs}' is no coordinate system") from error
        if not warping.has_true_scale(crs, *place):
            raise ParamsError(
                f"areas.{spec.name}.crs: {spec.area.crs} does not count true metres at the area; take its UTM "
                f"zone, {warping.utm_zone(*place)}, or a national grid in metres"
            )
    else:
        crs = own.crs if warping.has_true_scale(own.crs, *place) else warping.utm_zone(*place)
    bounds = spec.area.bounds or warping.bounds_in(crs, own)
    return Grid.from_centres(crs, bounds, spec.options.resolution, _origin(spec, crs, datasets))


def _origin(spec: StackSpec, crs: CRS, datasets: Sequence[DatasetReader]) -> tuple[float, float]:
    """Return the origin of a stack's grid, which is the corner of a pixel."""
    options = spec.options
    if isinstance(options.origin, tuple):
        return options.origin
    for source in map(Grid.of, datasets):
        corner = float(source.transform.c), float(source.transform.f)
        # Covers the source from its first pixel, so that it tells whether all pixels stay the same.
        same = Grid(crs, Affine(options.resolution, 0, corner[0], 0, -options.resolution, corner[1]), *source.shape)
        if same.offset_in(source) is not None:
            return corner
    return 0.0, 0.0


def _check_overlap(spec: StackSpec, dataset: DatasetReader, grid: Grid) -> None:
    source = Grid.of(dataset)
    left, bottom, right, top = source.bounds
    west, south, east, north = warping.bounds_in(source.crs, grid)
    if west >= right or east <= left or south >= top or north <= bottom:
        origin = "the bounds that params.yaml sets" if spec.area.bounds else "that of the first source"
        raise SourceError(
            f"{dataset.name}: does not overlap area '{spec.name}': it spans {left:.6g} to {right:.6g} east and "
            f"{bottom:.8g} to {top:.8g} north in {source.crs}, the area's extent ({origin}) {west:.6g} to {east:.6g} "
            f"and {south:.8g} to {north:.8g}"
        )


def _layer(spec: StackSpec, source: Source, dataset: DatasetReader, grid: Grid) -> SourceLayer:
    area, options = spec.area, spec.options
    if source == "optical":
        wanted = {name: number for name, number in spec.band_numbers[source].numbers.items() if name in spec.bands}
        named = spec.band_numbers[source].numbers.values()
        return sources.optical_layer(dataset, wanted, named, area.optical_scale, area.optical_offset)
    if source == "dtm":
        return terrain.terrain_layer(dataset, grid, options.slope, options.curvature)
    time: Literal["pre", "post"] = "pre" if source == "sar_pre" else "post"
    taken = spec.band_numbers[source].numbers
    polarisations = {name: taken[name] for name in sar.POLARISATIONS if f"{name}_{time}" in spec.bands}
    return sar.sar_layer(dataset, polarisations, time, area.sar_unit, options.sar_unit, options.lee_window)


def _occlusion_mask(
    spec: StackSpec, source: Source, grid: Grid, opened: ExitStack
) -> Callable[[Grid], NDArray[np.bool_]]:
    """Return the pixels of a window that cloud, layover or shadow touches.

    The source is polygons, or the non-zero pixels of a raster.

    Raises:
        SourceError: the file cannot be read, or cannot belong to the area for where it lies.
    """
    path = spec.files[source]
    if path.suffix.lower() in VECTOR_SUFFIXES | OTHER_VECTOR_SUFFIXES:
        polygons = Polygons.read(path, source, grid.crs)
        _check_location(spec, path, polygons, grid)
        return lambda target: polygons.rasterise(target, all_touched=True)
    dataset = opened.enter_context(sources.open_source(path))
    _check_overlap(spec, dataset, grid)

    def clouded(window: Window) -> NDArray[np.floating]:
        pixels = np.nan_to_num(sources.read_values(dataset, (1,), window))
        return np.not_equal(pixels, 0).astype(np.float32)

    layer = SourceLayer(path, Grid.of(dataset), (source,), ("",), clouded, resampling=Resampling.nearest)
    ratio = grid.resolution / warping.pixel_side(layer.grid, grid)

    def touched(target: Grid) -> NDArray[np.bool_]:
        cover: NDArray[np.bool_] = warping.resample(layer, target, ratio)[0] > _MIN_COVERED_SHARE
        return cover

    return touched


def _check_location(spec: StackSpec, path: Path, shade: Polygons, grid: Grid) -> None:
    """Check that polygons can belong to the area's images.

    Warn where none lies in the area although they might belong to it.
    """
    place = shade.find_misplacement(grid)
    if place is None:
        return
    number = len(shade.geometries) + shade.unplaced
    said = f"{path}: none of its {number} polygons lies in area '{spec.name}'; {place.explanation}"
    if place.impossible:
        raise SourceError(said)
    warnings.warn(f"{said}; so it masks nothing", TaludWarning, stacklevel=2)
