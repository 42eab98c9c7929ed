"""The files on disk that belong to a raster or a vector source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from talud import geopackage
from talud.errors import SourceError
from talud.raster import open_raster

# Suffix of a vector file → those of the files of the same name that belong to it. GDAL lists no parts of vectors.
_SHAPEFILE = (".shp", ".dbf", ".prj", ".cpg", ".shx")
TOGETHER = {
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
_SHOWN_BYTES = 4096  # of a file's beginning, in which a virtual file says that it is one


def files_of(source: str | Path) -> tuple[Path, ...]:
    """Return the files on disk that belong to a source, in the order found.

    They are the file itself, the files that GDAL lists for it and for each virtual raster within it, the parts of a
    Shapefile whatever the case of their suffixes, edits that are pending beside a GeoPackage, everything in a source
    that is a folder, and the archive that holds it. Of a source on a network, or of none, there are none.
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


def side_files(path: Path) -> list[Path]:
    """Return the files beside a raster that GIS programs read with it.

    GDAL itself may not need them.
    """
    if not path.is_file():
        return []
    return [
        other
        for other in path.parent.iterdir()
        if other.suffix.lower() in _SIDE_SUFFIXES
        and (other.stem == path.stem or other.name.startswith(f"{path.name}."))
    ]


def on_disk(name: str | Path) -> Path | None:
    """Return the file or folder on disk to which a GDAL name refers.

    For something in an archive it is the archive.

    None where it leads to nothing on this machine's disks.
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


def listed(source: str | Path) -> list[str]:
    """Return the names that GDAL lists for a raster.

    There are none for anything but a raster on disk.
    """
    path = Path(source)
    if str(source).startswith(_NETWORK) or path.suffix.lower() == ".onnx":
        return []
    if geopackage.is_database(path) or path.suffix.lower() in (*TOGETHER, ".json", ".geojson"):
        return []  # GDAL would write beside a GeoPackage that it opens
    try:
        with open_raster(source) as dataset:
            return list(dataset.files)
    except SourceError:
        return []


def _parts(source: str | Path) -> Iterator[Path]:
    path = on_disk(source)
    if path is None or not path.is_dir():
        for name in (*([str(path)] if path else []), *listed(source)):
            part = on_disk(name)
            if part:
                yield part
                yield from _named_alike(part)
        if path and path.is_file() and path.suffix.lower() == ".vrt":
            yield from _vector_sources(path)
        return
    yield from sorted(part for part in path.rglob("*") if part.is_file())
    yield from filter(None, map(on_disk, listed(source)))


def _named_alike(path: Path) -> Iterator[Path]:
    if geopackage.is_database(path):
        yield from geopackage.pending(path)
    suffixes = TOGETHER.get(path.suffix.lower(), ())
    beside = path.parent.iterdir() if suffixes else ()
    alike = [other for other in beside if other.stem == path.stem and other.suffix.lower() in suffixes]
    yield from sorted(alike, key=lambda other: (suffixes.index(other.suffix.lower()), other.name))


def _is_virtual(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return bool(_VIRTUAL.search(stream.read(_SHOWN_BYTES)))
    except OSError:
        return False


def _vector_sources(path: Path) -> Iterator[Path]:
    """Yield the files to which a virtual vector file refers."""
    for name in _VECTOR_SOURCE.findall(path.read_text(encoding="utf-8", errors="replace")):
        part = on_disk(path.parent / name)
        if part and part.is_file():
            yield part
            yield from _named_alike(part)
