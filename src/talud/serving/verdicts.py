"""The review of a map: what people say of its landslides, outlines that they redrew, and landslides that they drew."""

from __future__ import annotations

import json
import tempfile
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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
from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from talud.data.inventory import polygonal
from talud.errors import ParamsError, SourceError
from talud.grid import Grid
from talud.inference.polygons import GEOPACKAGE, UTC, write_layer
from talud.inference.products import Products
from talud.raster import reading
from talud.serving.catalogue import WGS84, Stamp, stamp
from talud.serving.database import Database, VerdictRow, now

Outline = shapely.Polygon | shapely.MultiPolygon
Word = Literal["unreviewed", "accepted", "rejected"]
MOST_VERTICES = 100_000
MOST_RINGS = 500  # of an outline: whether one lies within another is asked of each pair
MOST_MENDABLE = 1_000  # vertices of an outline that is mended, whose crossings are counted first
MOST_CROSSINGS = 100  # of such an outline: hundreds of vertices can cross in thousands of places, which takes minutes
AREA_TOLERANCE = 0.01  # of an outline's area: as much may mending it change, as when an inventory is imported
_DECIMALS = 7  # of degrees: 1 cm
_KEPT = 8  # maps whose polygons are kept in memory
_NUMBERS = ("area_m2", "mean_probability", "maximum_probability", "mean_slope_degrees")  # of a polygon, where known

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


@dataclass(frozen=True)
class Verdict:
    """What somebody said of a polygon.

    Attributes:
        polygon: its id.
        verdict: of the reviewer.
        reviewer: their name.
        reviewed: when.
        outline: in the CRS of the map, where they drew one.
        area: of that, in m².
    """

    polygon: str
    verdict: Word
    reviewer: str
    reviewed: datetime
    outline: Outline | None = None
    area: float | None = None


@dataclass(frozen=True)
class VerdictStore:
    """The verdicts of a service; each is written by one statement, so two reviewers cannot mix theirs."""

    database: Database

    def all(self, job: str) -> dict[str, Verdict]:
        """Those on a job's map, by polygon, the earliest first."""
        chosen = select(VerdictRow).where(VerdictRow.job == job).order_by(VerdictRow.reviewed, VerdictRow.polygon)
        with Session(self.database.engine) as session:
            return {row.polygon: _verdict(row) for row in session.scalars(chosen)}

    def get(self, job: str, polygon: str) -> Verdict | None:
        """That on a polygon."""
        with Session(self.database.engine) as session:
            row = session.get(VerdictRow, (job, polygon))
            return _verdict(row) if row else None

    def say(self, job: str, verdict: Verdict) -> None:
        """Write what is said of a polygon; an outline that was drawn before stays where none is given."""
        values = _values(verdict)
        insert = (postgresql if self.database.engine.dialect.name == "postgresql" else sqlite).insert(VerdictRow)
        written = insert.values(job=job, **values).on_conflict_do_update(index_elements=["job", "polygon"], set_=values)
        with Session(self.database.engine) as session, session.begin():
            session.execute(written)

    def change(self, job: str, verdict: Verdict) -> bool:
        """Likewise, but only where something was said before; False where nothing was."""
        changed = update(VerdictRow).where(VerdictRow.job == job, VerdictRow.polygon == verdict.polygon)
        with Session(self.database.engine) as session, session.begin():
            return bool(session.execute(changed.values(**_values(verdict))).rowcount)  # type: ignore[attr-defined]

    def forget(self, job: str, polygon: str) -> bool:
        """Take back what was said of a polygon; False where nothing was."""
        gone = delete(VerdictRow).where(VerdictRow.job == job, VerdictRow.polygon == polygon)
        with Session(self.database.engine) as session, session.begin():
            return bool(session.execute(gone).rowcount)  # type: ignore[attr-defined]


def _values(verdict: Verdict) -> dict[str, Any]:
    said = {
        "polygon": verdict.polygon,
        "verdict": verdict.verdict,
        "reviewer": verdict.reviewer,
        "reviewed": verdict.reviewed,
    }
    if verdict.outline is None:
        return said
    return said | {"geometry": shapely.geometry.mapping(verdict.outline), "area": verdict.area}


