"""GeoPackages with pending edits in files beside them.

A program such as QGIS writes edits to `NAME.gpkg-wal` first, and SQLite brings them into `NAME.gpkg` later. Whoever
copies or replaces the main file alone loses them, or leaves edits beside a file that they do not belong to.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from talud.errors import OutputError, SourceError

PENDING = ("-wal", "-journal")  # of a database's name: what it consists of while edits are pending
_MAGIC = b"SQLite format 3\0"
_WAL = b"\2\2"  # bytes 18 and 19 of a database in write-ahead mode
# Bytes of a database's header that change when a program opens it although the content stays the same: the journal
# mode, the counter of changes with its copy, and the version of SQLite.
_VOLATILE = ((18, 20), (24, 28), (92, 100))
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.1
_LOCK_TIMEOUT_SECONDS = 0.5


def is_database(path: Path) -> bool:
    """Check whether a file is an SQLite database, as each GeoPackage is."""
    return _header(path).startswith(_MAGIC)


@contextmanager
def snapshot(path: Path) -> Iterator[Path]:
    """Yield the path of a complete version of a file, with pending edits.

    Reading it writes nothing beside the file.

    It is a copy in a temporary folder where edits are pending, or where reading in place would write; else, and where
    the file is no GeoPackage, it is the file itself.

    Raises:
        SourceError: another program keeps writing to the file, or it is damaged.
    """
    if not is_database(path) or not (pending(path.resolve()) or _in_wal_mode(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        copy = Path(folder) / path.name
        _copy(path, copy)
        try:
            with closing(sqlite3.connect(copy)) as database:
                database.execute("SELECT count(*) FROM sqlite_master")  # rolls back what was not finished
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise SourceError(f"{path}: cannot be read, with the edits pending beside it: {error}") from error
        yield copy


def digest(path: Path) -> str:
    """Return an MD5 of a GeoPackage's content, including pending edits.

    It is the same before and after SQLite brings pending edits into the main file, and after a program has opened and
    closed the file without an edit. It is therefore not the MD5 of the file's bytes.

    Raises:
        SourceError: another program keeps writing to the file, or it is damaged.
    """
    with snapshot(path) as whole, whole.open("rb") as stream:
        header = bytearray(stream.read(100))
        for first, last in _VOLATILE:
            header[first:last] = bytes(last - first)
        found = hashlib.md5(header, usedforsecurity=False)
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def release(path: Path) -> None:
    """Write pending edits into a GeoPackage, so that it can be replaced.

    A file that is no GeoPackage, or that is not there, is left alone.

    Raises:
        OutputError: another program has the GeoPackage open, or pending edits lie beside no GeoPackage.
    """
    if path.is_symlink() or not is_database(path):
        if left := pending(path.absolute()):
            raise OutputError(
                f"{path}: cannot be written: {left[0].name} holds pending edits of another file of that name; move it "
                "away"
            )
        return
    if not (pending(path) or _in_wal_mode(path)):
        return
    in_use = f"{path}: is open in another program, QGIS for example, which may hold edits; save and close it there"
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
    if not path.is_file():  # a pipe would be waited for
        return b""
    try:
        with path.open("rb") as stream:
            return stream.read(100)
    except OSError:
        return b""


def _in_wal_mode(path: Path) -> bool:
    return _header(path)[18:20] == _WAL


def pending(path: Path) -> tuple[Path, ...]:
    """Return the files beside a database that hold pending edits."""
    return tuple(one for one in _beside(path) if one.is_file() and one.stat().st_size)


def _beside(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + suffix) for suffix in PENDING)


def _copy(path: Path, copy: Path) -> None:
    """Copy a database and its pending edits while no other program changes them.

    Raises:
        SourceError: they change each time.
    """
    source = path.resolve()
    for _ in range(_ATTEMPTS):
        try:
            before = _state(source)
            for part, target in zip((source, *_beside(source)), (copy, *_beside(copy)), strict=True):
                target.unlink(missing_ok=True)
                if part.exists():
                    shutil.copyfile(part, target)
            if _state(source) == before:
                return
        except FileNotFoundError:  # it was there a moment ago
            pass
        time.sleep(_PAUSE_SECONDS)
    raise SourceError(f"{path}: another program keeps writing to it; save and close it there, and try again")


def _state(path: Path) -> list[tuple[int, int, int]]:
    stats = [part.stat() for part in (path, *_beside(path)) if part.exists()]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in stats]
