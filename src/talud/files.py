"""Atomic writing, locks and checksums of files.

A file that is written here appears under its name only when it is complete.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from talud import vector
from talud.errors import OutputError, TaludError


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yield a scratch path that replaces `path` if the block succeeds.

    The scratch path is in the same folder and has the same file name suffix.

    Raises:
        OutputError: The folder cannot be created or written to, or the disk is full.
    """
    with atomic_replace_all(path) as (scratch,):
        yield scratch


@contextmanager
def atomic_replace_all(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield scratch paths that replace `paths` together.

    If the block raises, no file is replaced.

    Raises:
        OutputError: A folder cannot be created or written to, the disk is full, or one of `paths` is a GeoPackage that
            another program has open.
    """
    current = paths[0]
    scratch: list[Path] = []
    try:
        with ExitStack() as folders:
            for current in paths:
                current.parent.mkdir(parents=True, exist_ok=True)
                folder = tempfile.TemporaryDirectory(prefix=f".{current.name}.", dir=current.parent)
                scratch.append(Path(folders.enter_context(folder)) / current.name)
            yield tuple(scratch)
            for current in paths:
                _check_replaceable(current)
            for current in paths:
                vector.merge_pending_edits(current)
            for current, made in zip(paths, scratch, strict=True):
                made.replace(current)
    except OutputError as error:
        # The message names the scratch path; the user must see the final one.
        message = str(error)
        for path, made in zip(paths, scratch, strict=False):
            message = message.replace(str(made.parent), str(path.parent))
        raise OutputError(message) from error
    except OSError as error:
        raise OutputError(f"{current}: cannot be written: {error.strerror or error}") from error


def _check_replaceable(path: Path) -> None:
    """Raise an OSError for a folder or device."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder of that name is in the way")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is neither a file nor a folder")


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn each OSError in the block into an OutputError.

    Args:
        path: path for the message.

    Raises:
        OutputError: The block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def exclusive_lock(path: Path, busy: TaludError | None = None, *, required: bool = True) -> Iterator[int]:
    """Hold an exclusive lock of a path for the block.

    Args:
        path: file or folder; a missing file is created, with its folder.
        busy: error to raise if another process holds the lock; None waits for it.
        required: whether a disk without locks is an error; if false, the block runs without a lock there.

    Yields:
        File descriptor of the locked file.

    Raises:
        OutputError: The file cannot be created, or its disk has no locks.
    """
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            if busy is None:
                raise
            raise busy from error
        except OSError as error:
            if required:
                reason = error.strerror or error
                raise OutputError(f"{path}: no file locks on this disk ({reason}); mount it with locks") from error
        yield descriptor
    finally:
        os.close(descriptor)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's bytes are on the disk.

    A power cut could otherwise leave an incomplete file under its final name.
    """
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def md5(path: Path) -> str:
    """Return the MD5 of a file in hex, as DVC."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
