"""Paths of vector files that pyogrio takes for neither addresses nor archives."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from pyogrio.util import vsi_path


def plain_path(path: Path) -> Path:
    """Return a path by which pyogrio can open a file of any name.

    pyogrio splits paths at `!`, as those of archives, and drops what it takes for parts of an address. Such a file is
    reached by a symbolic link in a temporary folder, beside links to the files that belong to it.
    """
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
    """Return a folder for links that is removed when the process ends."""
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
    """Return a pattern of `glob` that matches only the given text."""
    return re.sub(r"([*?\[])", r"[\1]", text)
