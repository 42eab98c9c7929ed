"""Inventories with odd geometries in every format, and damaged ones."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import geopandas
import numpy as np
import shapely

from hostile_bytes import cut, flipped

UTM = "EPSG:32618"
SIDE_PIXELS = 48  # of the area
PIXEL_METRES = 12.5
LEFT, TOP = 400_000.0, 600_000.0
EXTENT = shapely.box(LEFT, TOP - SIDE_PIXELS * PIXEL_METRES, LEFT + SIDE_PIXELS * PIXEL_METRES, TOP)

Geometries = list[shapely.Geometry | None]
Draw = Callable[[np.random.Generator], Geometries]  # what a person sees as the landslides, in UTM
Write = Callable[[Path, Geometries], object]  # a folder in which the inventory is written
Make = Callable[[Path, np.random.Generator], object]


def star(chance: np.random.Generator, radius: float = 90) -> shapely.Polygon:
    """Return a polygon of 5 to 12 corners around a random centre of the area."""
    x, y = LEFT + chance.uniform(100, 500), TOP - chance.uniform(100, 500)
    angles = np.sort(chance.uniform(0, 2 * np.pi, int(chance.integers(5, 13))))
    radii = radius * chance.uniform(0.4, 1, len(angles))
    return shapely.Polygon(np.column_stack([x + radii * np.cos(angles), y + radii * np.sin(angles)])).buffer(0)


def box(left: float, top: float, width: float, height: float) -> shapely.Polygon:
    """Return a rectangle at an offset from the area's upper left corner.

    Offsets are in metres.
    """
    return shapely.box(LEFT + left, TOP - top - height, LEFT + left + width, TOP - top)


def stars(number: int) -> Draw:
    return lambda chance: [star(chance) for _ in range(number)]


def with_hole(chance: np.random.Generator) -> Geometries:
    left, top = chance.uniform(20, 100, 2)
    outer, inner = box(left, top, 300, 280), box(left + 60, top + 70, 120, 130)
    return [shapely.Polygon(outer.exterior.coords, [inner.exterior.coords])]


def overlapping_parts(chance: np.random.Generator) -> Geometries:
    shift = chance.uniform(20, 150)
    return [shapely.MultiPolygon([box(50, 50, 200, 200), box(50 + shift, 50 + shift, 200, 200)])]


def many_overlapping_parts(chance: np.random.Generator) -> Geometries:
    return [shapely.MultiPolygon([star(chance, 140) for _ in range(6)])]


def part_within_a_part(chance: np.random.Generator) -> Geometries:
    return [shapely.MultiPolygon([box(50, 50, 300, 300), box(120, 120, chance.uniform(50, 150), 100)])]


def part_in_the_hole_of_another(chance: np.random.Generator) -> Geometries:
    (ring,) = with_hole(chance)
    left, _, _, top = shapely.Polygon(ring.interiors[0]).bounds
    island = shapely.box(left + 20, top - 90, left + 90, top - 20)
    return [shapely.MultiPolygon([ring, island])]


def touching_parts(chance: np.random.Generator) -> Geometries:
    edge = chance.uniform(100, 200)
    return [shapely.MultiPolygon([box(50, 50, edge, 150), box(50 + edge, 50, 120, 150)])]


def bow_tie(chance: np.random.Generator) -> Geometries:
    x, y, size = LEFT + chance.uniform(50, 200), TOP - chance.uniform(50, 200), chance.uniform(100, 300)
    return [shapely.Polygon([(x, y), (x + size, y - size), (x + size, y), (x, y - size)])]


def repeated_points(chance: np.random.Generator) -> Geometries:
    points = np.repeat(np.asarray(star(chance).exterior.coords), 3, axis=0)
    return [shapely.Polygon(points)]


def with_spike(chance: np.random.Generator) -> Geometries:
    x = LEFT + 100 + chance.uniform(0, 50)
    points = [(x, TOP - 50), (x + 200, TOP - 50), (x + 400, TOP - 50), (x + 200, TOP - 50), (x + 200, TOP - 250)]
    return [shapely.Polygon([*points, (x, TOP - 250)])]


def with_height(chance: np.random.Generator) -> Geometries:
    return [shapely.force_3d(star(chance), 1500.0)]


def with_empty_and_missing(chance: np.random.Generator) -> Geometries:
    return [star(chance), shapely.Polygon(), None, star(chance)]


def twice_the_same(chance: np.random.Generator) -> Geometries:
    return [star(chance)] * 2


def partly_outside(chance: np.random.Generator) -> Geometries:
    return [box(-200, chance.uniform(50, 200), 350, 150), box(chance.uniform(400, 500), 400, 900, 900)]


def with_some_elsewhere(chance: np.random.Generator) -> Geometries:
    return [star(chance), shapely.transform(star(chance), lambda at: at + np.array([20_000, 5_000]))]


def thousands(chance: np.random.Generator) -> Geometries:
    centres = chance.uniform(20, 580, (3000, 2))
    return [box(x - 4, y - 4, 8, 8) for x, y in centres]


DRAWN: dict[str, Draw] = {
    "one": stars(1),
    "nine": stars(9),
    "hole": with_hole,
    "overlapping parts": overlapping_parts,
    "many overlapping parts": many_overlapping_parts,
    "part within a part": part_within_a_part,
    "part in a hole": part_in_the_hole_of_another,
    "touching parts": touching_parts,
    "bow tie": bow_tie,
    "repeated points": repeated_points,
    "spike": with_spike,
    "heights": with_height,
    "empty and missing": with_empty_and_missing,
    "twice": twice_the_same,
    "partly outside": partly_outside,
    "some elsewhere": with_some_elsewhere,
    "thousands": thousands,
}


def frame(geometries: Geometries, crs: str = UTM) -> geopandas.GeoDataFrame:
    """Return the geometries as features with a number and a name.

    They are transformed to the CRS.
    """
    made = geopandas.GeoDataFrame(
        {"number": range(len(geometries)), "name": [f"nº {n}" for n in range(len(geometries))]},
        geometry=list(geometries),
        crs=UTM,
    )
    return made.to_crs(crs)


def written(name: str, crs: str = UTM, **options: object) -> Write:
    """Return a function that writes the inventory through OGR.

    Arguments are the name of the file, its CRS and options of OGR.
    """

    def write(folder: Path, geometries: Geometries) -> None:
        frame(geometries, crs).to_file(folder / name, **options)

    return write


def shapefile_in_capitals(folder: Path, geometries: Geometries) -> None:
    frame(geometries).to_file(folder / "inventory.shp")
    for part in folder.glob("inventory.*"):
        part.rename(part.with_name(part.name.upper()))


def zipped_shapefile(folder: Path, geometries: Geometries) -> None:
    frame(geometries).to_file(folder / "inventory.shp")
    with zipfile.ZipFile(folder / "inventory.zip", "w") as archive:
        for part in sorted(folder.glob("inventory.*")):
            if part.suffix != ".zip":
                archive.write(part, part.name)
                part.unlink()


def geopackage_with_pending_edits(folder: Path, geometries: Geometries) -> Callable[[], None]:
    """Write a GeoPackage with pending edits; return a function that closes it.

    The first feature is in the file, and the rest is written by a connection that stays open, as QGIS does.
    """
    whole = folder / "whole.gpkg"
    frame(geometries).to_file(whole, layer="inventory")
    path = folder / "inventory.gpkg"
    frame(geometries[:1]).to_file(path, layer="inventory")
    with closing(sqlite3.connect(whole)) as source:
        rows = source.execute("SELECT fid, geom, number, name FROM inventory WHERE fid > 1").fetchall()
    whole.unlink()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    # GDAL's triggers call functions that SQLite alone lacks; QGIS has them.
    spatial = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'rtree%'"
    for (trigger,) in connection.execute(spatial).fetchall():
        connection.execute(f'DROP TRIGGER "{trigger}"')
    connection.executemany("INSERT INTO inventory (fid, geom, number, name) VALUES (?, ?, ?, ?)", rows)
    return connection.close


WRITERS: dict[str, Write] = {
    "gpkg": written("inventory.gpkg", layer="inventory"),
    "gpkg in degrees": written("inventory.gpkg", "EPSG:4326", layer="inventory"),
    "gpkg of another zone": written("inventory.gpkg", "EPSG:32617", layer="inventory"),
    "gpkg of another layer name": written("inventory.gpkg", layer="deslizamientos de 2015"),
    "shp": written("inventory.shp"),
    "shp in capitals": shapefile_in_capitals,
    "zipped shp": zipped_shapefile,
    "geojson": written("inventory.geojson", "EPSG:4326", COORDINATE_PRECISION=15),
    "geojson with a crs": written("inventory.geojson", "EPSG:32617", RFC7946="NO"),
    "fgb": written("inventory.fgb"),
    "kml": written("inventory.kml", "EPSG:4326", driver="KML"),
}
# OGR makes valid geometries, or another type, of these when it writes them, or the format cannot hold them.
UNLIKE_AS_WRITTEN = {
    ("kml", "empty and missing"),
    ("zipped shp", "part in a hole"),
    ("shp", "part in a hole"),
    ("shp in capitals", "part in a hole"),
    *((writer, drawn) for writer in ("shp", "shp in capitals", "zipped shp") for drawn in DRAWN if "part" in drawn),
}


def truth(geometries: Sequence[shapely.Geometry | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels whose centres are in a geometry, and doubtful ones.

    Doubtful centres are too near an edge to decide. Each point is tested against each polygon by the even-odd rule,
    without a rasteriser; overlaps of a ring with itself are therefore outside.
    """
    offsets = (np.arange(SIDE_PIXELS) + 0.5) * PIXEL_METRES
    xs, ys = np.meshgrid(LEFT + offsets, TOP - offsets)
    inside, near = np.zeros(xs.shape, bool), np.zeros(xs.shape, bool)
    points = shapely.points(xs, ys)
    for geometry in geometries:
        if geometry is None or geometry.is_empty:
            continue
        for part in shapely.get_parts(geometry):
            flat = shapely.force_2d(part)
            inside |= shapely.contains_xy(shapely.make_valid(flat), xs, ys)
            near |= shapely.distance(flat.boundary, points) < 0.05
    return inside, near


