"""Outlines that people draw: from a client's GeoJSON to valid polygons inside a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import geopandas
import numpy as np
import pyproj
import shapely
from pydantic import BaseModel, Field, FiniteFloat
from pydantic.types import FailFast

from talud.data.inventory import polygonal
from talud.errors import ParamsError
from talud.grid import Grid
from talud.serving.catalogue import WGS84

Outline = shapely.Polygon | shapely.MultiPolygon
MOST_VERTICES = 100_000
MOST_RINGS = 500  # of an outline: whether one lies within another is asked of each pair
MOST_MENDABLE = 1_000  # vertices of an outline that is mended, whose crossings are counted first
MOST_CROSSINGS = 100  # of such an outline: hundreds of vertices can cross in thousands of places, which takes minutes
AREA_TOLERANCE = 0.01  # of an outline's area: as much may mending it change, as when an inventory is imported

Position = Annotated[list[FiniteFloat], Field(min_length=2, max_length=3), FailFast()]
Ring = Annotated[list[Position], Field(min_length=4), FailFast()]
Rings = Annotated[list[Ring], Field(min_length=1), FailFast()]


class PolygonGeometry(BaseModel):
    """A polygon of GeoJSON: its outer ring, then its holes, in longitude and latitude."""

    type: Literal["Polygon"]
    coordinates: Rings


class MultiPolygonGeometry(BaseModel):
    """Polygons of GeoJSON that are one landslide."""

    type: Literal["MultiPolygon"]
    coordinates: Annotated[list[Rings], Field(min_length=1), FailFast()]


Geometry = Annotated[PolygonGeometry | MultiPolygonGeometry, Field(discriminator="type")]


def outline_of(geometry: PolygonGeometry | MultiPolygonGeometry, grid: Grid) -> Outline:
    """What a client drew, in the CRS of a map: valid polygons inside it.

    An outline that crosses itself is mended where that leaves its area as it is.

    Raises:
        ParamsError: it is not on the map, or no outline of anything.
    """
    parts = [geometry.coordinates] if geometry.type == "Polygon" else geometry.coordinates
    vertices = sum(len(ring) for rings in parts for ring in rings)
    if vertices > MOST_VERTICES:
        raise ParamsError(f"the geometry has {vertices:,} vertices; at most {MOST_VERTICES:,} are taken, simplify it")
    if sum(map(len, parts)) > MOST_RINGS:
        raise ParamsError(f"the geometry has more than {MOST_RINGS} rings; draw it as several landslides")
    drawn = [shapely.Polygon(_flat(rings[0]), [_flat(ring) for ring in rings[1:]]) for rings in parts]
    west, south, east, north = shapely.MultiPolygon(drawn).bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise ParamsError("the geometry is not in longitude and latitude (degrees, WGS84)")
    moved = geopandas.GeoSeries([drawn[0] if len(drawn) == 1 else shapely.MultiPolygon(drawn)], crs=WGS84).to_crs(
        grid.crs.to_wkt()
    )
    outline = _valid(moved.iloc[0])
    slack = grid.resolution  # degrees are rounded, and the rim of the map may be drawn along
    if not np.isfinite(outline.bounds).all() or not shapely.box(*grid.bounds).buffer(slack).covers(outline):
        raise ParamsError("the geometry reaches beyond the map; draw inside it")
    return outline


def _flat(ring: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(position[0], position[1]) for position in ring]


def _valid(outline: Outline) -> Outline:
    if shapely.is_valid(outline):
        mended: Any = outline
    else:
        mended = polygonal(outline) if _mendable(outline) else None
    if mended is None or not mended.area > 0:
        raise ParamsError("the geometry crosses itself, or encloses nothing; draw it again")
    if abs(mended.area - outline.area) > AREA_TOLERANCE * outline.area:
        raise ParamsError("the geometry crosses itself, and mending it would change its area; draw it again")
    kept: Outline = mended
    return kept


def _mendable(outline: Outline) -> bool:
    """Whether mending takes no longer than its size lets expect."""
    if shapely.get_num_coordinates(outline) > MOST_MENDABLE:
        return False
    rings = shapely.get_rings(shapely.get_parts(outline))
    places = [shapely.get_coordinates(ring) for ring in rings]
    sides: Any = shapely.linestrings(np.concatenate([np.stack([one[:-1], one[1:]], axis=1) for one in places]))
    meetings: int = (
        shapely.STRtree(sides).query(sides, predicate="intersects").shape[1]
    )  # each side with itself, two others
    return (meetings - 3 * len(sides)) / 2 <= MOST_CROSSINGS


def area_of(outline: Outline, grid: Grid) -> float:
    """The area of an outline in m²; on the ellipsoid where coordinates are degrees."""
    if grid.crs.is_geographic:
        geod = pyproj.CRS.from_wkt(grid.crs.to_wkt()).get_geod()
        assert geod is not None  # a geographic CRS has an ellipsoid
        return abs(float(geod.geometry_area_perimeter(outline)[0]))
    return float(outline.area) * grid.metre**2
