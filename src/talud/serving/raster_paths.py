"""Paths of local rasters from client references, and checks of the files.

Only GeoTIFFs are accepted. Files of other formats, and sidecar files, can make GDAL open any file of this machine or
any URL that it reaches; a GeoTIFF can do so in its tags. Therefore the reference, the resolved path, the tags of the
file and its sidecar files are checked. The directories of a TIFF are checked before GDAL opens it: the time for opening
grows with the square of the number of bands, tags and overviews, so that a file of a few megabytes could take minutes.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from talud.errors import ForbiddenError, ParamsError, SourceError
from talud.process import CONFINED_DRIVERS, stderr_suppressed
from talud.raster import MAX_BANDS
from talud.serving.settings import Settings

UPLOADS_FOLDER = "uploads"
UPLOAD_ID_PATTERN = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
MAX_REFERENCE_CHARACTERS = 1000
PICTURE_SUFFIXES, TAGS_SUFFIX = (".ovr", ".msk"), ".aux.xml"  # sidecar files of GDAL
MASK_SUFFIX = ".mask.tif"  # replaces the suffix of the raster
_RASTER_SUFFIXES = (".tif", ".tiff")
_FILE_REFERENCE = re.compile(rb"source_?(filename|dataset)|overview_?file|<VRT", re.IGNORECASE)  # in tags
_FileState = tuple[str, int, int, int, int, int]
FILE_REFERENCE_DOMAINS = {"OVERVIEWS", "GEOLOCATION"}  # tag domains in which GDAL looks for further files
OFFLINE_OPTIONS = {"CPL_VSIL_CURL_ALLOWED_FILENAME": "none"}  # GDAL option that prevents network access
ALLOWED_DRIVERS = {"GTiff", "COG", "MEM", "Memory", "PNG", "GPKG", "GeoJSON"}  # needed for maps and tiles
_LIST_DRIVERS_SCRIPT = """
import pyogrio, rasterio
with rasterio.Env() as environment:
    print(",".join({*environment.drivers(), *pyogrio.list_drivers()}))