def document(content: object, name: str = "inventory.geojson") -> Make:
    """Return a function that writes a text, or JSON, in place of an inventory."""

    def make(folder: Path, chance: np.random.Generator) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")

    return make


def collection(*geometries: object, **members: object) -> dict[str, object]:
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    return {"type": "FeatureCollection", "features": features, **members}


def polygon(points: Sequence[Sequence[float]]) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [points]}


METRES = [[LEFT + 100, TOP - 100], [LEFT + 200, TOP - 100], [LEFT + 200, TOP - 200], [LEFT + 100, TOP - 100]]


def put(write: Write, geometries: Geometries) -> Make:
    def make(folder: Path, chance: np.random.Generator) -> None:
        write(folder, geometries)

    return make


def without_crs(folder: Path, chance: np.random.Generator) -> None:
    frame(stars(2)(chance)).to_file(folder / "inventory.shp")
    (folder / "inventory.prj").unlink()


def without_table_of_offsets(folder: Path, chance: np.random.Generator) -> None:
    frame(stars(2)(chance)).to_file(folder / "inventory.shp")
    (folder / "inventory.shp").write_bytes(b"")


def empty_archive(folder: Path, chance: np.random.Generator) -> None:
    with zipfile.ZipFile(folder / "inventory.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")


def of_another_place(crs: str) -> Make:
    """Return a function that labels coordinates of the area with a wrong CRS."""

    def make(folder: Path, chance: np.random.Generator) -> None:
        frame(stars(3)(chance)).set_crs(crs, allow_override=True).to_file(folder / "inventory.gpkg", layer="inventory")

    return make


