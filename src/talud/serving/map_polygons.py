"""Polygons of a map with their reviews, as GeoJSON and GeoPackage."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import geopandas
import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat
from pydantic.types import FailFast

from talud.data.inventory import extract_polygons
from talud.errors import ParamsError, SourceError
from talud.grid import Grid
from talud.products.polygons import GDAL_UTC, GEOPACKAGE_VERSION
from talud.products.rasters import Products
from talud.raster import translate_read_errors
from talud.serving.rasters import WGS84, FileStamp, file_stamp
from talud.serving.tables import Outline, Review
from talud.vector import open_vector, write_layer

MAX_VERTICES = 100_000
MAX_RINGS = 500  # of an outline: a validity check compares each pair of rings
# Limits for the repair of an outline: hundreds of vertices can cross in thousands of points, which takes minutes.
MAX_REPAIRABLE_VERTICES = 1_000
MAX_CROSSINGS = 100
MAX_AREA_CHANGE = 0.01  # largest share of an outline's area that a repair may change, as for the import of inventories
_DEGREE_DECIMALS = 7  # 1 cm
_CACHED_MAPS = 8  # maps whose polygons stay in memory
_MEASUREMENTS = ("area_m2", "mean_probability", "maximum_probability", "mean_slope_degrees")  # optional columns

Position = Annotated[list[FiniteFloat], Field(min_length=2, max_length=3), FailFast()]
Ring = Annotated[list[Position], Field(min_length=4), FailFast()]
Rings = Annotated[list[Ring], Field(min_length=1), FailFast()]


class PolygonGeometry(BaseModel):
    """GeoJSON polygon in longitude and latitude: outer ring, then holes."""

    type: Literal["Polygon"]
    coordinates: Rings


class MultiPolygonGeometry(BaseModel):
    """GeoJSON polygons that form one landslide."""

    type: Literal["MultiPolygon"]
    coordinates: Annotated[list[Rings], Field(min_length=1), FailFast()]


Geometry = Annotated[PolygonGeometry | MultiPolygonGeometry, Field(discriminator="type")]


@dataclass(frozen=True)
class MappedLandslides:
    """Landslides of a map as predicted by the model.

    Attributes:
        grid: grid of the map.
        tags: tags of the map's GeoPackage.
        outlines: id → outline in the CRS of the map, in the order of the file.
        measurements: id → name → number, for the names in `_MEASUREMENTS` that the file contains.
        geojson: id → outline as GeoJSON in WGS84.
    """

    grid: Grid
    tags: Mapping[str, str]
    outlines: Mapping[str, Outline]
    measurements: Mapping[str, Mapping[str, float | None]]
    geojson: Mapping[str, str]


def read_landslides(products: Products) -> MappedLandslides:
    """Return the landslides of a finished map.

    Raises:
        SourceError: the map's files are missing or damaged, or its CRS is not georeferenced.
    """
    return _read_landslides(file_stamp(products.polygons), str(products.probability))


@cached(LRUCache(_CACHED_MAPS), key=lambda stamp, _: stamp, condition=threading.Condition())
def _read_landslides(stamp: FileStamp, probability: str) -> MappedLandslides:
    grid = read_grid(probability)
    frame = _read_layer(stamp[0], "landslides")
    with open_vector(stamp[0]) as whole:
        stated = pyogrio.read_info(whole, layer="landslides")["dataset_metadata"] or {}
    ids = [str(number) for number in frame["id"]]
    names = [name for name in _MEASUREMENTS if name in frame.columns]
    rows = frame[names].astype(object).where(frame[names].notna(), None).to_dict("records")
    return MappedLandslides(
        grid,
        stated,
        dict(zip(ids, frame.geometry, strict=True)),
        dict(zip(ids, rows, strict=True)),
        dict(zip(ids, _geojson(frame.geometry.to_numpy(), grid), strict=True)),
    )


def read_grid(raster: Path | str) -> Grid:
    """Return the grid of a georeferenced map.

    Raises:
        SourceError: the file is missing, or its CRS is not georeferenced.
    """
    with translate_read_errors(Path(raster).name), rasterio.open(raster) as dataset:
        grid = Grid.of(dataset)
    if grid.is_local:
        raise SourceError("the map has local coordinates without a location on Earth; review it in QGIS instead")
    return grid


def read_not_mapped(products: Products) -> str:
    """Return the unmapped parts and their reasons as GeoJSON in WGS84.

    Raises:
        SourceError: the map's files are missing or damaged, or its CRS is not georeferenced.
    """
    file_stamp(products.polygons)
    frame = _read_layer(str(products.polygons), "not_mapped")
    shown = _geojson(frame.geometry.to_numpy(), read_grid(products.probability))
    return feature_collection(
        geojson_feature(str(number), outline, {"reason": reason, "area_m2": area})
        for number, (outline, reason, area) in enumerate(zip(shown, frame["reason"], frame["area_m2"], strict=True), 1)
    )


def _read_layer(path: str, layer: str) -> geopandas.GeoDataFrame:
    try:
        with open_vector(path) as whole:
            return pyogrio.read_dataframe(whole, layer=layer)
    except SourceError as error:
        raise SourceError(str(error).replace(path, Path(path).name)) from error


def geojson_features(
    landslides: MappedLandslides, reviews: Mapping[str, Review], ids: Iterable[str] | None = None
) -> list[str]:
    """Return landslides as GeoJSON features in WGS84, mapped ones first.

    Args:
        landslides: landslides of the map.
        reviews: reviews of mapped and drawn landslides, by id.
        ids: ids of the landslides to return; default: all.
    """
    redrawn = {name: one for name, one in reviews.items() if one.geometry is not None}
    outlines = dict(zip(redrawn, _geojson([one.geometry for one in redrawn.values()], landslides.grid), strict=True))
    ids = [*landslides.outlines, *drawn_ids(landslides, reviews)] if ids is None else ids
    return [
        geojson_feature(
            name, outlines.get(name) or landslides.geojson[name], _properties(name, landslides, reviews.get(name))
        )
        for name in ids
    ]


def drawn_ids(landslides: MappedLandslides, reviews: Mapping[str, Review]) -> list[str]:
    """Return the ids of the drawn landslides, oldest first."""
    return [name for name, one in reviews.items() if one.geometry is not None and name not in landslides.outlines]


def _properties(polygon: str, landslides: MappedLandslides, review: Review | None) -> dict[str, Any]:
    by_model = polygon in landslides.outlines
    numbers = dict(landslides.measurements[polygon]) if by_model else dict.fromkeys(_MEASUREMENTS[:3])
    if review and review.area is not None:
        numbers["area_m2"] = review.area
    return numbers | {
        "origin": "model" if by_model else "drawn",
        "verdict": review.verdict if review else "unreviewed",
        "redrawn": by_model and review is not None and review.geometry is not None,
        "reviewed_by": review.reviewer if review else None,
        "reviewed_at": review.reviewed.isoformat() if review else None,
    }


def review_counts(landslides: MappedLandslides, reviews: Mapping[str, Review]) -> dict[str, float]:
    """Count the landslides by verdict, and sum the accepted area."""
    reviewed = {name: reviews[name] for name in landslides.outlines if name in reviews}
    verdicts = [one.verdict for one in reviewed.values()]
    accepted = accepted_ids(landslides, reviews)
    return {
        "unreviewed": len(landslides.outlines) - verdicts.count("accepted") - verdicts.count("rejected"),
        "accepted": verdicts.count("accepted"),
        "rejected": verdicts.count("rejected"),
        "drawn": len(drawn_ids(landslides, reviews)),
        "accepted_area_m2": sum(_properties(name, landslides, reviews[name])["area_m2"] for name in accepted),
    }


def accepted_ids(landslides: MappedLandslides, reviews: Mapping[str, Review]) -> list[str]:
    """Return the ids of the accepted landslides, mapped ones first."""
    by_model = [name for name in landslides.outlines if name in reviews and reviews[name].verdict == "accepted"]
    return by_model + drawn_ids(landslides, reviews)


def to_geopackage(landslides: MappedLandslides, reviews: Mapping[str, Review]) -> bytes:
    """Return the accepted landslides as a GeoPackage in the map's CRS.

    `talud inventory import` reads the file. Equal reviews give equal bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    names = accepted_ids(landslides, reviews)
    accepted = [reviews[name] for name in names]
    outlines = [one.geometry or landslides.outlines[name] for name, one in zip(names, accepted, strict=True)]
    probability = [landslides.measurements.get(name, {}).get("mean_probability") for name in names]
    columns: dict[str, NDArray[Any]] = {
        "origin": np.array(["model" if name in landslides.outlines else "drawn" for name in names], np.object_),
        "reviewed_by": np.array([one.reviewer for one in accepted], np.object_),
        "reviewed_at": np.array([one.reviewed.replace(tzinfo=None) for one in accepted], "datetime64[ms]"),
        "mean_probability": np.array(probability, np.float64),
    }
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / "review.gpkg"
        write_layer(
            path,
            shapely.to_wkb(np.array(outlines, np.object_)),
            columns,
            driver="GPKG",
            layer="inventory",
            crs=landslides.grid.crs.to_wkt(),
            geometry_type="MultiPolygon",
            promote_to_multi=True,
            dataset_metadata=dict(landslides.tags),
            dataset_options={"VERSION": GEOPACKAGE_VERSION},
            gdal_tz_offsets={"reviewed_at": np.full(len(names), GDAL_UTC)},
        )
        return path.read_bytes()


