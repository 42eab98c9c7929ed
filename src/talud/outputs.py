"""Checks that outputs replace no inputs and none of the user's own files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from talud.dataset_files import files_of, side_files
from talud.errors import OutputError
from talud.geopackage import release

_SHOWN_CHARACTERS = 200  # of a path that cannot be one


def check_file(out: Path, inputs: Iterable[str | Path]) -> None:
    """Check, before computing anything, that a file does not replace an input.

    The file must also be writable.

    Args:
        out: the file.
        inputs: what the command reads: files, folders, or whatever GDAL opens, with all files that they consist of.

    Raises:
        OutputError: the file is, links to, or lies in an input; it is a folder; or nothing can be written there.
    """
    check_name(out)
    if out.is_dir():
        raise OutputError(f"{out}: cannot be written: it is a folder; name a file")
    _check_folders_above(out)
    for source in inputs:
        folder = Path(source)
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{out}: lies in one of the inputs, the folder {source}; name another file")
        parts = files_of(source)
        refuse_same(out, [*parts, *(other for part in parts for other in side_files(part))])


def refuse_same(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is, or links to, one of the input files.

    Raises:
        OutputError: it is, or does.
    """
    for part in inputs:
        if out.samefile(part) if out.exists() and part.exists() else out.resolve() == part.resolve():
            named = "" if out == part else f", {part}"
            raise OutputError(f"{out}: is one of the inputs{named}, which would be replaced; name another file")


def check_folder(
    out: Path, names: Iterable[str], inputs: Iterable[str | Path], *, ours: bool, kept: tuple[str, ...] = ()
) -> None:
    """Check, before computing anything, that a command can fill a folder.

    It must not replace files other than its own earlier results.

    Args:
        out: the folder.
        names: of the files that the command writes there.
        inputs: what the command reads, as for `check_file`.
        ours: whether the folder holds earlier results of the command, which new ones replace.
        kept: names of inputs that may lie in the folder with their side files, since the command put them there and
            writes none of them.

    Raises:
        OutputError: the folder contains an input, a file in it links to one, it holds files of these names that are
            not the command's own, or nothing can be written there.
    """
    names = tuple(names)
    check_name(out)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: cannot be written: a file of that name is in the way")
    _check_folders_above(out.resolve())  # a link may lead to a folder that is yet to be made
    for source in inputs:
        for part in files_of(source):
            if part.resolve().is_relative_to(out.resolve()) and not part.name.startswith(kept):
                raise OutputError(f"{out}: contains {part}, which is one of the inputs; name another folder")
            for name in names:
                refuse_same(out / name, [part])
    there = [name for name in names if (out / name).exists() or (out / name).is_symlink()]
    if there and not ours:
        raise OutputError(
            f"{out}: holds {', '.join(there)}, and no record says that talud made them; name another folder, or move "
            "them away"
        )
    for name in there:
        if (out / name).is_dir():
            raise OutputError(f"{out}: cannot be written: a folder named {name} is in the way")
        release(out / name)


def check_name(out: Path) -> None:
    """Check that a path can be one of a file or folder: no loop of links, no device, no name that is too long."""
    try:
        out.resolve()
        special = out.exists() and not (out.is_file() or out.is_dir())
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:_SHOWN_CHARACTERS]
        shown = str(out)[:_SHOWN_CHARACTERS]
        raise OutputError(f"{shown}: cannot be written: {reason}; name another path") from error
    if special:
        raise OutputError(f"{out}: cannot be written: it is neither a file nor a folder; name another path")


def _check_folders_above(out: Path) -> None:
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{out}: cannot be written: {above} is a file, and no folder")
    if not os.access(out if out.is_dir() else above, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: cannot be written: the folder {above} is not writable for you")
