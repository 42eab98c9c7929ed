"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from talud.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path beside `path`, of the same suffix, that takes its place when the block ends without an error.

    Raises:
        OutputError: the folder cannot be made or written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            scratch = Path(folder) / path.name
            yield scratch
            scratch.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def md5(path: Path) -> str:
    """The MD5 of a file's bytes, in hex: the version that DVC gives it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
