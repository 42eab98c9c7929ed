"""Paths of local rasters from client references, and the checks of the files.

Rasters may only be GeoTIFFs. GDAL follows what a file of another kind, or one that lies beside a file, tells it to: to
other files of this machine, and to addresses that this machine reaches. A GeoTIFF, too, can say where its overviews
lie. So a reference is judged by its words, by where it leads, by what the file says, and by what lies beside it. The
directories of a TIFF are checked before GDAL opens it: it takes a time that grows with the square of the number of
bands, tags and overviews, so a file of some megabytes could keep a processor for minutes.
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
MAX_REFERENCE_CHARACTERS = 1000  # characters of a reference
PICTURE_SUFFIXES, TAGS_SUFFIX = (".ovr", ".msk"), ".aux.xml"  # what GDAL reads beside a raster
MASK_SUFFIX = ".mask.tif"  # follows a raster's name without its suffix
_RASTER_SUFFIXES = (".tif", ".tiff")
_FILE_REFERENCE = re.compile(rb"source_?(filename|dataset)|overview_?file|<VRT", re.IGNORECASE)  # in tags
_FileState = tuple[str, int, int, int, int, int]
FILE_REFERENCE_DOMAINS = {"OVERVIEWS", "GEOLOCATION"}  # domains of tags that name further files, which GDAL opens
OFFLINE_OPTIONS = {"CPL_VSIL_CURL_ALLOWED_FILENAME": "none"}  # an option of GDAL, by which it asks no other machine
ALLOWED_DRIVERS = {
    "GTiff",
    "COG",
    "MEM",
    "Memory",
    "PNG",
    "GPKG",
    "GeoJSON",
}  # of GDAL, that maps and their pictures take
_LIST_DRIVERS_SCRIPT = """
import pyogrio, rasterio
with rasterio.Env() as environment:
    print(",".join({*environment.drivers(), *pyogrio.list_drivers()}))
"""


def resolve_raster(href: str, settings: Settings) -> Path:
    """Return the file of a client's reference.

    Args:
        href: `basins/liboriana.tif`, below the data folder, or `uploads/ID`.
        settings: of the agency.

    Returns:
        The absolute path of a GeoTIFF, without symbolic links.

    Raises:
        ForbiddenError: the reference is of a kind that is not taken, or leads out of its folder.
        SourceError: there is none.
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
    """Check that a file is a GeoTIFF that refers to no file outside a folder.

    Args:
        path: absolute, without symbolic links.
        root: the folder.
        name: of the file, in messages.

    Raises:
        SourceError: it is none.
    """
    _check_links(path, root, name)
    for side in _sidecar_files(path):
        said = f"{name}: {side.name}, which lies beside it"
        found = _resolve_below(side, root, said)
        if not side.name.casefold().endswith(TAGS_SUFFIX):
            _check_geotiff(side, root, said)
        elif b"<PAMDataset" not in (content := found.read_bytes())[:200]:
            raise SourceError(f"{said}: not what GDAL writes there; remove it")
        elif _FILE_REFERENCE.search(content):
            raise SourceError(f"{said}: its tags name further files; remove it")
    _check_geotiff(path, root, name)


def _check_geotiff(path: Path, root: Path, name: str) -> None:
    """Check that a file is a GeoTIFF that refers to no other file.

    Raises:
        SourceError: it is none, or names one.
    """
    check_directories(path, name)
    try:
        with rasterio.Env(**OFFLINE_OPTIONS), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as dataset:
                of_bands = {domain for index in dataset.indexes for domain in dataset.tag_namespaces(index)}
                domains = {str(domain).upper() for domain in (*dataset.tag_namespaces(), *of_bands)}
                leading = domains & FILE_REFERENCE_DOMAINS
                files = () if leading else dataset.files
    except (RasterioError, UnicodeError) as error:
        raise SourceError(f"{name}: no GeoTIFF, or damaged; only GeoTIFFs are taken") from error
    if leading:
        raise SourceError(f"{name}: its tags {', '.join(sorted(leading))} name further files; write it without them")
    for file in files:
        _resolve_below(Path(file), root, f"{name}: {Path(file).name}, which belongs to it")


