"""An inventory as a geologist draws it: smoothed, a little off, with small landslides merged or missed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine
from shapely import Polygon, affinity, make_valid, union_all
from shapely.geometry import shape as to_geometry
from shapely.geometry.base import BaseGeometry
from shapely.strtree import STRtree

from synthetic.landslides import Landslides

_TINY = 5_000.0  # m²: landslides that are easily overlooked or drawn as one with a neighbour
_OFF = 5.0  # metres: deviation of the shift in each direction
_NEAR = 30.0  # metres
_SMALLEST = 500.0  # m²: what is smaller is not drawn


def digitise(landslides: Landslides, transform: Affine, rng: np.random.Generator) -> tuple[Polygon, ...]:
    """Valid polygons, one a landslide that was seen."""
    drawn = []
    for outline in _outlines(landslides.label, transform):
        if outline.area < _TINY and rng.random() < 0.2:
            continue
        smooth = outline.buffer(15).buffer(-27).buffer(13).simplify(3)
        if smooth.is_empty:
            smooth = outline.buffer(15).buffer(-15).simplify(3)
        east, north = rng.normal(0, _OFF, 2)
        drawn.append(affinity.translate(smooth, east, north))
    return tuple(part for whole in _merge(drawn) for part in _polygons(whole))


def _outlines(label: NDArray[np.int32], transform: Affine) -> list[BaseGeometry]:
    """The exact outline of each landslide, in the order of their numbers."""
    parts: dict[int, list[BaseGeometry]] = {}
    for geometry, number in shapes(label, mask=label > 0, connectivity=8, transform=transform):
        parts.setdefault(int(number), []).append(make_valid(to_geometry(geometry)))
    return [union_all(parts[number]) for number in sorted(parts)]


def _merge(drawn: list[BaseGeometry]) -> list[BaseGeometry]:
    """Draw a tiny landslide as one with its neighbour."""
    merged: list[BaseGeometry] = list(drawn)
    tree = STRtree(drawn)
    for number, outline in enumerate(drawn):
        if outline.area >= _TINY:
            continue
        near = [other for other in sorted(tree.query(outline, predicate="dwithin", distance=_NEAR)) if other != number]
        if near and not merged[near[0]].is_empty:
            both = union_all([merged[near[0]].buffer(_NEAR / 2), outline.buffer(_NEAR / 2)]).buffer(-_NEAR / 2)
            merged[near[0]], merged[number] = both, Polygon()
    return merged


def _polygons(geometry: BaseGeometry) -> list[Polygon]:
    """The parts of a geometry that have an area, without small holes."""
    parts = getattr(make_valid(geometry), "geoms", [make_valid(geometry)])
    return [
        Polygon(part.exterior, [hole for hole in part.interiors if Polygon(hole).area > _SMALLEST])
        for part in parts
        if isinstance(part, Polygon) and part.area > _SMALLEST
    ]