def geojson_feature(identity: str, outline: str, properties: Mapping[str, Any]) -> str:
    """Return a GeoJSON feature with a serialised geometry."""
    words = json.dumps(properties, ensure_ascii=False, allow_nan=False)
    return f'{{"type":"Feature","id":{json.dumps(identity)},"geometry":{outline},"properties":{words}}}'


def feature_collection(members: Iterable[str], **foreign: Any) -> str:
    """Return a GeoJSON collection of serialised features."""
    rest = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in foreign.items())
    return f'{{"type":"FeatureCollection","features":[{",".join(members)}]{rest}}}'


def _geojson(outlines: Sequence[Any] | NDArray[np.object_], grid: Grid) -> list[str]:
    """Serialise outlines as GeoJSON (RFC 7946) in WGS84."""
    moved = geopandas.GeoSeries(list(outlines), crs=grid.crs.to_wkt()).to_crs(WGS84).to_numpy()
    rounded = shapely.transform(shapely.orient_polygons(moved), lambda positions: np.round(positions, _DEGREE_DECIMALS))
    return [str(text) for text in shapely.to_geojson(rounded)]


def parse_outline(geometry: PolygonGeometry | MultiPolygonGeometry, grid: Grid) -> Outline:
    """Convert a client's geometry to valid polygons of a map.

    A geometry that crosses itself is repaired if that hardly changes its area.

    Raises:
        ParamsError: the geometry is too complex, empty, not repairable, or outside the map.
    """
    parts = [geometry.coordinates] if geometry.type == "Polygon" else geometry.coordinates
    vertices = sum(len(ring) for rings in parts for ring in rings)
    if vertices > MAX_VERTICES:
        raise ParamsError(f"the geometry has {vertices:,} vertices, and the limit is {MAX_VERTICES:,}; simplify it")
    if sum(map(len, parts)) > MAX_RINGS:
        raise ParamsError(f"the geometry has more than {MAX_RINGS} rings; split it into several landslides")
    drawn = [shapely.Polygon(_drop_heights(rings[0]), [_drop_heights(ring) for ring in rings[1:]]) for rings in parts]
    if (np.abs(shapely.get_coordinates(drawn)) > (180, 90)).any():  # bounds would not include holes
        raise ParamsError("the geometry is not in longitude and latitude (degrees, WGS84)")
    moved = geopandas.GeoSeries([drawn[0] if len(drawn) == 1 else shapely.MultiPolygon(drawn)], crs=WGS84).to_crs(
        grid.crs.to_wkt()
    )
    beyond = ParamsError("the geometry extends beyond the map; draw inside the map")
    if not np.isfinite(shapely.get_coordinates(moved.iloc[0])).all():
        raise beyond
    outline = _repaired(moved.iloc[0])
    slack = grid.resolution  # for outlines along the edge of the map, whose degrees were rounded
    if not shapely.box(*grid.bounds).buffer(slack).covers(outline):
        raise beyond
    return outline