"""


def resolve_raster(href: str, settings: Settings) -> Path:
    """Return the path of a raster from a client's reference.

    Args:
        href: path below the data folder, such as `basins/liboriana.tif`, or `uploads/ID`.
        settings: settings of the service.

    Returns:
        The absolute path of a GeoTIFF, without symbolic links.

    Raises:
        ForbiddenError: the reference has an unsupported form, or leads out of its folder.
        SourceError: the file does not exist, or is not a safe GeoTIFF.
    """
    parts = _split_reference(href)
    if parts[0] == UPLOADS_FOLDER and len(parts) == 2 and re.fullmatch(UPLOAD_ID_PATTERN, parts[1]):
        root = settings.results / UPLOADS_FOLDER / parts[1]
        named = _uploaded_raster(root, href)
    else:
        root = settings.data
        named = root.joinpath(*parts)
    path = _resolve_below(named, root, href)
    return _check_if_changed(path, root, href)


def check_file(path: Path, root: Path, name: str) -> None:
    """Check that a GeoTIFF refers to no file outside a folder.

    Args:
        path: absolute path without symbolic links.
        root: folder in which referenced files must be.
        name: name of the file in error messages.

    Raises:
        SourceError: the file is not a GeoTIFF, or refers to a file outside.
    """
    _check_links(path, root, name)
    for side in _sidecar_files(path):
        label = f"{name}: sidecar file {side.name}"
        found = _resolve_below(side, root, label)
        if not side.name.casefold().endswith(TAGS_SUFFIX):
            _check_geotiff(side, root, label)
        elif b"<PAMDataset" not in (content := found.read_bytes())[:200]:
            raise SourceError(f"{label} was not written by GDAL; remove it")
        elif _FILE_REFERENCE.search(content):
            raise SourceError(f"{label} refers to further files in its tags; remove it")
    _check_geotiff(path, root, name)


def _check_geotiff(path: Path, root: Path, name: str) -> None:
    """Check that a GeoTIFF's tags refer to no file.

    Raises:
        SourceError: the file is not a GeoTIFF, or refers to another file.
    """
    check_directories(path, name)
    try:
        with rasterio.Env(**OFFLINE_OPTIONS), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as dataset:
                band_domains = {domain for index in dataset.indexes for domain in dataset.tag_namespaces(index)}
                domains = {str(domain).upper() for domain in (*dataset.tag_namespaces(), *band_domains)}
                references = domains & FILE_REFERENCE_DOMAINS
                files = () if references else dataset.files
    except (RasterioError, UnicodeError) as error:
        raise SourceError(f"{name}: is damaged or not a GeoTIFF; only GeoTIFFs are accepted") from error
    if references:
        raise SourceError(
            f"{name}: its tags {', '.join(sorted(references))} refer to further files; write it without them"
        )
    for file in files:
        _resolve_below(Path(file), root, f"{name}: its file {Path(file).name}")


def find_mask(raster: Path, settings: Settings) -> Path | None:
    """Return the mask next to a raster, or None.

    The mask must pass the checks of a raster.

    Args:
        raster: path from `resolve_raster`, or of a downloaded raster.
        settings: settings of the service.

    Raises:
        SourceError: the mask leads out of its folder, or is not a safe GeoTIFF.
    """
    named = raster.with_name(f"{raster.stem}{MASK_SUFFIX}")
    if not os.path.lexists(named):
        return None
    root = settings.data if raster.is_relative_to(settings.data.resolve()) else raster.parent
    return _check_if_changed(_resolve_below(named, root, named.name), root, named.name)


def _check_if_changed(path: Path, root: Path, name: str) -> Path:
    """Return a path after `check_file`, which is cached for unchanged files.

    Raises:
        SourceError: the file must not be opened.
    """
    _check_links(path, root, name)
    _check_cached(path, root, name, tuple(_file_state(file) for file in (path, *_related_files(path))))
    return path


def _check_links(path: Path, root: Path, name: str) -> None:
    """Check that no link next to a raster leads out of its folder.

    Only links that GDAL may read together with the raster are checked.

    Raises:
        SourceError: a link leads out of the folder.
    """
    for side in _related_files(path):
        if side.is_symlink():
            _resolve_below(side, root, f"{name}: sidecar file {side.name}")


@lru_cache(maxsize=10_000)
def _check_cached(path: Path, root: Path, name: str, _stamps: tuple[_FileState, ...]) -> None:
    """Run `check_file` once for each state of the files."""
    check_file(path, root, name)


def _file_state(file: Path) -> _FileState:
    """Return values that change with a file's content.

    These are inodes, modification times and the size, of the file and of its link target.
    """
    link, found = file.lstat(), file.stat() if file.exists() else file.lstat()
    return str(file), link.st_ino, link.st_mtime_ns, found.st_ino, found.st_mtime_ns, found.st_size


def confine_gdal(*, warping: bool = False) -> None:
    """Restrict GDAL to a few drivers without network access.

    rasterio and pyogrio contain a GDAL each, which registers its drivers on first use. Call this function before
    importing pyogrio; the names of the drivers are listed by another process.

    Args:
        warping: whether this process may use the driver VRT, which rasterio needs to warp; child processes may not.

    Raises:
        ParamsError: GDAL was used before.
    """
    if "GDAL_SKIP" not in os.environ:
        command = [sys.executable, "-c", _LIST_DRIVERS_SCRIPT]
        free = {name: value for name, value in os.environ.items() if name != "OGR_SKIP"}
        output = subprocess.run(command, env=free, capture_output=True, text=True, check=True).stdout
        _skip_drivers({*output.strip().split(",")} - ALLOWED_DRIVERS)
    os.environ.update(OFFLINE_OPTIONS)
    os.environ.setdefault("CPL_LOG", os.devnull)  # the GDAL of workers warns about each missing driver
    skipped = {*os.environ["GDAL_SKIP"].split(",")}
    allowed = ALLOWED_DRIVERS | ({"VRT"} if warping else set())
    _skip_drivers(skipped - allowed)
    with stderr_suppressed():  # each GDAL warns about drivers that only the other has
        import pyogrio

        with rasterio.Env() as environment:
            left = {*environment.drivers(), *pyogrio.list_drivers()} - allowed
    _skip_drivers(skipped)
    if left:
        raise ParamsError(
            f"GDAL already uses the drivers {', '.join(sorted(left)[:5])} …; start the service in a separate process"
        )


def _skip_drivers(drivers: set[str]) -> None:
    """Set the environment variables with the names of skipped drivers."""
    for name in ("GDAL_SKIP", "OGR_SKIP", CONFINED_DRIVERS):
        os.environ[name] = ",".join(sorted(drivers))


def _split_reference(href: str) -> list[str]:
    """Split a reference into parts, and check them."""
    parts = href.split("/")
    if (
        len(href) > MAX_REFERENCE_CHARACTERS
        or not href.isprintable()
        or any(sign in href for sign in '\\:"')
        or any(not part or part.startswith(".") for part in parts)
    ):
        shown = re.split("[?#]", href, maxsplit=1)[0] if ":" in href else href  # a query may contain a signature
        shown = re.sub("//[^/]*@", "//", shown)
        raise ForbiddenError(
            f"{shown[:100]!a}: is not a reference to a raster; expected a path below the data folder, such as "
            "basins/liboriana.tif, uploads/ID, or an https:// or s3:// URL on the allow-list"
        )
    return parts


def _uploaded_raster(folder: Path, href: str) -> Path:
    """Return the path of an uploaded raster."""
    try:
        names = [path for path in folder.iterdir() if not path.name.startswith(".")]
        files = [path for path in names if not path.name.casefold().endswith((*PICTURE_SUFFIXES, TAGS_SUFFIX, ".part"))]
    except OSError:
        files = []
    if len(files) != 1:
        raise SourceError(f"{href}: there is no such upload, or it has expired; upload the raster again")
    return files[0]


def _resolve_below(path: Path, root: Path, name: str) -> Path:
    """Resolve the path of a file below a folder.

    Raises:
        ForbiddenError: the path leads out of the folder.
        SourceError: the file does not exist.
    """
    try:
        found = path.resolve(strict=True)
        if not found.is_relative_to(root.resolve(strict=True)):
            raise ForbiddenError(f"{name}: leads out of its folder; replace the link by a copy")
        if not found.is_file():  # reading a pipe would block
            raise SourceError(f"{name}: is not a file")
    except (OSError, RuntimeError) as error:  # a missing file, a name that is too long, or circular links
        raise SourceError(f"{name}: no such file") from error
    return found


def _related_files(path: Path) -> list[Path]:
    """Return the files that GDAL may read with a raster.

    These are world files, georeferencing, metadata, overviews, masks and tags, whose names start with the name of the
    raster without its suffix. Other rasters are not included, because they are checked separately.
    """
    stem = path.stem.casefold()
    names = [(side, side.name.casefold()) for side in path.parent.iterdir()]
    return sorted(side for side, name in names if name.startswith(stem) and not name.endswith(_RASTER_SUFFIXES))


def _sidecar_files(path: Path) -> list[Path]:
    """Return the overviews, masks and tags next to a raster.

    The sidecar files of overviews and masks are included. Upper and lower case are equal.
    """
    name = re.escape(path.name.casefold())
    pattern = re.compile(rf"{name}(\.ovr|\.msk)*(\.ovr|\.msk|\.aux\.xml)")
    found = [side for side in path.parent.iterdir() if pattern.fullmatch(side.name.casefold())]
    return sorted(found, key=lambda side: (-len(side.name), side.name))  # sidecars of overviews before the overviews


MAX_DIRECTORIES = 100  # including those of overviews and masks
MAX_METADATA_BYTES = 500_000  # of GDAL's metadata in XML
_BANDS_TAG, _METADATA_TAG = 277, 42112
_ENTRY_FORMATS = {"short": ("H", "HHI", 12, "I"), "long": ("Q", "HHQ", 20, "Q")}  # for TIFF and BigTIFF


def check_directories(path: Path, name: str) -> None:
    """Check that a TIFF has few enough bands, tags and directories.

    Damaged files and files of other formats pass, because opening them raises an error.

    Args:
        path: path of the file.
        name: name of the file in error messages.

    Raises:
        SourceError: the file exceeds a limit.
    """
    try:
        with path.open("rb") as file:
            _check_tiff(file, name)
    except (struct.error, OSError, OverflowError, ValueError):  # a truncated file or an invalid offset
        return


def _check_tiff(file: BinaryIO, name: str) -> None:
    start = file.read(4)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return
    is_big = struct.unpack(f"{order}H", start[2:])[0] == 43
    number, entry, size, pointer = _ENTRY_FORMATS["long" if is_big else "short"]
    file.seek(8 if is_big else 4)
    place, seen = _unpack(file, order + pointer), 0
    while place:
        seen += 1
        if seen > MAX_DIRECTORIES:
            raise SourceError(
                f"{name}: has more than {MAX_DIRECTORIES} overviews and masks; rewrite it, for example with "
                "gdal_translate -of COG"
            )
        file.seek(place)
        count = _unpack(file, order + number)
        entries = file.read(count * size) if count < 65_536 else b""
        for at in range(0, len(entries) - size + 1, size):
            tag, _, length = struct.unpack_from(order + entry, entries, at)
            value = struct.unpack_from(f"{order}H", entries, at + struct.calcsize(f"={entry}"))[0]
            _check_entry(tag, length, value, name)
        place = _unpack(file, order + pointer)


def _check_entry(tag: int, length: int, value: int, name: str) -> None:
    if tag == _BANDS_TAG and value > MAX_BANDS:
        raise SourceError(f"{name}: has {value:,} bands; the limit is {MAX_BANDS:,}")
    if tag == _METADATA_TAG and length > MAX_METADATA_BYTES:
        raise SourceError(
            f"{name}: has {length:,} bytes of metadata; the limit is {MAX_METADATA_BYTES:,}; remove the metadata"
        )


def _unpack(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])
