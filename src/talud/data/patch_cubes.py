"""Patches in NetCDF-4 files with variables over time.

The layout is that of Sen12Landslides: a variable for each band (B02, …, SCL, DEM; VV, VH) and MASK, over time and the
coordinates x and y; attributes state the date of the event, and the images before and after it. Dimensions are taken
from the names in the file, in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from talud.bands import Group, band_named
from talud.data import masks
from talud.data.patch_files import PatchShape, array_in, metres_per_unit, open_hdf5
from talud.errors import SourceError

if TYPE_CHECKING:
    import h5py

Plane = NDArray[np.float64]
Moment = Literal["pre", "post"]
MASK = "MASK"
_SCENE_CLASSES = "SCL"
_VARIABLES: Mapping[str, str] = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "red_edge_1": "B05", "red_edge_2": "B06",
    "red_edge_3": "B07", "nir": "B08", "narrow_nir": "B8A", "water_vapour": "B09", "swir1": "B11", "swir2": "B12",
    "elevation": "DEM", "vv": "VV", "vh": "VH",
}  # fmt: skip
_CLEAR_CLASSES = (4, 5, 6, 7)  # vegetation, bare soil, water, unclassified
_INVALID_CLASSES = (0, 1)  # no data, defective
_CLEAR_SHARE = 0.9  # share of clear pixels with which an image is chosen before clearer ones that are further away
_REFLECTANCE_PER_DN = 1e-4  # of whole numbers without a scale factor
_MAX_TIMES = 1000
_MAX_TEXT = 100_000  # characters of an attribute
_SPACING_TOLERANCE = 1e-3  # share of the pixel size
_NANOSECONDS = {"day": 86_400_000_000_000, "hour": 3_600_000_000_000, "minute": 60_000_000_000,
                "second": 1_000_000_000, "millisecond": 1_000_000, "microsecond": 1000, "nanosecond": 1}  # fmt: skip
_TIME_UNIT = re.compile(
    r"(day|hour|minute|second|millisecond|microsecond|nanosecond)s? since "
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}:\d{2})(?:\.\d+)?)?(?: ?(?:Z|UTC))?"
)


def variable_of(band: str) -> str | None:
    """Return the variable of a band, None if it has none.

    A band with the ending _pre or _post has the variable of the name without it.
    """
    return _VARIABLES.get(re.sub("_(pre|post)$", "", band))


@dataclass(frozen=True)
class PatchCube:
    """Open file with variables over time, x and y."""

    path: Path
    file: h5py.File

    @cached_property
    def coordinates(self) -> tuple[Plane, Plane]:
        """Coordinates x and y of the pixels.

        Raises:
            SourceError: They are missing, or not evenly spaced.
        """
        x, y = (np.asarray(array_in(self.file, self.path, axis, 1)[...], np.float64) for axis in "xy")
        for axis, values in (("x", x), ("y", y)):
            steps = np.diff(values)
            if len(steps) < 1 or not np.isfinite(steps).all() or not steps[0]:
                raise SourceError(f"{self.path}: its coordinates {axis} must be at least two different numbers")
            if np.abs(steps - steps[0]).max() > _SPACING_TOLERANCE * abs(steps[0]):
                raise SourceError(f"{self.path}: its coordinates {axis} are not evenly spaced")
        if abs(abs(x[1] - x[0]) - abs(y[1] - y[0])) > _SPACING_TOLERANCE * abs(x[1] - x[0]):
            raise SourceError(f"{self.path}: its pixels are not squares; resample it to square pixels")
        return x, y

    @property
    def shape(self) -> PatchShape:
        """Shape of the patch.

        Raises:
            SourceError: Coordinates or CRS are missing or not valid.
        """
        x, y = self.coordinates
        text = _text(self.file, "crs")
        if not text and "spatial_ref" in self.file:
            text = _text(array_in(self.file, self.path, "spatial_ref", 0, 1), "crs_wkt")
        # GDAL would also read a file whose path the text is.
        if not re.fullmatch(r"EPSG:[0-9]{4,6}", text) and not re.match(
            r"(PROJ|GEOG|GEOD|COMPOUND|BOUND)[A-Z]*\[", text
        ):
            raise SourceError(f"{self.path}: its attribute crs is '{text[:60]}'; expected a code such as EPSG:32632")
        try:
            crs = CRS.from_string(text)
        except CRSError as error:
            raise SourceError(f"{self.path}: its CRS '{text[:60]}' is not valid") from error
        size = abs(x[1] - x[0]) * metres_per_unit(crs) if crs.is_projected else None
        return PatchShape(len(y), len(x), 0, size, bool(crs.is_geographic))

    @cached_property
    def days(self) -> NDArray[np.datetime64]:
        """Acquisition dates, ascending.

        Raises:
            SourceError: They are missing, or not valid.
        """
        values = array_in(self.file, self.path, "time", 1)
        if not 0 < len(values) <= _MAX_TIMES:
            raise SourceError(f"{self.path}: has {len(values)} times; expected 1 to {_MAX_TIMES}")
        unit = _TIME_UNIT.fullmatch(_text(values, "units").strip())
        if not unit or _text(values, "calendar") not in ("", "standard", "gregorian", "proleptic_gregorian"):
            raise SourceError(f"{self.path}: time has the unit '{_text(values, 'units')[:60]}'; expected days since …")
        counts = np.asarray(values[...], np.float64) * (_NANOSECONDS[unit[1]] / 1e9)
        if not (np.abs(counts) < 1e11).all():  # 3000 years, in seconds
            raise SourceError(f"{self.path}: its times are not valid")
        start = np.datetime64(f"{unit[2]}T{unit[3] or '00:00:00'}", "s")
        days = (start + counts.astype("timedelta64[s]")).astype("datetime64[D]")
        if (np.diff(days) < np.timedelta64(0)).any():
            raise SourceError(f"{self.path}: its times are not in order")
        return np.asarray(days)

    @cached_property
    def images(self) -> dict[Moment, tuple[int, ...]]:
        """Numbers of the images before and after the event, the nearest first.

        Before means before the first of several events, after means after the last one. The image of the day of the
        event belongs to neither.

        Raises:
            SourceError: An attribute is not valid.
        """
        count, chosen = len(self.days), np.ones((2, len(self.days)), bool)
        stated = _text(self.file, "pre_post_dates")
        pairs = [(int(pre), int(post)) for pre, post in re.findall(r"'pre': (\d{1,9}), 'post': (\d{1,9})", stated)]
        if any(max(pair) >= count for pair in pairs):
            raise SourceError(f"{self.path}: pre_post_dates is {stated[:60]}, but the file has {count} times")
        pairs = [(pre, post) for pre, post in pairs if pre < post]  # the data set states 0, 0 for an unknown event
        dates = re.findall(r"\d{4}-\d{2}-\d{2}", _text(self.file, "event_date"))
        if not pairs and not dates:
            return {"pre": (), "post": ()}
        numbers = np.arange(count)
        if pairs:
            chosen &= [numbers <= min(pre for pre, _ in pairs), numbers >= max(post for _, post in pairs)]
        if dates:
            events = np.array(dates, "datetime64[D]")
            chosen &= [self.days < events.min(), self.days > events.max()]
        before, after = (np.flatnonzero(one).tolist() for one in chosen)
        return {"pre": tuple(before[::-1]), "post": tuple(after)}

    def choose(self, moment: Moment) -> int | None:
        """Return the number of the optical image of a moment.

        It is the nearest one to the event with at least 90 % of clear pixels; if there is none, the clearest one.
        Without scene classes it is the nearest one. The result is None if no image was taken then.
        """
        numbers = self.images[moment]
        if not numbers or _SCENE_CLASSES not in self.file:
            return next(iter(numbers), None)
        shares = []
        for number in numbers:
            shares.append(np.isin(self.plane(_SCENE_CLASSES, number), _CLEAR_CLASSES).mean())
            if shares[-1] >= _CLEAR_SHARE:
                return number
        return numbers[int(np.argmax(shares))]

    def invalid_pixels(self, number: int) -> NDArray[np.bool_]:
        """Return the pixels whose scene class states no data.

        There are none without scene classes.
        """
        x, y = self.coordinates
        if _SCENE_CLASSES not in self.file:
            return np.zeros((len(y), len(x)), bool)
        return np.isin(self.plane(_SCENE_CLASSES, number), _INVALID_CLASSES)

    def plane(self, name: str, number: int) -> Plane:
        """Read a variable at a time, north up, NaN where invalid.

        Raises:
            SourceError: The variable is missing, or has other dimensions than time, x and y.
        """
        values = self.variable(name)
        names = _dimensions(values)
        plane = np.asarray(values[tuple(number if axis == "time" else slice(None) for axis in names)], np.float64)
        if [axis for axis in names if axis != "time"] == ["x", "y"]:
            plane = plane.T
        for attribute in ("_FillValue", "missing_value"):
            fill = _number(values, attribute)
            if fill is not None:
                plane[plane == fill] = np.nan
        plane = plane * _factor(values) + (_number(values, "add_offset") or 0.0)
        x, y = self.coordinates
        return plane[:: 1 if y[0] > y[1] else -1, :: 1 if x[0] < x[1] else -1]

    def variable(self, name: str) -> h5py.Dataset:
        """Return a variable after checking its dimensions.

        Raises:
            SourceError: It is missing, or has other dimensions than time, x and y.
        """
        values = array_in(self.file, self.path, name, 2, 3)
        names = _dimensions(values)
        if sorted(names) != ["time", "x", "y"][3 - values.ndim :]:
            raise SourceError(
                f"{self.path}: '{name}' has the dimensions {', '.join(names)[:80]}; expected time, x and y, as named "
                "dimensions of NetCDF"
            )
        x, y = self.coordinates
        sides = {"time": len(self.days), "x": len(x), "y": len(y)}
        if values.shape != tuple(sides[axis] for axis in names):
            raise SourceError(f"{self.path}: '{name}' has {values.shape}, other sides than its coordinates")
        return values


@contextmanager
def open_cube(path: Path) -> Iterator[PatchCube]:
    """Open a file with variables over time.

    Raises:
        SourceError: The file cannot be read, within the block too.
    """
    with open_hdf5(path) as file:
        yield PatchCube(path, file)


def check_cube(path: Path, sar: Path | None, variables: Mapping[str, str]) -> tuple[PatchShape, bool]:
    """Check a patch; return its shape, and if its bands have dates.

    Raises:
        SourceError: The file lacks a variable, or cannot be read, or that of the SAR variables has another grid.
    """
    with _open_all(path, sar) as cubes:
        for name in variables.values():
            _owner(cubes, name).variable(name)
        moments = [(_owner(cubes, name), moment_of(band)) for band, name in variables.items()]
        dated = all(cube.images[moment] for cube, moment in moments if moment)
        return cubes[0].shape, dated


def read_bands(path: Path, sar: Path | None, variables: Mapping[str, str]) -> NDArray[np.float64]:
    """Read the bands of a patch, (bands, height, width), NaN where invalid.

    Optical bands are reflectance. The image is that after the event, or before it if the name of the band ends in _pre.

    Args:
        path: file with the variables.
        sar: file of the same patch with further variables.
        variables: band name → variable.

    Raises:
        SourceError: The files cannot be read, lack a variable, or have different grids.
    """
    with _open_all(path, sar) as cubes:
        shape = cubes[0].shape
        found = []
        chosen: dict[tuple[Path, Moment], int | None] = {}
        invalid: dict[tuple[Path, int], NDArray[np.bool_]] = {}
        for band, name in variables.items():
            cube, moment = _owner(cubes, name), moment_of(band)
            optical = band_named(band).group is Group.OPTICAL
            number: int | None = 0
            if moment:
                if optical and (cube.path, moment) not in chosen:
                    chosen[cube.path, moment] = cube.choose(moment)
                number = chosen[cube.path, moment] if optical else next(iter(cube.images[moment]), None)
            if number is None:
                found.append(np.full((shape.height, shape.width), np.nan))
                continue
            values = cube.plane(name, number)
            if optical:
                if (cube.path, number) not in invalid:
                    invalid[cube.path, number] = cube.invalid_pixels(number)
                values = np.where(invalid[cube.path, number], np.nan, _reflectance(cube, name, values))
            found.append(values)
    return np.stack(found)


def read_mask(path: Path) -> NDArray[np.uint8] | None:
    """Read the mask: 1 landslide, 0 background, 255 unknown.

    The result is None if the file has no mask.

    Raises:
        SourceError: The mask cannot be read, or has other values than 0 and 1, or 0 and 255.
    """
    with open_cube(path) as cube:
        if MASK not in cube.file:
            return None
        values = cube.plane(MASK, 0)
        return masks.classify_values(path, np.nan_to_num(values), np.isfinite(values))


def moment_of(band: str) -> Moment | None:
    """Return the moment of a band: before or after the event.

    The result is None for terrain.
    """
    if band_named(band).group is Group.TERRAIN:
        return None
    return "pre" if band.endswith("_pre") else "post"


def has_variable(path: Path, name: str) -> bool:
    """Return true if a file has a variable."""
    with open_hdf5(path) as file:
        return name in file


@contextmanager
def _open_all(path: Path, sar: Path | None) -> Iterator[list[PatchCube]]:
    """Open the files of a patch, which must have one grid."""
    with open_cube(path) as cube:
        if sar is None:
            yield [cube]
            return
        with open_cube(sar) as other:
            grids = cube.coordinates, other.coordinates
            for mine, its in zip(*grids, strict=True):
                if mine.shape != its.shape or np.abs(mine - its).max() > _SPACING_TOLERANCE * abs(mine[1] - mine[0]):
                    raise SourceError(f"{path} and {sar}: are not on one grid, so they are not of one patch")
            yield [cube, other]


def _owner(cubes: list[PatchCube], name: str) -> PatchCube:
    return next((cube for cube in cubes if name in cube.file), cubes[0])


def _reflectance(cube: PatchCube, name: str, values: Plane) -> Plane:
    """Return reflectance of the values of an optical variable."""
    stored = cube.variable(name)
    whole_numbers = stored.dtype.kind in "iu" and _number(stored, "scale_factor") is None
    return values * _REFLECTANCE_PER_DN if whole_numbers else values


def _dimensions(values: h5py.Dataset) -> list[str]:
    """Return the names of an array's dimensions."""
    scales = [axis[0].name if len(axis) else axis.label for axis in values.dims]
    return [str(name or "?").rsplit("/", 1)[-1] for name in scales]


def _text(holder: h5py.File | h5py.Dataset, name: str) -> str:
    """Return an attribute as text, empty if there is none."""
    value = holder.attrs.get(name, "")
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))[:_MAX_TEXT]


def _number(holder: h5py.Dataset, name: str) -> float | None:
    """Return a numeric attribute, None if there is none."""
    value = np.asarray(holder.attrs.get(name, ()))
    return float(value.ravel()[0]) if value.size and value.dtype.kind in "iuf" else None


def _factor(values: h5py.Dataset) -> float:
    factor = _number(values, "scale_factor")
    return 1.0 if factor is None else factor
