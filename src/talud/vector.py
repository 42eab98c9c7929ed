"""Vector files, including pending edits of GeoPackages.

A program such as QGIS writes edits of a GeoPackage to `NAME.gpkg-wal` first, and SQLite merges them into `NAME.gpkg`
later. Copying or replacing only the main file loses these edits, or leaves them next to a file to which they do not
belong.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from talud.errors import OutputError, SourceError
from talud.text import first_line

# Suffixes, after a database's name, of the files that hold its pending edits.
PENDING_SUFFIXES = ("-wal", "-journal")
_MAGIC = b"SQLite format 3\0"
_WAL = b"\2\2"  # bytes 18 and 19 of a database in write-ahead mode
# Bytes of a database's header that change when a program opens it without an edit: journal mode, change counter with
# its copy, and SQLite version.
_VOLATILE = ((18, 20), (24, 28), (92, 100))
_COPY_ATTEMPTS = 20
_COPY_RETRY_SECONDS = 0.1
_LOCK_TIMEOUT_SECONDS = 0.5
# GDAL's clock is global to the process.
_GDAL_CLOCK_LOCK = threading.Lock()
# GDAL's clock is set to this time while a file is written, so that equal content gives equal bytes.
FIXED_DATE = "2000-01-01T00:00:00.000Z"

Columns = Mapping[str, NDArray[Any]]


def is_database(path: Path) -> bool:
    """Check if a file is an SQLite database."""
    return _header(path).startswith(_MAGIC)


@contextmanager
def snapshot(path: Path) -> Iterator[Path]:
    """Yield the path of a complete version of a file.

    Reading that path writes nothing next to the original. It is a copy in a temporary folder if edits are pending or
    reading in place would write; else it is the file itself.

    Raises:
        SourceError: Another program keeps writing to the file, or it is damaged.
    """
    if not is_database(path) or not (pending_files(path.resolve()) or _in_wal_mode(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        copy = Path(folder) / path.name
        _copy(path, copy)
        try:
            with closing(sqlite3.connect(copy)) as database:
                database.execute("SELECT count(*) FROM sqlite_master")  # rolls back unfinished edits
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise SourceError(f"{path}: cannot be read together with its pending edits: {error}") from error
        yield copy


def geopackage_checksum(path: Path) -> str:
    """Return an MD5 of a GeoPackage's content, including pending edits.

    It does not change when SQLite merges pending edits into the main file, or when a program opens and closes the file
    without an edit. It is therefore not the MD5 of the file's bytes.

    Raises:
        SourceError: Another program keeps writing to the file, or it is damaged.
    """
    with snapshot(path) as whole, whole.open("rb") as stream:
        header = bytearray(stream.read(100))
        for first, last in _VOLATILE:
            header[first:last] = bytes(last - first)
        found = hashlib.md5(header, usedforsecurity=False)
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def merge_pending_edits(path: Path) -> None:
    """Merge pending edits into a GeoPackage.

    A missing file, or one that is not a GeoPackage, is left unchanged.

    Raises:
        OutputError: Another program has the GeoPackage open, or there are pending edits but no GeoPackage.
    """
    if path.is_symlink() or not is_database(path):
        if left := pending_files(path.absolute()):
            raise OutputError(
                f"{path}: cannot be written: {left[0].name} holds pending edits of another file of that name; move it "
                "to another folder"
            )
        return
    if not (pending_files(path) or _in_wal_mode(path)):
        return
    in_use = f"{path}: is open in another program, QGIS for example; save its edits and close it there"
    try:
        address = f"{path.resolve().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=_LOCK_TIMEOUT_SECONDS)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
            (mode,) = database.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.Error as error:
        raise OutputError(in_use if "locked" in str(error) else f"{path}: cannot be replaced: {error}") from error
    if mode != "delete":
        raise OutputError(in_use)


def _header(path: Path) -> bytes:
    if not path.is_file():  # reading a pipe would block
        return b""
    try:
        with path.open("rb") as stream:
            return stream.read(100)
    except OSError:
        return b""


def _in_wal_mode(path: Path) -> bool:
    return _header(path)[18:20] == _WAL


def pending_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a database's pending edits."""
    return tuple(one for one in _beside(path) if one.is_file() and one.stat().st_size)


def _beside(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + suffix) for suffix in PENDING_SUFFIXES)


def _copy(path: Path, copy: Path) -> None:
    """Copy a database and its pending edits consistently.

    Raises:
        SourceError: Another program changed them at each attempt.
    """
    source = path.resolve()
    for _ in range(_COPY_ATTEMPTS):
        try:
            before = _state(source)
            for part, target in zip((source, *_beside(source)), (copy, *_beside(copy)), strict=True):
                target.unlink(missing_ok=True)
                if part.exists():
                    shutil.copyfile(part, target)
            if _state(source) == before:
                return
        except FileNotFoundError:  # deleted since it was listed
            pass
        time.sleep(_COPY_RETRY_SECONDS)
    raise SourceError(f"{path}: another program keeps writing to it; save and close it there, then retry")


def _state(path: Path) -> list[tuple[int, int, int]]:
    stats = [part.stat() for part in (path, *_beside(path)) if part.exists()]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in stats]


