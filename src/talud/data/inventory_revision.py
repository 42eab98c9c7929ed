"""Replacement of an inventory by a corrected one.

The corrected inventory contains all landslides of the area. They replace the features that count there: those that
touch the area's grid and match its `inventory_filter`. All other features in the file are kept, since another area may
use them.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError

from talud.data import inventory_columns, sources
from talud.data.inventory import Polygons, check_coordinates, extract_polygons, find_polygon_layer
from talud.data.resampling import open_sources
from talud.data.stack_spec import spec_of_area
from talud.errors import OutputError, SourceError
from talud.files import atomic_replace_all
from talud.grid import Grid
from talud.params import Area
from talud.project import Project
from talud.source_files import fingerprint
from talud.vector import merge_pending_edits, open_vector, plain_path

MAX_AREA_CHANGE = 0.01  # share of a polygon's area by which repairing it may change the area
SAME_OUTLINE_METRES = 0.001  # largest distance of equal outlines; editing in another CRS moves them by less
_MAX_FEATURES_IN_ERROR = 5  # largest number of features that an error names
_DRIVERS = {".gpkg": "GPKG", ".shp": "ESRI Shapefile", ".geojson": "GeoJSON", ".json": "GeoJSON"}
_SHAPEFILE_SUFFIXES = (".shp", ".shx", ".dbf", ".prj", ".cpg")
_SHAPEFILE_INDEX_SUFFIXES = (".qix", ".sbn", ".sbx")  # spatial indexes, which are out of date after a replacement


@dataclass(frozen=True)
class PolygonTotals:
    """Number of polygons and their area in m².

    For changed polygons the area is the increase, which may be negative.
    """

    polygons: int
    area: float


@dataclass(frozen=True)
class Revision:
    """Result of a correction.

    Attributes:
        path: path of the inventory.
        before: polygons that counted in the area before.
        after: polygons that count now.
        added: new polygons that overlap no old one.
        removed: old polygons that overlap no new one.
        changed: new polygons that are paired with an old one they overlap, and have another outline.
        unchanged: polygons with the same outline.
        repaired: numbers (fid) of corrected features whose polygons were invalid and have been repaired.
        outside: number of corrected polygons outside the area's grid, which are ignored.
        filtered: number of corrected features that the area's inventory_filter excludes, which are ignored.
        renamed: columns that the inventory cannot store under their name: old name → new name.
        written: whether the file was replaced; false if neither outlines nor attributes have changed.
    """

    path: Path
    before: PolygonTotals
    after: PolygonTotals
    added: PolygonTotals
    removed: PolygonTotals
    changed: PolygonTotals
    unchanged: PolygonTotals
    repaired: tuple[int, ...]
    outside: int
    filtered: int
    renamed: dict[str, str]
    written: bool


def revise_inventory(project: Project, name: str, edits: Path) -> Revision:
    """Replace the inventory of an area by a correction.

    After an error the present one is unchanged. The file keeps its name, format, layer, CRS and other layers. It is
    replaced, never modified in place, since DVC may have made it a link into its cache. Features with the same outline
    keep the attributes that the correction does not state.

    Args:
        project: the project.
        name: name of the area.
        edits: path of a vector file with all landslides of the area.

    Raises:
        ParamsError: The area is unknown.
        SourceError: The area has no inventory; a source is missing; or the corrected file cannot be read, has no CRS,
            is in another place, or contains a feature without a polygon that can be repaired.
        OutputError: The inventory cannot be written, or another program has it open.
    """
    area = project.params.area(name)
    path = _inventory(project, name, area)
    with open_sources(spec_of_area(project, name)) as source_stack:
        grid = source_stack.grid
    known = fingerprint(path)
    current, counts = _read(path, area.inventory_filter)
    corrected, valid = _read(edits, area.inventory_filter)
    filtered, corrected = int((~valid).sum()), corrected[valid]
    corrected, mended = _repair(edits, corrected)
    reserved = () if path.suffix.lower() != ".gpkg" else inventory_columns.key_and_geometry_options(path).values()
    corrected, renamed = inventory_columns.fit_columns(edits, corrected, current, path.suffix.lower(), reserved)
    corrected = corrected.to_crs(current.crs)
    inside, here = _touches_grid(corrected, grid), counts & _touches_grid(current, grid)
    if not inside.any():
        place = Polygons.read(edits, "inventory", grid.crs, area.inventory_filter).find_misplacement(grid)
        clause = f"; {place.explanation}" if place else ""
        raise SourceError(f"{edits}: none of its {len(inside)} polygons is in area '{name}'{clause}")
    old, new = current[here].reset_index(drop=True), corrected[inside].reset_index(drop=True)
    pairs = _pair_polygons(_project_polygons(old, grid), _project_polygons(new, grid))
    frame = _join_features(current[~here], _carry_attributes_over(old, new, pairs), current)
    written = _replace(path, frame, current, grid, area.inventory_filter, len(new), known)
    return Revision(path, *_total(old, new, pairs, grid), mended, int((~inside).sum()), filtered, renamed, written)


def _inventory(project: Project, name: str, area: Area) -> Path:
    folder = project.folder(area)
    path = sources.find_sources(folder, area.files).get("inventory")
    if path is None:
        raise SourceError(f"{folder}: area '{name}' has no inventory to correct; put it there as inventory.gpkg")
    if path.suffix.lower() not in _DRIVERS:
        raise SourceError(
            f"{path}: inventories of this format can be read but not written; convert it: ogr2ogr {path.stem}.gpkg "
            f"{path.name}"
        )
    return path


def _read(path: Path, where: str | None) -> tuple[geopandas.GeoDataFrame, NDArray[np.bool_]]:
    """Read all features, and mark those that count.

    Geometries are two-dimensional; integers allow missing values.
    """
    with _reading(path, where) as whole:
        layer = find_polygon_layer(path, "inventory")
        frame = inventory_columns.read_frame(whole, layer)
        if not isinstance(frame, geopandas.GeoDataFrame):
            raise SourceError(f"{path}: has no polygons")
        counts = np.ones(len(frame), bool)
        if where:
            chosen = pyogrio.read_dataframe(whole, layer=layer, where=where, fid_as_index=True)
            counts = frame.index.isin(chosen.index)
    check_coordinates(path, frame)
    frame = frame.rename_geometry("geometry") if frame.geometry.name != "geometry" else frame
    frame["geometry"] = shapely.force_2d(frame.geometry.to_numpy())
    return frame, counts


@contextmanager
def _reading(path: Path, where: str | None) -> Iterator[Path]:
    """Open a vector file and translate errors of OGR."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    clause = f" with the area's inventory_filter {where!r}" if where else ""
    with open_vector(path, f" as polygons{clause}") as whole, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # OGR's warnings; the same is checked here
        warnings.filterwarnings("ignore", "Could not parse column", UserWarning)  # the column stays text
        yield whole


