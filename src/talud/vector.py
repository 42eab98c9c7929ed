"""Vector files in their present state, read without writing beside them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyogrio
from shapely.errors import ShapelyError

from talud.errors import SourceError
from talud.geopackage import snapshot
from talud.vector_path import plain_path

ARCHIVES = frozenset({".zip", ".kmz"})
_FILES = frozenset({".gpkg", ".shp", ".geojson", ".json", ".fgb", ".kml", ".tab", ".mif"})
VECTOR_SUFFIXES = _FILES | ARCHIVES
# Unsupported vector formats: several files, written to when read, or without a driver in pyogrio's wheels.
OTHER_VECTOR_SUFFIXES = frozenset(
    {".dgn", ".dwg", ".dxf", ".gdb", ".geoparquet", ".gml", ".gpx", ".mdb", ".parquet", ".pmtiles", ".sqlite"}
    | {".topojson", ".wkt"}
)
SUPPORTED = (
    "GeoPackage (.gpkg), Shapefile (.shp, or zipped), GeoJSON, FlatGeobuf (.fgb), KML, KMZ and MapInfo (.tab, .mif)"
)


def refuse_other_format(path: Path) -> None:
    """Refuse a vector file whose format is not supported.

    Raises:
        SourceError: it is of such a format.
    """
    if path.suffix.lower() in OTHER_VECTOR_SUFFIXES:
        raise SourceError(
            f"{path}: polygons in this format are not read, but those of {SUPPORTED} are; convert it: ogr2ogr "
            f"{path.stem}.gpkg {path.name}"
        )


@contextmanager
def open_vector(path: str | Path, as_what: str = "") -> Iterator[Path]:
    """Yield the path at which pyogrio reads a vector file.

    It includes edits that are pending beside a GeoPackage.

    Args:
        path: the file.
        as_what: words that follow "cannot be read" in an error, such as " as polygons".

    Raises:
        SourceError: reading fails inside the block, or another program keeps writing to the file.
    """
    pyogrio.set_gdal_config_options({"GDAL_PAM_ENABLED": "NO"})  # GDAL would write NAME.aux.xml beside what it reads
    with snapshot(Path(path)) as current:
        whole = plain_path(current)
        if path_within := _within_archive(Path(path)):
            whole = Path(f"/vsizip/{{{whole.absolute()}}}/{path_within}")
        try:
            yield whole
        except (RuntimeError, ValueError, ShapelyError) as error:  # the last: of a ring that is not closed
            reason = " ".join(str(error).split()).replace(str(whole), str(path)).replace(str(current), str(path))
            raise SourceError(f"{path}: cannot be read{as_what}: {reason}") from error


def _within_archive(path: Path) -> str | None:
    """Return the name of the only vector file in an archive.

    None where the path is not an archive.

    Raises:
        SourceError: the archive is damaged, or holds no vector file, or several.
    """
    if path.suffix.lower() not in ARCHIVES or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as an archive: {error}") from error
    found = sorted(name for name in names if Path(name).suffix.lower() in _FILES)
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(f"{path}: holds {len(found)} vector files ({', '.join(found)}); keep one in it")
    held = ", ".join(names[:5]) or "nothing"
    raise SourceError(f"{path}: holds no vector file, but {held}; supported formats are {SUPPORTED}")
