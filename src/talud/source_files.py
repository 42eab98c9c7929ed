"""Files of a source: parts, checksums, and protection from being overwritten."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import rasterio
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from talud.errors import OutputError, SourceError
from talud.files import md5
from talud.raster import open_raster, translate_read_errors
from talud.vector import (
    OTHER_VECTOR_SUFFIXES,
    PENDING_SUFFIXES,
    VECTOR_SUFFIXES,
    geopackage_checksum,
    is_database,
    merge_pending_edits,
    pending_files,
)

# Suffix of a vector file → suffixes of the files of the same name that belong to it. GDAL does not list them.
_SHAPEFILE = (".shp", ".dbf", ".prj", ".cpg", ".shx")
COMPANION_SUFFIXES = {
    ".shp": _SHAPEFILE,
    ".dbf": _SHAPEFILE,
    ".shx": _SHAPEFILE,
    ".tab": (".tab", ".dat", ".map", ".id", ".ind"),
    ".mif": (".mif", ".mid"),
}
_SIDE_SUFFIXES = frozenset({".aux", ".hdr", ".jgw", ".msk", ".ovr", ".pgw", ".prj", ".rrd", ".tfw", ".wld", ".xml"})
_VIRTUAL = re.compile(rb"<VRTDataset|<OGRVRTDataSource")
_VECTOR_SOURCE = re.compile(r"<SrcDataSource[^>]*>([^<]+)</SrcDataSource>")
_NETWORK = ("http://", "https://", "/vsicurl", "/vsis3", "/vsigs", "/vsiaz")
# Bytes at the start of a file in which a virtual file is recognised.
_VIRTUAL_HEADER_BYTES = 4096


def files_of(source: str | Path) -> tuple[Path, ...]:
    """Return the files on disk that belong to a source.

    They are the file itself, the files that GDAL lists for it and for each virtual raster in it, the parts of a
    Shapefile with suffixes of any case, pending edits of a GeoPackage, everything in a source that is a folder, and the
    archive that contains the source. A source on a network, or a missing one, has no files.
    """
    found: dict[Path, None] = {}
    waiting: list[str | Path] = [source]
    while waiting:
        one = waiting.pop(0)
        for part in _parts(one):
            if part not in found:
                found[part] = None
                if part != one and _is_virtual(part):
                    waiting.append(part)
    return tuple(found)


def sidecar_files(path: Path) -> list[Path]:
    """Return the files that GIS programs read with a raster.

    GDAL itself may not list them.
    """
    if not path.is_file():
        return []
    return [
        other
        for other in path.parent.iterdir()
        if other.suffix.lower() in _SIDE_SUFFIXES
        and (other.stem == path.stem or other.name.startswith(f"{path.name}."))
    ]


def find_on_disk(name: str | Path) -> Path | None:
    """Return the file or folder behind a GDAL name.

    For a path in an archive it is the archive. The result is None if nothing on this machine's disks matches.
    """
    path = Path(name)
    if path.exists():
        return path
    text = str(name)
    inside = re.match(r"(?:/vsi[a-z0-9_]+/)+\{?", text)
    if not inside:
        return None
    path = Path(text[inside.end() :].replace("}", ""))
    return next((part for part in (path, *path.parents) if part.is_file()), None)


def list_gdal_files(source: str | Path) -> list[str]:
    """Return GDAL's file list of a raster on disk.

    The list is empty for any other source.
    """
    path = Path(source)
    if str(source).startswith(_NETWORK) or path.suffix.lower() == ".onnx":
        return []
    if is_database(path) or path.suffix.lower() in (*COMPANION_SUFFIXES, ".json", ".geojson"):
        return []  # GDAL would write files next to a GeoPackage that it opens
    try:
        with open_raster(source) as dataset:
            return list(dataset.files)
    except SourceError:
        return []


def _parts(source: str | Path) -> Iterator[Path]:
    path = find_on_disk(source)
    if path is None or not path.is_dir():
        for name in (*([str(path)] if path else []), *list_gdal_files(source)):
            part = find_on_disk(name)
            if part:
                yield part
                yield from _companion_files(part)
        if path and path.is_file() and path.suffix.lower() == ".vrt":
            yield from _vector_sources(path)
        return
    yield from sorted(part for part in path.rglob("*") if part.is_file())
    yield from filter(None, map(find_on_disk, list_gdal_files(source)))


def _companion_files(path: Path) -> Iterator[Path]:
    if is_database(path):
        yield from pending_files(path)
    suffixes = COMPANION_SUFFIXES.get(path.suffix.lower(), ())
    siblings = path.parent.iterdir() if suffixes else ()
    alike = [other for other in siblings if other.stem == path.stem and other.suffix.lower() in suffixes]
    yield from sorted(alike, key=lambda other: (suffixes.index(other.suffix.lower()), other.name))


def _is_virtual(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return bool(_VIRTUAL.search(stream.read(_VIRTUAL_HEADER_BYTES)))
    except OSError:
        return False


def _vector_sources(path: Path) -> Iterator[Path]:
    """Yield the files to which a virtual vector file refers."""
    for name in _VECTOR_SOURCE.findall(path.read_text(encoding="utf-8", errors="replace")):
        part = find_on_disk(path.parent / name)
        if part and part.is_file():
            yield part
            yield from _companion_files(part)


_VECTORS = VECTOR_SUFFIXES | OTHER_VECTOR_SUFFIXES
_STATISTICS = ".aux.xml"
# Suffixes of files that a GIS adds to a source that it displays: statistics, overviews and lock files.
_ADDED_BY_GIS = (_STATISTICS, ".ovr", ".lock")
# Tags that a GIS adds to such a source.
_ADDED_TAGS = ("STATISTICS_", "LAYER_TYPE", "RepresentationType", "SourceBandIndex")


def fingerprint(source: str | Path) -> str:
    """Return an MD5 checksum of a source's content.

    A single file has the MD5 of its bytes, and a GeoPackage that of its content, including pending edits (see
    `vector.geopackage_checksum`). Several files, such as those of a Shapefile, the tiles of a VRT, a folder, or an
    archive with the name of the file in it, have the MD5 of their names and checksums. A raster on a network has the
    MD5 of its header and pixels. Files that a GIS writes next to a raster, such as statistics and overviews, count only
    if they change what is read.

    Raises:
        SourceError: The source is missing, cannot be read, or contains no file.
    """
    path = find_on_disk(source)
    if path is None:
        return _of_pixels(source)
    if not (path.is_dir() or is_database(path) or Path(source).suffix.lower() in _VECTORS):
        with open_raster(source):  # raises a precise error for an unreadable raster
            pass
    lines = list(_lines(source, path))
    if not lines:
        raise SourceError(f"{source}: contains no file; give the path of the source itself")
    if len(lines) == 1 and path == Path(source):
        return lines[0].rsplit(" ", 1)[-1]
    return hashlib.md5("".join(f"{line}\n" for line in lines).encode(), usedforsecurity=False).hexdigest()


def _lines(source: str | Path, path: Path) -> Iterator[str]:
    """Yield name and checksum of each part of a source."""
    within = str(source)[str(source).find(path.name) + len(path.name) :]
    for part in files_of(source):
        if part.is_dir() or part.name.endswith((*_ADDED_BY_GIS, *PENDING_SUFFIXES)):
            continue
        inside = path.is_dir() and part.is_relative_to(path)
        name = part.relative_to(path).as_posix() if inside else part.name
        name += within if part == path else ""
        yield f"{name} {geopackage_checksum(part) if is_database(part) else md5(part)}"
    if any(name.endswith(_STATISTICS) for name in list_gdal_files(source)):
        with rasterio.Env(GDAL_PAM_ENABLED=False), open_raster(source) as dataset:
            alone = _header(dataset)
        with open_raster(source) as dataset:
            header = _header(dataset)
        if header != alone:
            yield f"header {hashlib.md5(repr(header).encode(), usedforsecurity=False).hexdigest()}"


def _of_pixels(source: str | Path) -> str:
    with open_raster(source) as dataset, translate_read_errors(source):
        digest = hashlib.md5(repr(_header(dataset)).encode(), usedforsecurity=False)
        for _, window in dataset.block_windows(1):
            digest.update(dataset.read(window=window).tobytes())
            digest.update(dataset.read_masks(window=window).tobytes())
    return digest.hexdigest()


def _header(dataset: DatasetReader) -> list[Any]:
    """Return the header of a raster and its bands.

    Tags that a GIS adds when it displays the raster are excluded.
    """
    palettes = [
        sorted(dataset.colormap(index).items())
        for index, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True)
        if meaning is ColorInterp.palette
    ]
    tags = [dataset.tags(), *(dataset.tags(index) for index in dataset.indexes)]
    return [
        (dataset.count, dataset.height, dataset.width, dataset.dtypes, dataset.nodatavals, dataset.mask_flag_enums),
        (dataset.transform.to_gdal(), dataset.crs and dataset.crs.to_wkt(), repr(dataset.gcps)),
        (dataset.scales, dataset.offsets, dataset.units, dataset.descriptions, dataset.colorinterp),
        palettes,
        [sorted((key, value) for key, value in each.items() if not key.startswith(_ADDED_TAGS)) for each in tags],
    ]


# Length at which an unusable path is cut in a message.
_SHOWN_CHARACTERS = 200


def check_output_file(out: Path, inputs: Iterable[str | Path]) -> None:
    """Check that a command can write a file.

    The check runs before any computation.

    Args:
        out: path of the file.
        inputs: inputs of the command: files, folders, or other names that GDAL opens; all files that belong to them are
            protected.

    Raises:
        OutputError: The file is an input, is in one, or is a link to one; it is a folder; or it cannot be written.
    """
    check_output_name(out)
    if out.is_dir():
        raise OutputError(f"{out}: cannot be written: it is a folder; give the path of a file")
    _check_folders_above(out)
    for source in inputs:
        folder = Path(source)
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{out}: is in the folder {source}, which is one of the inputs; choose another file")
        parts = files_of(source)
        check_not_input(out, [*parts, *(other for part in parts for other in sidecar_files(part))])


def check_not_input(out: Path, inputs: Iterable[Path]) -> None:
    """Check that an output is not an input file.

    Raises:
        OutputError: The output would replace an input.
    """
    for part in inputs:
        if out.samefile(part) if out.exists() and part.exists() else out.resolve() == part.resolve():
            named = "" if out == part else f", {part}"
            raise OutputError(f"{out}: is one of the inputs{named} and would be replaced; choose another file")


def check_output_folder(
    out: Path, names: Iterable[str], inputs: Iterable[str | Path], *, replaceable: bool, kept: tuple[str, ...] = ()
) -> None:
    """Check that a command can write into a folder.

    The check runs before any computation.

    Only earlier results of the command may be replaced.

    Args:
        out: path of the folder.
        names: names of the files that the command writes there.
        inputs: inputs of the command, as in `check_output_file`.
        replaceable: true if files of these names are earlier results of the command.
        kept: names of inputs that may be in the folder, with their sidecar files, because the command put them there
            and writes none of them.

    Raises:
        OutputError: The folder contains an input, a file in it is a link to one, it holds files of these names that are
            not the command's own, or it cannot be written.
    """
    names = tuple(names)
    check_output_name(out)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: cannot be written: a file of that name is in the way")
    _check_folders_above(out.resolve())  # a link may point to a folder that does not exist yet
    for source in inputs:
        for part in files_of(source):
            if part.resolve().is_relative_to(out.resolve()) and not part.name.startswith(kept):
                raise OutputError(f"{out}: contains {part}, which is one of the inputs; choose another folder")
            for name in names:
                check_not_input(out / name, [part])
    existing = [name for name in names if (out / name).exists() or (out / name).is_symlink()]
    if existing and not replaceable:
        raise OutputError(
            f"{out}: contains {', '.join(existing)}, but no record that talud made them; choose another folder, or "
            "move them away"
        )
    for name in existing:
        if (out / name).is_dir():
            raise OutputError(f"{out}: cannot be written: a folder named {name} is in the way")
        merge_pending_edits(out / name)


def check_output_name(out: Path) -> None:
    """Check that a path can name a file or folder.

    Raises:
        OutputError: The path is a loop of links, a device, or too long.
    """
    try:
        out.resolve()
        special = out.exists() and not (out.is_file() or out.is_dir())
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:_SHOWN_CHARACTERS]
        shown = str(out)[:_SHOWN_CHARACTERS]
        raise OutputError(f"{shown}: cannot be written: {reason}; choose another path") from error
    if special:
        raise OutputError(f"{out}: cannot be written: it is neither a file nor a folder; choose another path")


def _check_folders_above(out: Path) -> None:
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{out}: cannot be written: {above} is a file, not a folder")
    if not os.access(out if out.is_dir() else above, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: cannot be written: you may not write to the folder {above}")
