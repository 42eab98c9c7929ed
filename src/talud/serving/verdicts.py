"""The review of a map: what people say of its landslides, outlines that they redrew, and landslides that they drew."""

from __future__ import annotations

import json
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import geopandas
import numpy as np
import pyogrio
import rasterio
import shapely
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, delete, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from talud.errors import SourceError
from talud.grid import Grid
from talud.products.polygons import GEOPACKAGE, UTC, write_layer
from talud.products.rasters import Products
from talud.raster import reading
from talud.serving.catalogue import WGS84, Stamp, stamp
from talud.serving.database import Database, JobRow, VerdictChangeRow, VerdictRow, now
from talud.serving.keys import Key
from talud.serving.outlines import Outline
from talud.serving.problems import RESULT_NOT_READY, Problem
from talud.vector import open_vector

Word = Literal["unreviewed", "accepted", "rejected"]
_DECIMALS = 7  # of degrees: 1 cm
_KEPT = 8  # maps whose polygons are kept in memory
_NUMBERS = ("area_m2", "mean_probability", "maximum_probability", "mean_slope_degrees")  # of a polygon, where known


@dataclass(frozen=True)
class Verdict:
    """What somebody said of a polygon.

    Attributes:
        polygon: its id.
        verdict: of the reviewer; "withdrawn" in the history alone.
        reviewer: their name.
        reviewed: when.
        outline: in the CRS of the map, where they drew one.
        area: of that, in m².
        key_id: of the API key with which it was said; None where it was said before keys had ids.
    """

    polygon: str
    verdict: Word | Literal["withdrawn"]
    reviewer: str
    reviewed: datetime
    outline: Outline | None = None
    area: float | None = None
    key_id: str | None = None


@dataclass(frozen=True)
class VerdictStore:
    """The verdicts of a service.

    Each is written by one statement, so two reviewers cannot mix theirs, and added to the history in the same
    transaction. Only the key that gave a verdict, and those with the scope admin, change it.
    """

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

    def history(self, job: str, polygon: str) -> tuple[Verdict, ...]:
        """Return all verdicts on a polygon, the earliest first."""
        chosen = select(VerdictChangeRow).where(VerdictChangeRow.job == job, VerdictChangeRow.polygon == polygon)
        with Session(self.database.engine) as session:
            return tuple(_verdict(row) for row in session.scalars(chosen.order_by(VerdictChangeRow.number)))

    def say(self, job: str, verdict: Verdict, key: Key) -> None:
        """Write what is said of a polygon; an outline that was drawn before stays where none is given.

        Raises:
            Problem: another key has reviewed it, or the map is gone.
        """
        values = _values(verdict, key)
        insert = (postgresql if self.database.engine.dialect.name == "postgresql" else sqlite).insert(VerdictRow)
        written = insert.values(job=job, **values).on_conflict_do_update(
            index_elements=["job", "polygon"], set_=values, where=_changeable(key)
        )
        with _writing(self.database, job) as session:
            if not session.execute(written).rowcount:  # type: ignore[attr-defined]
                raise _not_theirs(session, job, verdict.polygon)
            _record(session, job, verdict.polygon)

    def change(self, job: str, verdict: Verdict, key: Key) -> bool:
        """Likewise, but only where something was said before; False where nothing was.

        Raises:
            Problem: another key reviewed it, or the map is gone.
        """
        changed = update(VerdictRow).where(VerdictRow.job == job, VerdictRow.polygon == verdict.polygon)
        with _writing(self.database, job) as session:
            changed = changed.where(_changeable(key)).values(**_values(verdict, key))
            if session.execute(changed).rowcount:  # type: ignore[attr-defined]
                _record(session, job, verdict.polygon)
                return True
            if session.get(VerdictRow, (job, verdict.polygon)):
                raise _not_theirs(session, job, verdict.polygon)
            return False

    def withdraw(self, job: str, polygon: str, key: Key) -> bool:
        """Take back what was said of a polygon; False where nothing was.

        Raises:
            Problem: another key reviewed it, or the map is gone.
        """
        gone = delete(VerdictRow).where(VerdictRow.job == job, VerdictRow.polygon == polygon)
        with _writing(self.database, job) as session:
            if session.execute(gone.where(_changeable(key))).rowcount:  # type: ignore[attr-defined]
                said = _values(Verdict(polygon, "withdrawn", key.name, now()), key)
                session.add(VerdictChangeRow(job=job, **said))
                return True
            if session.get(VerdictRow, (job, polygon)):
                raise _not_theirs(session, job, polygon)
            return False


def _changeable(key: Key) -> ColumnElement[bool]:
    """Return the condition under which a key may change a verdict."""
    return true() if key.allows("admin") else VerdictRow.key_id == key.id


def _not_theirs(session: Session, job: str, polygon: str) -> Problem:
    reviewer = session.scalar(select(VerdictRow.reviewer).where(VerdictRow.job == job, VerdictRow.polygon == polygon))
    return Problem(
        403,
        f"{reviewer or 'another person'} reviewed landslide {polygon} with another key; only that key, or one with the "
        "scope admin, changes it",
    )


def _record(session: Session, job: str, polygon: str) -> None:
    """Add the present verdict on a polygon to its history."""
    row = session.get_one(VerdictRow, (job, polygon), populate_existing=True)
    names = ("job", "polygon", "verdict", "reviewer", "reviewed", "key_id", "geometry", "area")
    session.add(VerdictChangeRow(**{name: getattr(row, name) for name in names}))


@contextmanager
def _writing(database: Database, job: str) -> Iterator[Session]:
    """Lock a job while its review is written, so that it cannot be deleted.

    Raises:
        Problem: the job was dismissed or deleted.
    """
    # SQLite has no lock of a row; this write locks on both databases, and first, as in `JobStore.dismiss`.
    held = update(JobRow).where(JobRow.id == job, JobRow.status != "dismissed").values(status=JobRow.status)
    with Session(database.engine) as session, session.begin():
        if not session.execute(held).rowcount:  # type: ignore[attr-defined]
            raise Problem(404, "the job was dismissed, and its map is gone", RESULT_NOT_READY)
        yield session


def _values(verdict: Verdict, key: Key) -> dict[str, Any]:
    said = {
        "polygon": verdict.polygon,
        "verdict": verdict.verdict,
        "reviewer": verdict.reviewer,
        "reviewed": verdict.reviewed,
        "key_id": key.id,
    }
    if verdict.outline is None:
        return said
    return said | {"geometry": shapely.geometry.mapping(verdict.outline), "area": verdict.area}


def _verdict(row: VerdictRow | VerdictChangeRow) -> Verdict:
    outline = shapely.geometry.shape(row.geometry) if row.geometry else None
    return Verdict(
        row.polygon, row.verdict, row.reviewer, row.reviewed, outline, row.area, row.key_id  # type: ignore[arg-type]
    )  # fmt: skip


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
    with open_vector(stamp[0]) as whole:
        stated = pyogrio.read_info(whole, layer="landslides")["dataset_metadata"] or {}
    ids = [str(number) for number in frame["id"]]
    names = [name for name in _NUMBERS if name in frame.columns]
    rows = frame[names].astype(object).where(frame[names].notna(), None).to_dict("records")
    return Landslides(
        grid,
        stated,
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
        with open_vector(path) as whole:
            return pyogrio.read_dataframe(whole, layer=layer)
    except SourceError as error:
        raise SourceError(str(error).replace(path, Path(path).name)) from error


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
