"""Inventory as mapped by a geologist: smoothed and shifted outlines, some missed."""

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

# Smaller landslides may be missed, or merged with a neighbour.
_SMALL_LANDSLIDE_M2 = 5_000.0
_SHIFT_DEVIATION_METRES = 5.0  # standard deviation in each direction
_MERGE_DISTANCE_METRES = 30.0
_MIN_AREA_M2 = 500.0  # of polygons and holes that are drawn


def draw_inventory(landslides: Landslides, transform: Affine, rng: np.random.Generator) -> tuple[Polygon, ...]:
    """Return valid polygons of the landslides that were mapped."""
    drawn = []
    for outline in _outlines(landslides.label, transform):
        if outline.area < _SMALL_LANDSLIDE_M2 and rng.random() < 0.2:
            continue
        smooth = outline.buffer(15).buffer(-27).buffer(13).simplify(3)
        if smooth.is_empty:
            smooth = outline.buffer(15).buffer(-15).simplify(3)
        east, north = rng.normal(0, _SHIFT_DEVIATION_METRES, 2)
        drawn.append(affinity.translate(smooth, east, north))
    return tuple(part for whole in _merge(drawn) for part in _polygons(whole))


def _outlines(label: NDArray[np.int32], transform: Affine) -> list[BaseGeometry]:
    """Return the exact outline of each landslide, in the order of their numbers."""
    parts: dict[int, list[BaseGeometry]] = {}
    for geometry, number in shapes(label, mask=label > 0, connectivity=8, transform=transform):
        parts.setdefault(int(number), []).append(make_valid(to_geometry(geometry)))
    return [union_all(parts[number]) for number in sorted(parts)]


def _merge(drawn: list[BaseGeometry]) -> list[BaseGeometry]:
    """Merge small landslides with a neighbour."""
    merged: list[BaseGeometry] = list(drawn)
    tree = STRtree(drawn)
    for number, outline in enumerate(drawn):
        if outline.area >= _SMALL_LANDSLIDE_M2:
            continue
        near = [
            other
            for other in sorted(tree.query(outline, predicate="dwithin", distance=_MERGE_DISTANCE_METRES))
            if other != number
        ]
        if near and not merged[near[0]].is_empty:
            both = union_all(
                [merged[near[0]].buffer(_MERGE_DISTANCE_METRES / 2), outline.buffer(_MERGE_DISTANCE_METRES / 2)]
            ).buffer(-_MERGE_DISTANCE_METRES / 2)
            merged[near[0]], merged[number] = both, Polygon()
    return merged


def _polygons(geometry: BaseGeometry) -> list[Polygon]:
    """Return the polygons of a geometry without small parts and small holes."""
    parts = getattr(make_valid(geometry), "geoms", [make_valid(geometry)])
    return [
        Polygon(part.exterior, [hole for hole in part.interiors if Polygon(hole).area > _MIN_AREA_M2])
        for part in parts
        if isinstance(part, Polygon) and part.area > _MIN_AREA_M2
    ]