REFUSED: dict[str, Make] = {
    "metres in a geojson without a crs": document(collection(polygon(METRES))),
    "metres in a geojson of points and polygons": document(
        collection({"type": "Point", "coordinates": METRES[0]}, polygon(METRES))
    ),
    "latitude before longitude": document(
        collection(polygon([[5.42, -75.9], [5.43, -75.9], [5.43, -75.91], [5.42, -75.9]]))
    ),
    "points": put(written("inventory.gpkg"), [shapely.Point(LEFT + 100, TOP - 100)]),
    "lines": put(written("inventory.gpkg"), [shapely.LineString(METRES)]),
    "no feature": put(written("inventory.gpkg"), []),
    "empty polygons": put(written("inventory.gpkg"), [shapely.Polygon()]),
    "a polygon without area": put(written("inventory.gpkg"), [shapely.Polygon([METRES[0], METRES[1], METRES[0]])]),
    "far away": put(written("inventory.gpkg"), [shapely.box(0, 0, 9, 9)]),
    "no CRS": without_crs,
    "degrees that are metres": of_another_place("EPSG:4326"),
    "another zone": of_another_place("EPSG:32633"),
    "an empty shapefile": without_table_of_offsets,
    "an archive of nothing": empty_archive,
    "an empty file": document("", "inventory.gpkg"),
    "an empty geojson": document(""),
    "text": document("landslides"),
    "an empty collection": document(collection()),
    "a list": document([1, 2, 3]),
    "null": document("null"),
    "a ring of two points": document(collection(polygon(METRES[:2]))),
    "coordinates of text": document(collection(polygon([["a", "b"], ["c", "d"], ["e", "f"], ["a", "b"]]))),
    "an unknown crs": document(collection(polygon(METRES), crs={"type": "name", "properties": {"name": "EPSG:1"}})),
    "nested a thousand deep": document('{"type":"GeometryCollection","geometries":[' * 1000 + "]}" * 1000),
    "entities in a KML": document(
        '<?xml version="1.0"?><!DOCTYPE k [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><kml>&b;</kml>',
        "inventory.kml",
    ),
}


def damaged(writer: str, name: str, way: str) -> Make:
    """Return a function that writes an inventory and damages its file.

    The file is cut short, or has some bits changed.
    """

    def make(folder: Path, chance: np.random.Generator) -> None:
        WRITERS[writer](folder, stars(3)(chance))
        path = folder / name
        path.write_bytes({"cut": cut, "flipped": flipped}[way](path.read_bytes(), chance))

    return make