def _verdict(row: VerdictRow) -> Verdict:
    outline = shapely.geometry.shape(row.geometry) if row.geometry else None
    return Verdict(row.polygon, row.verdict, row.reviewer, row.reviewed, outline, row.area)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Landslides:
    """The landslides of a map, as the model drew them.

    Attributes:
        grid: of the map.
        tags: of the file.
        outlines: id → outline in the CRS of the map, in the order of the file.
        numbers: id → name → number, of those in `_NUMBERS` that the file holds.
        shown: id → outline as GeoJSON, WGS84.
    """

    grid: Grid
    tags: Mapping[str, str]
    outlines: Mapping[str, Outline]
    numbers: Mapping[str, Mapping[str, float | None]]
    shown: Mapping[str, str]


def landslides(products: Products) -> Landslides:
    """The landslides of a finished map.

    Raises:
        SourceError: its files are gone or damaged, or it has no place on Earth.
    """
    return _landslides(stamp(products.polygons), str(products.probability))


@cached(LRUCache(_KEPT), key=lambda stamp, _: stamp, condition=threading.Condition())
def _landslides(stamp: Stamp, probability: str) -> Landslides:
    grid = grid_of(probability)
    frame = _read(stamp[0], "landslides")
    ids = [str(number) for number in frame["id"]]
    names = [name for name in _NUMBERS if name in frame.columns]
    rows = frame[names].astype(object).where(frame[names].notna(), None).to_dict("records")
    return Landslides(
        grid,
        pyogrio.read_info(stamp[0], layer="landslides")["dataset_metadata"] or {},
        dict(zip(ids, frame.geometry, strict=True)),
        dict(zip(ids, rows, strict=True)),
        dict(zip(ids, _geojson(frame.geometry.to_numpy(), grid), strict=True)),
    )


def grid_of(raster: Path | str) -> Grid:
    """The grid of a map, which has a place on Earth.

    Raises:
        SourceError: it is gone, or has none.
    """
    with reading(Path(raster).name), rasterio.open(raster) as dataset:
        grid = Grid.of(dataset)
    if grid.local:
        raise SourceError("the map's coordinates have no place on Earth, so it cannot be reviewed on a map; use QGIS")
    return grid


def not_mapped(products: Products) -> str:
    """What a map leaves out and why, as a FeatureCollection of GeoJSON, WGS84.

    Raises:
        SourceError: its files are gone or damaged, or it has no place on Earth.
    """
    stamp(products.polygons)
    frame = _read(str(products.polygons), "not_mapped")
    shown = _geojson(frame.geometry.to_numpy(), grid_of(products.probability))
    return collection(
        feature(str(number), outline, {"reason": reason, "area_m2": area})
        for number, (outline, reason, area) in enumerate(zip(shown, frame["reason"], frame["area_m2"], strict=True), 1)
    )


def _read(path: str, layer: str) -> geopandas.GeoDataFrame:
    try:
        return pyogrio.read_dataframe(path, layer=layer)
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"{Path(path).name}: cannot be read: {' '.join(str(error).split())}") from error


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


def features(found: Landslides, verdicts: Mapping[str, Verdict], chosen: Iterable[str] | None = None) -> list[str]:
    """The landslides as features of GeoJSON, WGS84: those of the model, then those that were drawn.

    Args:
        found: by the model.
        verdicts: on them, and those that were drawn.
        chosen: ids of which features are made; default: all.
    """
    redrawn = {name: one for name, one in verdicts.items() if one.outline is not None}
    outlines = dict(zip(redrawn, _geojson([one.outline for one in redrawn.values()], found.grid), strict=True))
    ids = [*found.outlines, *drawn(found, verdicts)] if chosen is None else chosen
    return [
        feature(name, outlines.get(name) or found.shown[name], _properties(name, found, verdicts.get(name)))
        for name in ids
    ]


def drawn(found: Landslides, verdicts: Mapping[str, Verdict]) -> list[str]:
    """The ids of the landslides that were drawn, the earliest first."""
    return [name for name, one in verdicts.items() if one.outline is not None and name not in found.outlines]