def find_mask(raster: Path, settings: Settings) -> Path | None:
    """Return the mask of known landslides beside a raster; None if missing.

    The mask must pass the checks of a raster.

    Args:
        raster: that `local` returned, or that a job fetched.
        settings: of the agency.

    Raises:
        SourceError: it leads out of its folder, or is no GeoTIFF.
    """
    named = raster.with_name(f"{raster.stem}{MASK_SUFFIX}")
    if not os.path.lexists(named):
        return None
    root = settings.data if raster.is_relative_to(settings.data.resolve()) else raster.parent
    return _check_if_changed(_resolve_below(named, root, named.name), root, named.name)


def _check_if_changed(path: Path, root: Path, name: str) -> Path:
    """Return a path after `check`.

    The check is repeated if a file beside the path has changed.

    Raises:
        SourceError: it may not be opened.
    """
    _check_links(path, root, name)
    _check_cached(path, root, name, tuple(_file_state(file) for file in (path, *_related_files(path))))
    return path


def _check_links(path: Path, root: Path, name: str) -> None:
    """Check that no link beside a raster leads out of its folder.

    Only links that GDAL may take for a part of the raster are checked.

    Raises:
        SourceError: one does.
    """
    for side in _related_files(path):
        if side.is_symlink():
            _resolve_below(side, root, f"{name}: {side.name}, which lies beside it")


@lru_cache(maxsize=10_000)
def _check_cached(path: Path, root: Path, name: str, _stamps: tuple[_FileState, ...]) -> None:
    """Run `check` once for each state of the files."""
    check_file(path, root, name)


def _file_state(file: Path) -> _FileState:
    """Return a stamp that identifies a file, and the file that it may link to."""
    link, found = file.lstat(), file.stat() if file.exists() else file.lstat()
    return str(file), link.st_ino, link.st_mtime_ns, found.st_ino, found.st_mtime_ns, found.st_size


def confine_gdal(*, warping: bool = False) -> None:
    """Restrict GDAL to the drivers of maps, without network, also in child processes.

    rasterio and pyogrio bring a GDAL each, which takes up its drivers once, when it is first used; which those are,
    another process tells. So this comes before anything that imports pyogrio.

    Args:
        warping: whether this process warps, as for tiles of a picture: rasterio does so by way of its own VRTs. The
            processes that it starts do not.

    Raises:
        ParamsError: it comes too late.
    """
    if "GDAL_SKIP" not in os.environ:
        command = [sys.executable, "-c", _LIST_DRIVERS_SCRIPT]
        free = {name: value for name, value in os.environ.items() if name != "OGR_SKIP"}
        told = subprocess.run(command, env=free, capture_output=True, text=True, check=True).stdout
        _skip_drivers({*told.strip().split(",")} - ALLOWED_DRIVERS)
    os.environ.update(OFFLINE_OPTIONS)
    os.environ.setdefault("CPL_LOG", os.devnull)  # workers' GDAL warns of each driver that it does not have at all
    skipped = {*os.environ["GDAL_SKIP"].split(",")}
    kept = ALLOWED_DRIVERS | ({"VRT"} if warping else set())
    _skip_drivers(skipped - kept)
    with stderr_suppressed():  # each GDAL complains of names that only the other has
        import pyogrio

        with rasterio.Env() as environment:
            left = {*environment.drivers(), *pyogrio.list_drivers()} - kept
    _skip_drivers(skipped)
    if left:
        raise ParamsError(
            f"GDAL still has the drivers {', '.join(sorted(left)[:5])} …; start the service in a process of its own"
        )


def _skip_drivers(drivers: set[str]) -> None:
    """Set the variables that name the drivers which GDAL skips."""
    for name in ("GDAL_SKIP", "OGR_SKIP", CONFINED_DRIVERS):
        os.environ[name] = ",".join(sorted(drivers))


