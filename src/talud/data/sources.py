"""Sources of an area: search, checks and reading."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.errors import SourceError
from talud.grid import Grid
from talud.params import Source
from talud.raster import alpha_bands, open_raster, read_alpha_mask, read_validity, translate_read_errors
from talud.source_files import COMPANION_SUFFIXES
from talud.text import counted
from talud.vector import ARCHIVE_SUFFIXES, OTHER_VECTOR_SUFFIXES, VECTOR_SUFFIXES, check_supported_format

_RASTER_SOURCES: frozenset[Source] = frozenset({"optical", "dtm", "sar_pre", "sar_post"})
_VECTOR_SOURCES: frozenset[Source] = frozenset({"inventory", "boundary"})
# Suffixes of files that accompany a raster or Shapefile and are not sources themselves.
_SIDECARS = frozenset(
    {".aux", ".cpg", ".csv", ".dbf", ".dvc", ".hdr", ".jgw", ".md", ".md5", ".msk", ".ovr", ".pgw", ".prj"}
    | {".qix", ".qmd", ".qml", ".rrd", ".sbn", ".sbx", ".shx", ".tfw", ".txt", ".wld", ".xml"}
)
_MAX_SAMPLE_SIDE = 512  # largest side of a sample in pixels


@dataclass(frozen=True)
class SourceLayer:
    """Bands of a source, ready to be resampled.

    Attributes:
        path: path of the source.
        grid: grid of the windows to read.
        bands: name of each band.
        units: unit of each band after `finish`.
        read: function that reads a window of `grid`, which may extend past its edge, as floating-point (bands, height,
            width). A pixel is NaN in all bands or in none. The values can be averaged (for example, SAR backscatter is
            power).
        finish: function that converts averaged values to `units`.
        resampling: method for target pixels that are not coarser than the source's.
    """

    path: Path
    grid: Grid
    bands: tuple[str, ...]
    units: tuple[str, ...]
    read: Callable[[Window], NDArray[np.floating]]
    finish: Callable[[NDArray[np.floating]], NDArray[np.floating]] = lambda values: values
    resampling: Resampling = Resampling.bilinear


def find_sources(folder: Path, files: Mapping[Source, str]) -> dict[Source, Path]:
    """Find the sources of an area.

    Args:
        folder: folder of the area, in which sources are found by name (`optical.tif`, `dtm.img` …).
        files: source → file name, for sources with another name.

    Raises:
        SourceError: The folder or a named file does not exist, or several files could be the same source.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; put the sources there (dvc pull, if DVC tracks them)")
    found: dict[Source, Path] = {}
    for source in (*sorted(_RASTER_SOURCES), *sorted(_VECTOR_SOURCES), "cloud", "sar_mask"):
        path = _named(folder, source, files[source]) if source in files else _find_by_name(folder, source)
        if path:
            found[source] = path
    return found


def _named(folder: Path, source: Source, name: str) -> Path:
    path = folder / name
    if not path.exists():
        raise SourceError(f"{path}: no such file, though params.yaml names it as {source}")
    if source not in _RASTER_SOURCES:
        check_supported_format(path)
    return path


def _find_by_name(folder: Path, source: Source) -> Path | None:
    """Find the file of a source by name.

    Raises:
        SourceError: There are several, or the format of the polygons is not supported.
    """
    named = [path for path in sorted(folder.iterdir()) if _stem(path) == source and _suffix(path) not in _SIDECARS]
    others = [path for path in named if _suffix(path) in OTHER_VECTOR_SUFFIXES]
    candidates = [path for path in named if path not in others and not path.is_dir()]
    if source in _VECTOR_SOURCES:
        candidates = [path for path in candidates if _suffix(path) in VECTOR_SUFFIXES]
    if source in _RASTER_SOURCES:
        candidates = [path for path in candidates if _suffix(path) not in VECTOR_SUFFIXES]
    elif others and not candidates:
        check_supported_format(others[0])
    # An archive next to its unpacked files, or a part of a vector file, is not a second source.
    candidates = [path for path in candidates if _suffix(path) not in ARCHIVE_SUFFIXES] or candidates
    parts = {part for path in candidates for part in COMPANION_SUFFIXES.get(_suffix(path), ()) if part != _suffix(path)}
    candidates = [path for path in candidates if _suffix(path) not in parts]
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise SourceError(f"{folder}: {names} could all be {source}; set the right one under 'files' in params.yaml")
    return candidates[0] if candidates else None


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _stem(path: Path) -> str:
    """Return a file's name without its suffix.

    The suffix of a zipped Shapefile may be `.shp.zip`.
    """
    return path.stem.lower().removesuffix(".shp") if _suffix(path) in ARCHIVE_SUFFIXES else path.stem.lower()


