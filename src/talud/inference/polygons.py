"""Polygons of a map: the landslides, and what is not mapped and why.

Pixels that touch at a corner belong to one landslide: a debris flow that runs down a valley at an angle to the grid
is one event, and counting it by its edges alone would break it into dozens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import rasterio.features
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError

from talud.errors import OutputError
from talud.grid import Grid
from talud.metrics import LANDSLIDE

_ZONE = 1024  # side of the windows in which polygons and probabilities meet
_DATE = "2000-01-01T00:00:00.000Z"  # GDAL's clock while a GeoPackage is written: the same map gives the same bytes


@dataclass(frozen=True)
class Landslides:
    """The landslides of a map, the largest first.

    Attributes:
        outlines: polygons or multipolygons, in the CRS of the map.
        area: of each, in m².
        mean_probability: over the pixels of each.
    """

    outlines: NDArray[np.object_]
    area: NDArray[np.float64]
    mean_probability: NDArray[np.float64]


@dataclass(frozen=True)
class NotMapped:
    """What a map leaves out.

    Attributes:
        outlines: polygons or multipolygons, in the CRS of the map.
        area: of each, in m².
        reason: of each, in words.
    """

    outlines: NDArray[np.object_]
    area: NDArray[np.float64]
    reason: NDArray[np.object_]


def trace(parts: Path, probability: Path, reasons: Mapping[int, str]) -> tuple[Landslides, NotMapped]:
    """Trace the polygons of a map.

    Memory grows with the polygons, not with the rasters.

    Args:
        parts: raster of 0 (nothing), 1 (landslide) and 1 + code (not mapped).
        probability: raster on the same grid.
        reasons: code → why, in words.
    """
    with rasterio.open(parts) as dataset:
        grid, band = Grid.of(dataset), rasterio.band(dataset, 1)
        shapes = list(rasterio.features.shapes(band, mask=band, connectivity=8, transform=dataset.transform))
    values = np.array([value for _, value in shapes], dtype=np.int64)
    outlines = _valid(np.array([shapely.geometry.shape(shape) for shape, _ in shapes], dtype=np.object_))
    area = shapely.area(outlines) * grid.crs.linear_units_factor[1] ** 2
    order = _largest_first(outlines, area)
    values, outlines, area = values[order], outlines[order], area[order]
    slides, rest = values == LANDSLIDE, values > LANDSLIDE
    why = np.array([reasons[int(value) - 1] for value in values[rest]], dtype=np.object_)
    means = _means(outlines[slides], probability)
    return Landslides(outlines[slides], area[slides], means), NotMapped(outlines[rest], area[rest], why)


def write(path: Path, landslides: Landslides, not_mapped: NotMapped, grid: Grid, tags: Mapping[str, str]) -> None:
    """Write both layers as one GeoPackage, which is byte-identical for the same polygons and tags.

    Raises:
        OutputError: it cannot be written.
    """
    ids = np.arange(1, len(landslides.area) + 1)
    layers: dict[str, tuple[NDArray[np.object_], dict[str, NDArray[Any]]]] = {
        "landslides": (
            landslides.outlines,
            {"id": ids, "area_m2": landslides.area, "mean_probability": landslides.mean_probability},
        ),
        "not_mapped": (not_mapped.outlines, {"reason": not_mapped.reason, "area_m2": not_mapped.area}),
    }
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
    try:
        for layer, (outlines, columns) in layers.items():
            pyogrio.raw.write(
                path,
                geometry=shapely.to_wkb(outlines),
                field_data=list(columns.values()),
                fields=list(columns),
                layer=layer,
                driver="GPKG",
                geometry_type="MultiPolygon",
                promote_to_multi=True,
                crs=grid.crs.to_wkt(),
                dataset_metadata=dict(tags),
            )
    except (DataSourceError, DataLayerError, FeatureError, GeometryError) as error:
        raise OutputError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from error
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _valid(outlines: NDArray[np.object_]) -> NDArray[np.object_]:
    """Rings that touch themselves at a corner, taken apart into polygons that touch."""
    broken = ~shapely.is_valid(outlines)
    outlines[broken] = shapely.make_valid(outlines[broken])
    return outlines


def _largest_first(outlines: NDArray[np.object_], area: NDArray[np.float64]) -> NDArray[np.intp]:
    """An order that depends on the map alone: by area; of equal ones, the northernmost, then the westernmost first."""
    left, _, _, top = shapely.bounds(outlines).reshape(-1, 4).T
    return np.lexsort((left, -top, -area))


def _means(outlines: NDArray[np.object_], probability: Path) -> NDArray[np.float64]:
    """The mean probability over the pixels of each polygon."""
    total, count = np.zeros(len(outlines)), np.zeros(len(outlines))
    tree = shapely.STRtree(outlines)
    with rasterio.open(probability) as dataset:
        grid = Grid.of(dataset)
        for window in grid.windows(_ZONE):
            zone = grid.crop(window)
            near = tree.query(shapely.box(*zone.bounds))
            if not len(near):
                continue
            owner = rasterio.features.rasterize(
                zip(outlines[near], near + 1, strict=True), zone.shape, transform=zone.transform, dtype="int32"
            )
            inside = owner > 0
            index = owner[inside] - 1
            total += np.bincount(index, dataset.read(1, window=window)[inside], len(outlines))
            count += np.bincount(index, minlength=len(outlines))
    return total / count