def write_layer(path: Path, geometry: NDArray[Any] | None, columns: Columns, **options: Any) -> None:
    """Write a layer with a fixed clock.

    Equal content gives equal bytes.

    Args:
        path: path of the file.
        geometry: geometries as WKB; None for a table without geometries.
        columns: values of each column by name.
        **options: further arguments of `pyogrio.raw.write`.

    Raises:
        OutputError: The layer cannot be written.
    """
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, GeometryError

    with _GDAL_CLOCK_LOCK:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": FIXED_DATE})
        try:
            pyogrio.raw.write(
                plain_path(path), geometry=geometry, field_data=list(columns.values()), fields=list(columns), **options
            )
        except (DataSourceError, DataLayerError, FeatureError, GeometryError) as error:
            raise OutputError(f"{path}: cannot be written: {first_line(error)}") from error
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def plain_path(path: Path) -> Path:
    """Return a path that pyogrio can open.

    pyogrio takes `!` for the end of an archive's path, and drops text that resembles part of a URL. A file with such a
    name is opened by a symbolic link in a temporary folder, which also contains links to the files that belong to it.
    """
    from pyogrio.util import vsi_path

    text = str(path)
    if vsi_path(text) in (text, f"/vsizip/{text}"):
        return path
    target = path.absolute()
    folder = _links() / hashlib.md5(os.fsencode(target), usedforsecurity=False).hexdigest()
    folder.mkdir(exist_ok=True)
    if vsi_path(f"/{path.name}") == f"/{path.name}":
        return _link(folder / "folder", target.parent) / path.name
    for file in target.parent.glob(f"{_literal(path.stem)}.*"):
        _link(folder / _plain_name(file.name), file)
    return folder / _plain_name(path.name)


@cache
def _links() -> Path:
    """Return a folder of links, removed at exit."""
    folder = tempfile.TemporaryDirectory(prefix="talud-")
    _held.append(folder)
    return Path(folder.name)


_held: list[tempfile.TemporaryDirectory[str]] = []


def _link(link: Path, target: Path) -> Path:
    with suppress(FileExistsError):
        link.symlink_to(target)
    return link


def _plain_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _literal(text: str) -> str:
    """Escape text for `glob`."""
    return re.sub(r"([*?\[])", r"[\1]", text)


ARCHIVE_SUFFIXES = frozenset({".zip", ".kmz"})
_FILES = frozenset({".gpkg", ".shp", ".geojson", ".json", ".fgb", ".kml", ".tab", ".mif"})
VECTOR_SUFFIXES = _FILES | ARCHIVE_SUFFIXES
# Unsupported vector formats: they have several files, change when they are read, or lack a driver in pyogrio's wheels.
OTHER_VECTOR_SUFFIXES = frozenset(
    {".dgn", ".dwg", ".dxf", ".gdb", ".geoparquet", ".gml", ".gpx", ".mdb", ".parquet", ".pmtiles", ".sqlite"}
    | {".topojson", ".wkt"}
)
SUPPORTED_FORMATS = (
    "GeoPackage (.gpkg), Shapefile (.shp, or zipped), GeoJSON, FlatGeobuf (.fgb), KML, KMZ and MapInfo (.tab, .mif)"
)


def check_supported_format(path: Path) -> None:
    """Check that a vector file's format is supported.

    Raises:
        SourceError: The format is not supported.
    """
    if path.suffix.lower() in OTHER_VECTOR_SUFFIXES:
        raise SourceError(
            f"{path}: this vector format is not supported; supported formats are {SUPPORTED_FORMATS}; convert it with: "
            f"ogr2ogr {path.stem}.gpkg {path.name}"
        )


@contextmanager
def open_vector(path: str | Path, as_what: str = "") -> Iterator[Path]:
    """Yield the path at which pyogrio reads a file.

    Args:
        path: path of the file.
        as_what: words that follow "cannot be read" in an error, such as " as polygons".

    Raises:
        SourceError: Reading fails in the block, or another program keeps writing to the file.
    """
    # Imported here, because most commands read no vector file.
    import pyogrio
    from shapely.errors import ShapelyError

    pyogrio.set_gdal_config_options({"GDAL_PAM_ENABLED": "NO"})  # else GDAL writes NAME.aux.xml
    with snapshot(Path(path)) as current:
        whole = plain_path(current)
        if path_within := _within_archive(Path(path)):
            whole = Path(f"/vsizip/{{{whole.absolute()}}}/{path_within}")
        try:
            yield whole
        except (RuntimeError, ValueError, ShapelyError) as error:  # ShapelyError: a ring is not closed
            reason = " ".join(str(error).split()).replace(str(whole), str(path)).replace(str(current), str(path))
            raise SourceError(f"{path}: cannot be read{as_what}: {reason}") from error


def _within_archive(path: Path) -> str | None:
    """Return the only vector file in an archive.

    The result is None if the path is not an archive.

    Raises:
        SourceError: The archive is damaged, or holds no vector file, or several.
    """
    if path.suffix.lower() not in ARCHIVE_SUFFIXES or not path.is_file():
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
        raise SourceError(f"{path}: contains {len(found)} vector files ({', '.join(found)}); keep only one")
    held = ", ".join(names[:5]) or "nothing"
    raise SourceError(f"{path}: contains no vector file, only {held}; supported formats are {SUPPORTED_FORMATS}")