def _repair(path: Path, frame: geopandas.GeoDataFrame) -> tuple[geopandas.GeoDataFrame, tuple[int, ...]]:
    """Return valid polygons and the numbers of repaired ones.

    Raises:
        SourceError: A feature is not a polygon, or repairing it would change its area by more than `MAX_AREA_CHANGE`.
    """
    raw = frame.geometry.to_numpy()
    areal = np.isin(shapely.get_type_id(raw), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    areal &= ~shapely.is_empty(raw) & np.isfinite(shapely.bounds(raw)).all(axis=1)
    _refuse_features(path, frame.index[~areal], "not a polygon, or empty; draw it again, or delete it")
    invalid = ~shapely.is_valid(raw)
    mended = raw.copy()
    mended[invalid] = [extract_polygons(geometry) for geometry in raw[invalid]]
    # Uniting overlapping parts is no change of area, so each part is compared with its own repair.
    before = np.array([_area_of_parts(geometry) for geometry in raw[invalid]])
    after = np.array([_area_of_parts(geometry, extract_polygons) for geometry in raw[invalid]])
    kept = np.abs(after - before) <= MAX_AREA_CHANGE * before
    _refuse_features(
        path, frame.index[invalid][~kept], "crosses itself, and repairing it would change its area; draw it again"
    )
    return frame.assign(geometry=mended), tuple(int(number) for number in frame.index[invalid])


def _area_of_parts(
    geometry: shapely.Geometry, repair: Callable[[shapely.Geometry], shapely.Geometry | None] = lambda part: part
) -> float:
    """Return the summed area of a polygon's repaired parts."""
    return float(np.nansum(shapely.area([repair(part) for part in shapely.get_parts(geometry)])))


def _refuse_features(path: Path, numbers: Sequence[int], why: str) -> None:
    if len(numbers):
        named = ", ".join(str(number) for number in numbers[:_MAX_FEATURES_IN_ERROR])
        more = f" and {len(numbers) - _MAX_FEATURES_IN_ERROR} more" if len(numbers) > _MAX_FEATURES_IN_ERROR else ""
        raise SourceError(
            f"{path}: feature{'s' if len(numbers) > 1 else ''} {named}{more}: {why}; nothing was imported"
        )


def _project_polygons(frame: geopandas.GeoDataFrame, grid: Grid) -> NDArray[np.object_]:
    """Return valid polygons in a grid's CRS, else None."""
    valid = geopandas.GeoSeries([extract_polygons(each) for each in frame.geometry], crs=frame.crs, index=frame.index)
    moved: NDArray[np.object_] = valid.to_crs(grid.crs.to_wkt()).to_numpy()
    return moved


def _touches_grid(frame: geopandas.GeoDataFrame, grid: Grid) -> NDArray[np.bool_]:
    touching: NDArray[np.bool_] = shapely.intersects(_project_polygons(frame, grid), shapely.box(*grid.bounds))
    return touching


@dataclass(frozen=True)
class _Pairs:
    """Pairs of old and new polygons by index."""

    new: NDArray[np.intp]
    old: NDArray[np.intp]
    same: NDArray[np.bool_]


def _pair_polygons(old: NDArray[np.object_], new: NDArray[np.object_]) -> _Pairs:
    """Pair polygons by decreasing intersection over union."""
    found, its = shapely.STRtree(old).query(new, predicate="intersects")
    common = shapely.area(shapely.intersection(new[found], old[its]))
    share = common / (shapely.area(new[found]) + shapely.area(old[its]) - common)
    taken: dict[int, int] = {}  # index of the old polygon → index of the new one
    paired: set[int] = set()
    for index in np.argsort(-share, kind="stable"):
        place, its_place = int(found[index]), int(its[index])
        if share[index] > 0 and place not in paired and its_place not in taken:
            taken[its_place] = place
            paired.add(place)
    theirs, mine = (np.array(list(places), np.intp) for places in (taken.keys(), taken.values()))
    moved = np.abs(shapely.bounds(new[mine]) - shapely.bounds(old[theirs])).max(axis=1, initial=0)
    same = np.asarray(moved <= SAME_OUTLINE_METRES)
    same[same] = (
        shapely.hausdorff_distance(new[mine[same]], old[theirs[same]]) <= SAME_OUTLINE_METRES
    )  # the costly question last
    return _Pairs(mine, theirs, same)


def _carry_attributes_over(
    old: geopandas.GeoDataFrame, new: geopandas.GeoDataFrame, pairs: _Pairs
) -> geopandas.GeoDataFrame:
    """Return the corrected features with attributes of unchanged ones.

    Features with the same outline keep the attributes that the correction does not state.
    """
    carried = old.iloc[pairs.old[pairs.same]].set_axis(pairs.new[pairs.same])
    joined = new.copy()
    joined.loc[carried.index, "geometry"] = carried.geometry
    for column in carried.columns.drop("geometry"):
        known = carried[column].reindex(new.index)
        joined[column] = new[column].where(new[column].notna(), known) if column in new.columns else known
    return joined


def _join_features(
    kept: geopandas.GeoDataFrame, new: geopandas.GeoDataFrame, current: geopandas.GeoDataFrame
) -> geopandas.GeoDataFrame:
    """Join the kept features and those of the correction.

    The columns of the present inventory come first.
    """
    names = [*current.columns, *new.columns.difference(current.columns, sort=False)]
    joined = {}
    for name in names:
        parts = [frame[name] for frame in (kept, new) if name in frame.columns and len(frame)]
        missing = len(kept) if name not in kept.columns else 0
        whole = pandas.concat(parts, ignore_index=True) if parts else pandas.Series([], dtype=object)
        joined[name] = whole.set_axis(range(missing, missing + len(whole))).reindex(range(len(kept) + len(new)))
    return geopandas.GeoDataFrame(joined, geometry="geometry", crs=current.crs)


def _replace(
    path: Path,
    frame: geopandas.GeoDataFrame,
    current: geopandas.GeoDataFrame,
    grid: Grid,
    where: str | None,
    expected: int,
    known: str,
) -> bool:
    """Replace an inventory's features; return whether they were different.

    Raises:
        OutputError: The file cannot be written, another program has it open, or its fingerprint is not `known`.
    """
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        made = Path(folder) / f"{path.stem}{path.suffix.lower()}"
        _write(made, frame, path)
        if _count_equal_features(_read(made, None)[0]) == _count_equal_features(current):
            return False
        found = len(Polygons.read(made, "inventory", grid.crs, where).within(grid).geometries)
        if found != expected:
            raise OutputError(
                f"{path}: would have {found} polygons in the area instead of {expected}; it was not changed"
            )
        suffixes = _SHAPEFILE_SUFFIXES if made.suffix == ".shp" else (made.suffix,)
        parts = {_sibling(path, suffix): made.with_suffix(suffix) for suffix in suffixes}
        parts = {target: part for target, part in parts.items() if part.exists()}
        merge_pending_edits(path)
        if fingerprint(path) != known:
            raise OutputError(f"{path}: another program changed it in the meantime; run the command again")
        with atomic_replace_all(*parts) as scratch:
            for part, target in zip(parts.values(), scratch, strict=True):
                shutil.copyfile(part, target)
    if made.suffix == ".shp":
        for suffix in _SHAPEFILE_INDEX_SUFFIXES:
            _sibling(path, suffix).unlink(missing_ok=True)
    return True


def _sibling(path: Path, suffix: str) -> Path:
    """Return the file with another suffix, in any case."""
    like = (other for other in path.parent.glob(f"{path.stem}.*") if other.suffix.lower() == suffix)
    return next(like, path.with_suffix(suffix))


def _write(made: Path, frame: geopandas.GeoDataFrame, path: Path) -> None:
    """Write features in the format of the inventory `path`.

    Its other layers are kept.
    """
    layer = find_polygon_layer(path, "inventory")
    options: dict[str, Any] = {"driver": _DRIVERS[made.suffix], "layer": layer}
    if made.suffix == ".gpkg":
        with open_vector(path) as whole:
            shutil.copyfile(whole, made)
        merge_pending_edits(made)
        kind = str(pyogrio.read_info(plain_path(made), layer=layer)["geometry_type"]).removesuffix(" Z")
        options |= inventory_columns.key_and_geometry_options(made)
        single = kind == "Polygon" and (frame.geom_type == "Polygon").all()
        polygons = {"geometry_type": "Polygon" if single else "MultiPolygon", "promote_to_multi": not single}
        options |= polygons if kind.endswith("Polygon") else {"geometry_type": "Unknown"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # such as shortened names in a Shapefile
            pyogrio.write_dataframe(frame, plain_path(made), **options)
    except (DataSourceError, DataLayerError, FeatureError, FieldError, GeometryError) as error:
        raise OutputError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error


def _count_equal_features(frame: geopandas.GeoDataFrame) -> Counter[tuple[object, ...]]:
    """Count equal features, by outline and attributes."""
    names = sorted(frame.columns.drop("geometry"))
    shapes = shapely.to_wkb(shapely.normalize([_single_part(each) for each in frame.geometry]))
    rows = zip(*(frame[name] for name in names), strict=True) if names else [()] * len(frame)
    stated = (tuple(str(pair) for pair in zip(names, row, strict=True) if pandas.notna(pair[1])) for row in rows)
    return Counter(zip(shapes, stated, strict=True))


def _single_part(geometry: shapely.Geometry | None) -> shapely.Geometry | None:
    """Return the only part of a multipolygon; other geometries unchanged."""
    parts = shapely.get_parts(geometry)
    return parts[0] if len(parts) == 1 else geometry


def _total(
    old: geopandas.GeoDataFrame, new: geopandas.GeoDataFrame, pairs: _Pairs, grid: Grid
) -> tuple[PolygonTotals, PolygonTotals, PolygonTotals, PolygonTotals, PolygonTotals, PolygonTotals]:
    """Return the totals of a correction's polygons.

    The totals cover polygons before and after the correction, and added, removed, changed and unchanged ones.
    """
    metre = float(grid.crs.linear_units_factor[1])
    was, now = (shapely.area(_project_polygons(frame, grid)) * metre**2 for frame in (old, new))
    removed, added = np.ones(len(was), bool), np.ones(len(now), bool)
    removed[pairs.old], added[pairs.new] = False, False
    other = ~pairs.same
    grown = now[pairs.new[other]].sum() - was[pairs.old[other]].sum()
    stays = now[pairs.new[pairs.same]]
    return (
        PolygonTotals(len(was), float(was.sum())),
        PolygonTotals(len(now), float(now.sum())),
        PolygonTotals(int(added.sum()), float(now[added].sum())),
        PolygonTotals(int(removed.sum()), float(was[removed].sum())),
        PolygonTotals(int(other.sum()), float(grown)),
        PolygonTotals(len(stays), float(stays.sum())),
    )