@contextmanager
def open_source(path: Path) -> Iterator[DatasetReader]:
    """Open a source raster.

    Raises:
        SourceError: It cannot be read, or has only ground control points, as raw radar scenes do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a missing CRS is reported as an error later
        with open_raster(path) as dataset:
            points, _ = dataset.gcps
            if points and dataset.crs is None:
                raise SourceError(
                    f"{path}: a raw scene with ground control points only; terrain-correct it first (for example with "
                    "Range-Doppler terrain correction in SNAP), or order an RTC product"
                )
            yield dataset


def read_values(
    dataset: DatasetReader, indexes: Sequence[int], window: Window, named: Collection[int] = ()
) -> NDArray[np.float64]:
    """Read values in physical units, (bands, height, width).

    Scale and offset of the file are applied. A pixel that is invalid in one band is NaN in all of them, as is one
    outside the dataset.

    Args:
        dataset: source raster.
        indexes: numbers of the bands to read.
        window: part to read, which may extend past the dataset's edge.
        named: numbers of further bands that are not alpha bands, although the file may declare them so.

    Raises:
        SourceError: The pixels cannot be read.
    """
    values = np.full((len(indexes), int(window.height), int(window.width)), np.nan)
    inner = _overlap(window, dataset.height, dataset.width)
    if inner is None:
        return values
    with translate_read_errors(dataset.name):
        pixels = dataset.read(list(indexes), window=inner)
        masks = read_validity(dataset, indexes, inner)
        opaque = read_alpha_mask(dataset, alpha_bands(dataset, {*indexes, *named}), inner)
    if np.iscomplexobj(pixels):
        raise SourceError(f"{dataset.name}: complex values, a single-look scene; detect and terrain-correct it first")
    scale, offset = (
        np.array([numbers[index - 1] for index in indexes])[:, None, None]
        for numbers in (dataset.scales, dataset.offsets)
    )
    physical = pixels * scale + offset
    # Single bands of dark pixels may be 0 too; with nodata 0, only pixels that are 0 in all bands are invalid.
    valid = (masks.any(axis=0) if dataset.nodata == 0 else masks.all(axis=0)) & opaque
    physical[:, ~(valid & np.isfinite(physical).all(axis=0))] = np.nan
    top, left = int(inner.row_off - window.row_off), int(inner.col_off - window.col_off)
    values[:, top : top + int(inner.height), left : left + int(inner.width)] = physical
    return values


def read_sample(dataset: DatasetReader, indexes: Sequence[int]) -> NDArray[np.float64]:
    """Read a regular sample of stored values.

    Invalid pixels are NaN.

    It has at most 512 rows and columns.

    Raises:
        SourceError: The pixels cannot be read.
    """
    shape = (min(dataset.height, _MAX_SAMPLE_SIDE), min(dataset.width, _MAX_SAMPLE_SIDE))
    with translate_read_errors(dataset.name):
        pixels = dataset.read(list(indexes), out_shape=(len(indexes), *shape))
        valid = read_validity(dataset, indexes, shape=shape)
        opaque = read_alpha_mask(dataset, alpha_bands(dataset, indexes), shape=shape)
    if np.iscomplexobj(pixels):
        raise SourceError(f"{dataset.name}: complex values, a single-look scene; detect and terrain-correct it first")
    return np.where(valid & opaque & np.isfinite(pixels), pixels.astype(np.float64), np.nan)


def _overlap(window: Window, height: int, width: int) -> Window | None:
    left, top = max(window.col_off, 0), max(window.row_off, 0)
    right = min(window.col_off + window.width, width)
    bottom = min(window.row_off + window.height, height)
    return Window(left, top, right - left, bottom - top) if right > left and bottom > top else None


def expand_window(window: Window, margin: int) -> Window:
    """Return a window with a margin on each side."""
    return Window(
        window.col_off - margin, window.row_off - margin, window.width + 2 * margin, window.height + 2 * margin
    )


def count_bands_without_alpha(dataset: DatasetReader) -> int:
    """Count the bands other than alpha."""
    return len(dataset.indexes) - len(alpha_bands(dataset))


def optical_layer(
    dataset: DatasetReader,
    numbers: Mapping[str, int],
    named: Collection[int] = (),
    scale: float | None = None,
    offset: float | None = None,
) -> SourceLayer:
    """Return the layer of an optical image's named bands.

    Args:
        dataset: the image.
        numbers: band name → number in the file.
        named: numbers of further bands that are not alpha, as for `read_values`.
        scale: factor from stored numbers to reflectance, if the file states none.
        offset: offset that is added after scaling, if the file states none.

    Raises:
        SourceError: A band is missing, the file looks like a mask, or it states another scale or offset.
    """
    for name, number in numbers.items():
        # Alpha bands are counted, since GDAL declares any fourth 8-bit band as alpha.
        if number > dataset.count:
            raise SourceError(
                f"{dataset.name}: has {counted(dataset.count, 'band')}, but optical_bands expects {name} in band "
                f"{number}; give the image itself, not a mask or a single band of it"
            )
    _refuse_mask(dataset, list(numbers.values()))
    units = tuple(
        dataset.units[number - 1] or ("DN" if dataset.scales[number - 1] == 1 else "reflectance")
        for number in numbers.values()
    )
    indexes = tuple(numbers.values())
    given = _scaling_to_apply(dataset, indexes, scale, offset)
    if given != (1, 0):
        units = ("reflectance",) * len(indexes)

    def pixels(window: Window) -> NDArray[np.floating]:
        return (read_values(dataset, indexes, window, named) * given[0] + given[1]).astype(np.float32)

    return SourceLayer(Path(dataset.name), Grid.of(dataset), tuple(numbers), units, pixels)


def _scaling_to_apply(
    dataset: DatasetReader, indexes: Sequence[int], scale: float | None, offset: float | None
) -> tuple[float, float]:
    """Return the scale and offset still to apply.

    (1, 0) if the file states the same ones.

    Raises:
        SourceError: The file states other ones, or that its values are reflectance.
    """
    if scale is None and offset is None:
        return 1, 0
    given = 1 if scale is None else scale, offset or 0
    for index in indexes:
        stated = dataset.scales[index - 1], dataset.offsets[index - 1]
        unit = (dataset.units[index - 1] or "").strip().lower()
        if stated == (1, 0) and unit != "reflectance":
            continue
        if not np.allclose(stated, given, rtol=1e-6, atol=1e-9):
            raise SourceError(
                f"{dataset.name}: states scale {stated[0]:g} and offset {stated[1]:g} for band {index}"
                f"{', in reflectance' if unit == 'reflectance' else ''}, but optical_scale and optical_offset are "
                f"{given[0]:g} and {given[1]:g}; leave them out, or correct the file (gdal_edit.py -scale, -offset)"
            )
    same = all((dataset.scales[index - 1], dataset.offsets[index - 1]) != (1, 0) for index in indexes)
    return (1, 0) if same else given


def _refuse_mask(dataset: DatasetReader, indexes: list[int]) -> None:
    height, width = min(dataset.height, 512), min(dataset.width, 512)
    with translate_read_errors(dataset.name):
        sample = np.unique(dataset.read(indexes, out_shape=(len(indexes), height, width)))
    for values in ((0, 1), (0, 255)):
        if len(sample) > 1 and np.isin(sample, values).all():
            raise SourceError(
                f"{dataset.name}: has only the values {values[0]} and {values[1]}, like a mask; "
                "give the optical image itself"
            )