def _drop_heights(ring: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(position[0], position[1]) for position in ring]


def _repaired(outline: Outline) -> Outline:
    if shapely.is_valid(outline):
        repaired: Any = outline
    else:
        repaired = extract_polygons(outline) if _is_repairable(outline) else None
    if repaired is None or not repaired.area > 0:
        raise ParamsError("the geometry crosses itself or has no area; draw it again")
    if abs(repaired.area - outline.area) > MAX_AREA_CHANGE * outline.area:
        raise ParamsError("the geometry crosses itself, and a repair would change its area; draw it again")
    result: Outline = repaired
    return result


def _is_repairable(outline: Outline) -> bool:
    """Check if an outline can be repaired quickly.

    The numbers of its vertices and crossings are limited.
    """
    if shapely.get_num_coordinates(outline) > MAX_REPAIRABLE_VERTICES:
        return False
    rings = shapely.get_rings(shapely.get_parts(outline))
    positions = [shapely.get_coordinates(ring) for ring in rings]
    sides: Any = shapely.linestrings(np.concatenate([np.stack([one[:-1], one[1:]], axis=1) for one in positions]))
    intersections: int = shapely.STRtree(sides).query(sides, predicate="intersects").shape[1]
    # Each side intersects itself and its two neighbours.
    return (intersections - 3 * len(sides)) / 2 <= MAX_CROSSINGS


def outline_area(outline: Outline, grid: Grid) -> float:
    """Return the area of an outline in m², for degrees on the ellipsoid."""
    if grid.crs.is_geographic:
        geod = pyproj.CRS.from_wkt(grid.crs.to_wkt()).get_geod()
        assert geod is not None  # a geographic CRS has an ellipsoid
        return abs(float(geod.geometry_area_perimeter(outline)[0]))
    return float(outline.area) * grid.metres_per_unit**2
