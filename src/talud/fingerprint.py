"""Fingerprints by which the content of sources is identified anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rasterio
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader

from talud import geopackage
from talud.dataset_files import files_of, listed, on_disk
from talud.errors import SourceError
from talud.files import md5
from talud.raster import open_raster, reading
from talud.vector import OTHER_VECTOR_SUFFIXES, VECTOR_SUFFIXES

_VECTORS = VECTOR_SUFFIXES | OTHER_VECTOR_SUFFIXES
_STATISTICS = ".aux.xml"
# Files that a GIS adds to a source that it displays: statistics, overviews, and marks of who has a folder open.
_ADDED_BY_GIS = (_STATISTICS, ".ovr", ".lock")
# Tags that a GIS adds in the same way.
_ADDED_TAGS = ("STATISTICS_", "LAYER_TYPE", "RepresentationType", "SourceBandIndex")


def fingerprint(source: str | Path) -> str:
    """Return an MD5 checksum of the content of a source.

    Of a single file it is the MD5 of its bytes, and of a GeoPackage that of its content, pending edits included (see
    `geopackage.digest`). Of several files, such as a Shapefile's, a VRT's tiles, a folder's or an archive with the name
    of the file within, it is one over names and checksums. Of a raster on a network it is one over header and pixels.
    What a GIS writes beside a raster counts only where it changes what is read: statistics and overviews do not.

    Raises:
        SourceError: the source is missing, cannot be read, or has no file.
    """
    path = on_disk(source)
    if path is None:
        return _of_pixels(source)
    if not (path.is_dir() or geopackage.is_database(path) or Path(source).suffix.lower() in _VECTORS):
        with open_raster(source):  # to say what is wrong with a raster that cannot be read
            pass
    lines = list(_lines(source, path))
    if not lines:
        raise SourceError(f"{source}: contains no file to compute a checksum of; name the source itself")
    if len(lines) == 1 and path == Path(source):
        return lines[0].rsplit(" ", 1)[-1]
    return hashlib.md5("".join(f"{line}\n" for line in lines).encode(), usedforsecurity=False).hexdigest()


def _lines(source: str | Path, path: Path) -> Iterator[str]:
    """Yield the name and the checksum of each part of a source."""
    within = str(source)[str(source).find(path.name) + len(path.name) :]
    for part in files_of(source):
        if part.is_dir() or part.name.endswith((*_ADDED_BY_GIS, *geopackage.PENDING)):
            continue
        inside = path.is_dir() and part.is_relative_to(path)
        name = part.relative_to(path).as_posix() if inside else part.name
        name += within if part == path else ""
        yield f"{name} {geopackage.digest(part) if geopackage.is_database(part) else md5(part)}"
    if any(name.endswith(_STATISTICS) for name in listed(source)):
        with rasterio.Env(GDAL_PAM_ENABLED=False), open_raster(source) as dataset:
            alone = _header(dataset)
        with open_raster(source) as dataset:
            header = _header(dataset)
        if header != alone:
            yield f"header {hashlib.md5(repr(header).encode(), usedforsecurity=False).hexdigest()}"


def _of_pixels(source: str | Path) -> str:
    with open_raster(source) as dataset, reading(source):
        digest = hashlib.md5(repr(_header(dataset)).encode(), usedforsecurity=False)
        for _, window in dataset.block_windows(1):
            digest.update(dataset.read(window=window).tobytes())
            digest.update(dataset.read_masks(window=window).tobytes())
    return digest.hexdigest()


def _header(dataset: DatasetReader) -> list[Any]:
    """Return the header of a raster and its bands.

    Anything that a GIS adds when it displays the raster is left out.
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