def _split_reference(href: str) -> list[str]:
    """Return the parts of a relative path; none is empty, hidden or `..`."""
    parts = href.split("/")
    if (
        len(href) > MAX_REFERENCE_CHARACTERS
        or not href.isprintable()
        or any(sign in href for sign in '\\:"')
        or any(not part or part.startswith(".") for part in parts)
    ):
        shown = re.split("[?#]", href, maxsplit=1)[0] if ":" in href else href  # a query may hold a signature
        shown = re.sub("//[^/]*@", "//", shown)
        raise ForbiddenError(
            f"{shown[:100]!a}: no reference to a raster; expected one below the data folder, such as "
            "basins/liboriana.tif, uploads/ID, or an https:// or s3:// address that is allowed"
        )
    return parts


def _uploaded_raster(folder: Path, href: str) -> Path:
    """Return the raster of an upload."""
    try:
        names = [path for path in folder.iterdir() if not path.name.startswith(".")]
        files = [path for path in names if not path.name.casefold().endswith((*PICTURE_SUFFIXES, TAGS_SUFFIX, ".part"))]
    except OSError:
        files = []
    if len(files) != 1:
        raise SourceError(f"{href}: no such upload, or no longer; upload the raster again")
    return files[0]


def _resolve_below(path: Path, root: Path, name: str) -> Path:
    """Resolve a path that must lead to a file below a folder.

    Raises:
        SourceError: it leads out, or there is no file.
    """
    try:
        found = path.resolve(strict=True)
        if not found.is_relative_to(root.resolve(strict=True)):
            raise ForbiddenError(f"{name}: leads out of its folder; put a copy there")
        if not found.is_file():  # a pipe would keep us waiting
            raise SourceError(f"{name}: no file")
    except (OSError, RuntimeError) as error:  # a missing file, a name too long, links in a circle
        raise SourceError(f"{name}: no such file") from error
    return found


def _related_files(path: Path) -> list[Path]:
    """Return all files that GDAL may take for a part of a raster, sorted.

    These are world files, tables of georeferences, files of metadata, overviews, masks and tags, which all begin with
    the raster's name without its suffix. Other rasters are judged by themselves.
    """
    stem = path.stem.casefold()
    names = [(side, side.name.casefold()) for side in path.parent.iterdir()]
    return sorted(side for side, name in names if name.startswith(stem) and not name.endswith(_RASTER_SUFFIXES))


def _sidecar_files(path: Path) -> list[Path]:
    """Return the overviews, masks and tags beside a raster.

    Those of overviews and masks are included; upper and lower case are equal.
    """
    name = re.escape(path.name.casefold())
    beside = re.compile(rf"{name}(\.ovr|\.msk)*(\.ovr|\.msk|\.aux\.xml)")
    found = [side for side in path.parent.iterdir() if beside.fullmatch(side.name.casefold())]
    return sorted(found, key=lambda side: (-len(side.name), side.name))  # those of overviews before the overviews


MAX_DIRECTORIES = 100  # overviews and masks among them
MAX_METADATA_BYTES = 500_000  # of GDAL's XML
_BANDS_TAG, _METADATA_TAG = 277, 42112  # tags of TIFF
_ENTRY_FORMATS = {"short": ("H", "HHI", 12, "I"), "long": ("Q", "HHQ", 20, "Q")}  # of TIFF and of BigTIFF


def check_directories(path: Path, name: str) -> None:
    """Check that a TIFF is not too complex for GDAL to read quickly.

    Bands, metadata and directories are limited.

    A damaged file, or one that is not a TIFF, passes: opening it raises an error.

    Args:
        path: the file.
        name: of the file, in messages.

    Raises:
        SourceError: it has more.
    """
    try:
        with path.open("rb") as file:
            _check_tiff(file, name)
    except (struct.error, OSError, OverflowError, ValueError):  # cut off, or leads nowhere
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
                f"{name}: has more than {MAX_DIRECTORIES} overviews and masks; write it anew, for example with "
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
        raise SourceError(f"{name}: has {value:,} bands; at most {MAX_BANDS:,} are read")
    if tag == _METADATA_TAG and length > MAX_METADATA_BYTES:
        raise SourceError(
            f"{name}: has {length:,} bytes of metadata; at most {MAX_METADATA_BYTES:,} are read; write it without"
        )


def _unpack(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])