def _properties(name: str, found: Landslides, verdict: Verdict | None) -> dict[str, Any]:
    by_model = name in found.outlines
    numbers = dict(found.numbers[name]) if by_model else dict.fromkeys(_NUMBERS[:3])
    if verdict and verdict.area is not None:
        numbers["area_m2"] = verdict.area
    return numbers | {
        "origin": "model" if by_model else "drawn",
        "verdict": verdict.verdict if verdict else "unreviewed",
        "redrawn": by_model and verdict is not None and verdict.outline is not None,
        "reviewed_by": verdict.reviewer if verdict else None,
        "reviewed_at": verdict.reviewed.isoformat() if verdict else None,
    }


def counts(found: Landslides, verdicts: Mapping[str, Verdict]) -> dict[str, float]:
    """How many of the model's landslides have each verdict; how many were drawn; and the area of what is accepted."""
    said = {name: verdicts[name] for name in found.outlines if name in verdicts}
    words = [one.verdict for one in said.values()]
    taken = accepted(found, verdicts)
    return {
        "unreviewed": len(found.outlines) - words.count("accepted") - words.count("rejected"),
        "accepted": words.count("accepted"),
        "rejected": words.count("rejected"),
        "drawn": len(drawn(found, verdicts)),
        "accepted_area_m2": sum(_properties(name, found, verdicts[name])["area_m2"] for name in taken),
    }


def accepted(found: Landslides, verdicts: Mapping[str, Verdict]) -> list[str]:
    """The ids of the model's landslides that are accepted, then of those that were drawn."""
    by_model = [name for name in found.outlines if name in verdicts and verdicts[name].verdict == "accepted"]
    return by_model + drawn(found, verdicts)


def geopackage(found: Landslides, verdicts: Mapping[str, Verdict]) -> bytes:
    """What is accepted, as a GeoPackage in the CRS of the map that `talud inventory import` takes.

    The same bytes for the same review.

    Raises:
        OutputError: it cannot be written.
    """
    names = accepted(found, verdicts)
    said = [verdicts[name] for name in names]
    outlines = [one.outline or found.outlines[name] for name, one in zip(names, said, strict=True)]
    probability = [found.numbers.get(name, {}).get("mean_probability") for name in names]
    columns: dict[str, NDArray[Any]] = {
        "origin": np.array(["model" if name in found.outlines else "drawn" for name in names], np.object_),
        "reviewed_by": np.array([one.reviewer for one in said], np.object_),
        "reviewed_at": np.array([one.reviewed.replace(tzinfo=None) for one in said], "datetime64[ms]"),
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
            crs=found.grid.crs.to_wkt(),
            geometry_type="MultiPolygon",
            promote_to_multi=True,
            dataset_metadata=dict(found.tags),
            dataset_options={"VERSION": GEOPACKAGE},
            gdal_tz_offsets={"reviewed_at": np.full(len(names), UTC)},
        )
        return path.read_bytes()


def new_id() -> str:
    """An id for a landslide that is drawn, which no map's number equals."""
    return str(uuid.uuid4())


def said(
    polygon: str, verdict: Word, reviewer: str, outline: Outline | None = None, area: float | None = None
) -> Verdict:
    """A verdict of this moment."""
    return Verdict(polygon, verdict, reviewer, now(), outline, area)


def feature(identity: str, outline: str, properties: Mapping[str, Any]) -> str:
    """A feature of GeoJSON, of which the geometry is text already."""
    words = json.dumps(properties, ensure_ascii=False, allow_nan=False)
    return f'{{"type":"Feature","id":{json.dumps(identity)},"geometry":{outline},"properties":{words}}}'


def collection(members: Iterable[str], **foreign: Any) -> str:
    """Features as a FeatureCollection, with other members."""
    rest = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in foreign.items())
    return f'{{"type":"FeatureCollection","features":[{",".join(members)}]{rest}}}'


def _geojson(outlines: Sequence[Any] | NDArray[np.object_], grid: Grid) -> list[str]:
    """Outlines as GeoJSON in longitude and latitude, rounded, outer rings anticlockwise (RFC 7946)."""
    moved = geopandas.GeoSeries(list(outlines), crs=grid.crs.to_wkt()).to_crs(WGS84).to_numpy()
    rounded = shapely.transform(shapely.orient_polygons(moved), lambda places: np.round(places, _DECIMALS))
    return [str(text) for text in shapely.to_geojson(rounded)]
