"""Checks of sources: fill values, dates and overlaps.

Scores of a transfer or gate area are meaningless if a model was trained on the same ground. Areas are compared by their
sources, not by their stacks, which may be missing or older than params.yaml. The overlap is found when the second of
two areas is stacked.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.warp import transform
from rasterio.windows import Window
from scipy.ndimage import label

from talud.data import sources, warping
from talud.data.inventory import Polygons
from talud.data.resampling import SourceStack, open_sources, stack_grid
from talud.data.sar import stated_unit
from talud.data.stack_spec import StackSpec, spec_of_area
from talud.errors import ParamsError, TaludError, TaludWarning
from talud.grid import Grid
from talud.params import Area, Source
from talud.project import Project

_FILL_VALUES = (
    0.0,
    -1.0,
    -99.0,
    -999.0,
    -9999.0,
    -32767.0,
    -32768.0,
    -99999.0,
    32767.0,
    65535.0,
    float(np.finfo("f4").min),
)
_MIN_FILL_SHARE = 0.001  # share of the pixels from which a frequent value may be fill
_MIN_FILL_GAP_METRES = 20.0  # distance from fill to the next height; a coast has pixels at every height above 0
_SPIKE_RATIO = 20  # ratio of the pixels with a fill value to those with a neighbouring value
_MIN_EDGE_SHARE = 0.5  # share of an optical image's fill that is connected with the image's border
_DATE_PATTERN = re.compile(r"(?<!\d)((?:19[89]|20\d)\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)")
# The first date in the name of a Sentinel-1, Sentinel-2, OPERA or Landsat product is that of its acquisition.
_PRODUCT_PATTERN = re.compile(r"S[12][A-D]_|OPERA_|L[COTEM]0\d_|T\d\d[A-Z]{3}_")
_DATE_TAGS = (
    "ACQUISITION_DATE", "ACQUISITIONDATE", "DATE_ACQUIRED", "ACQUISITION_DATETIME", "ACQUISITION_TIME", "SENSING_TIME",
    "ACQUISITION_START_TIME", "SENSING_START", "ZERO_DOPPLER_START_TIME", "PRODUCT_START_TIME", "START_TIME",
    "FIRST_LINE_TIME", "DATATAKE_1_DATATAKE_SENSING_START",
)  # fmt: skip


def warn_about_sources(spec: StackSpec) -> None:
    """Warn about suspicious sources of a stack.

    Raises:
        SourceError: A source cannot be read.
    """
    days: dict[Source, date | None] = {}
    samples: dict[Source, NDArray[np.float64]] = {}
    used: tuple[Source, ...] = ("optical", "dtm", "sar_pre", "sar_post")
    for source in (source for source in used if source in spec.files):
        indexes = [1] if source == "dtm" else [*spec.band_numbers[source].numbers.values()]
        with sources.open_source(spec.files[source]) as dataset:
            days[source] = acquisition_date(dataset)
            samples[source] = sources.read_sample(dataset, indexes) if indexes else np.empty((0, 0, 0))
            if samples[source].size:
                _warn_about_fill(dataset, source, samples[source], spec)
    _warn_about_equal_scenes(spec, samples)
    _warn_about_dates(spec, days)


def acquisition_date(dataset: DatasetReader) -> date | None:
    """Return a scene's acquisition date by tags or name.

    The result is None if they state no date, or several.
    """
    tags = {key.upper(): text for key, text in dataset.tags().items()}
    found = [day for key in _DATE_TAGS if (day := _DATE_PATTERN.search(tags.get(key, "")))]
    if not found:
        name = Path(dataset.name).stem
        found = list(_DATE_PATTERN.finditer(name))
        if len({day.groups() for day in found}) > 1 and not _PRODUCT_PATTERN.search(name):
            return None
    try:
        return date(*map(int, found[0].groups())) if found else None
    except ValueError:  # an impossible date, such as 20150231
        return None


def _warn(text: str) -> None:
    warnings.warn(text, TaludWarning, stacklevel=3)


def _warn_about_equal_scenes(spec: StackSpec, samples: Mapping[Source, NDArray[np.float64]]) -> None:
    """Warn if both SAR scenes have equal pixels."""
    pre, post = samples.get("sar_pre"), samples.get("sar_post")
    if pre is not None and post is not None and pre.size and np.array_equal(pre, post, equal_nan=True):
        _warn(
            f"{spec.files['sar_pre']} and {spec.files['sar_post']}: the SAR scenes before and after the event have "
            "the same pixels, so no change can be seen; give two scenes"
        )


def _warn_about_dates(spec: StackSpec, found: Mapping[Source, date | None]) -> None:
    """Warn about contradictory dates.

    Stated dates are compared with those given, the event and each other.
    """
    given = {"optical": spec.area.acquired.optical, "sar_pre": spec.area.acquired.sar_pre}
    given["sar_post"], event = spec.area.acquired.sar_post, spec.area.event
    days: dict[str, date] = {}
    for source, stated in found.items():
        given_date = given.get(source)
        if given_date and stated and given_date != stated:
            _warn(f"{spec.files[source]}: its name or tags state {stated}, but its given date is {given_date}")
        if day := given_date or stated:
            days[source] = day
    pre, post = days.get("sar_pre"), days.get("sar_post")
    if pre and post and pre >= post:
        _warn(
            f"{spec.files['sar_pre']}: the SAR scene before the event is of {pre}, not earlier than the one after it, "
            f"of {post}; exchange them, or set their dates"
        )
    if event and pre and pre >= event:
        _warn(f"{spec.files['sar_pre']}: is of {pre}, not before the event of {event}")
    for source in ("sar_post", "optical"):
        if event and source in days and days[source] < event:
            _warn(f"{spec.files[source]}: is of {days[source]}, before the event of {event}")


def _warn_about_fill(dataset: DatasetReader, source: Source, sample: NDArray[np.float64], spec: StackSpec) -> None:
    """Warn about frequent values that look like undeclared nodata."""
    if source == "optical":
        found = _optical_fill(sample)
    elif source == "dtm":
        found = _terrain_fill(sample[0] * dataset.scales[0] + dataset.offsets[0], dataset)
    else:
        stated = stated_unit(dataset, next(iter(spec.band_numbers[source].numbers.values())))
        unit = spec.area.sar_unit or (stated[0] if stated else None)
        found = _radar_fill(sample[0], decibels=unit == "db")
    if not found:
        return
    value, count = found
    share = count / sample[0].size
    if dataset.nodata is None or not np.isfinite(dataset.nodata):
        advice = f"declare it with gdal_edit.py -a_nodata {value:g} {dataset.name}"
    else:
        advice = f"it declares {dataset.nodata:g} to be nodata: change {value:g} to that (gdal_calc.py)"
    _warn(f"{dataset.name}: {share:.1%} of its pixels are {value:g}, far from all others, as if missing; {advice}")


def _terrain_fill(elevation: NDArray[np.float64], dataset: DatasetReader) -> tuple[float, int] | None:
    """Return a height that looks like fill, with count.

    It is far from all other heights.
    """
    heights, counts = np.unique(elevation[np.isfinite(elevation)], return_counts=True)
    for stored in _FILL_VALUES:
        at = np.flatnonzero(heights == stored * dataset.scales[0] + dataset.offsets[0])
        if not len(at) or len(heights) < 2 or counts[at[0]] < _MIN_FILL_SHARE * elevation.size:
            continue
        if np.abs(np.delete(heights, at[0]) - heights[at[0]]).min() > _MIN_FILL_GAP_METRES:
            return stored, int(counts[at[0]])
    return None


def _radar_fill(values: NDArray[np.float64], *, decibels: bool) -> tuple[float, int] | None:
    """Return a suspiciously frequent value, with count.

    Its neighbouring values are much less frequent.

    Values up to 0 are invalid as power in any case.
    """
    found, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    for fill in _FILL_VALUES:
        at = np.flatnonzero(found == fill)
        if not len(at) or len(found) < 2 or not (decibels or fill > 0):
            continue
        neighbours = counts[[place for place in (at[0] - 1, at[0] + 1) if 0 <= place < len(found)]].max()
        if counts[at[0]] >= max(_MIN_FILL_SHARE * values.size, _SPIKE_RATIO * neighbours):
            return fill, int(counts[at[0]])
    return None


def _optical_fill(bands: NDArray[np.float64]) -> tuple[float, int] | None:
    """Return a value common along the border, with count.

    All bands have it there, and hardly any pixel has a similar value.
    """
    step = 2.0 if np.nanmax(bands, initial=0) > _SPIKE_RATIO else 1e-3
    for fill in _FILL_VALUES:
        marked = (bands == fill).all(axis=0)
        count = int(marked.sum())
        if count < _MIN_FILL_SHARE * marked.size or marked.all():
            continue
        near = int((np.abs(bands - fill) <= step).all(axis=0).sum()) - count
        pieces, _ = label(marked, np.ones((3, 3)))
        rim = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
        at_edge = np.isin(pieces, rim[rim > 0]).sum()
        if count >= _SPIKE_RATIO * near and at_edge >= _MIN_EDGE_SHARE * count:
            return fill, count
    return None


@dataclass(frozen=True)
class _Footprint:
    """Valid pixels of an area inside its boundary."""

    source_stack: SourceStack
    boundary: Polygons | None

    @classmethod
    def of(cls, spec: StackSpec, source_stack: SourceStack) -> Self:
        """Return the footprint of an area with open sources."""
        path = spec.files.get("boundary")
        return cls(source_stack, Polygons.read(path, "boundary", source_stack.grid.crs) if path else None)

    def pixels(self, window: Window) -> NDArray[np.bool_]:
        """Return a window's pixels in the area, (height, width)."""
        measured = [
            index for index, name in enumerate(self.source_stack.bands) if name not in self.source_stack.occlusions
        ]
        values, _ = self.source_stack.read(window)
        inside = np.asarray(np.isfinite(values[measured]).any(axis=0))
        if self.boundary is not None:
            inside[~self.boundary.rasterise(self.source_stack.grid.crop(window), all_touched=False)] = False
        return inside


def check_overlap(project: Project, spec: StackSpec, source_stack: SourceStack) -> None:
    """Check that an area overlaps no other area.

    Areas whose sources are missing or not usable are skipped; `talud stack` of that area reports them. If params.yaml
    allows overlaps, nothing is checked.

    Args:
        project: the project.
        spec: specification of the area's stack.
        source_stack: open sources of the area.

    Raises:
        ParamsError: The area overlaps another area.
    """
    if spec.options.overlap == "allow":
        return
    for name, area in project.params.areas.items():
        if name == spec.name or not _must_not_overlap(spec.area, area):
            continue
        try:
            other = spec_of_area(project, name)
            if not _overlap_windows(source_stack.grid, stack_grid(other)):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `talud stack` of the other area shows its warnings
                with open_sources(other) as opened:
                    shared = _count_shared_pixels(_Footprint.of(spec, source_stack), _Footprint.of(other, opened), area)
        except TaludError:
            continue
        if shared:
            raise ParamsError(
                f"areas '{spec.name}' ({spec.area.role}) and '{name}' ({area.role}) overlap: {shared:,} "
                f"{'pixel is' if shared == 1 else 'pixels are'} in both, so scores there would include ground on which "
                "a model was trained or selected; change the bounds or boundary of one, or set stack.overlap to allow"
            )


def _must_not_overlap(one: Area, other: Area) -> bool:
    """Check if two areas must not share pixels.

    Patches have no coordinates and never overlap.
    """
    if one.patches or other.patches:
        return False
    # Training areas are split independently, so a shared pixel could be in training and in test.
    return one.role != other.role or one.role == "training"


def _overlap_windows(grid: Grid, other: Grid) -> list[Window]:
    """Return windows covering the overlap of two grids.

    The list is empty if the grids are disjoint.
    """
    left, bottom, right, top = warping.bounds_in(grid.crs, other)
    into_pixels = ~grid.transform
    (first_column, first_row), (last_column, last_row) = into_pixels * (left, top), into_pixels * (right, bottom)
    columns = max(round(first_column), 0), min(round(last_column), grid.width)
    rows = max(round(first_row), 0), min(round(last_row), grid.height)
    if columns[1] <= columns[0] or rows[1] <= rows[0]:
        return []
    common = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
    return [
        Window(common.col_off + window.col_off, common.row_off + window.row_off, window.width, window.height)
        for window in grid.crop(common).windows(256)
    ]


def _count_shared_pixels(one: _Footprint, other: _Footprint, other_area: Area) -> int:
    """Count the pixels that two areas share.

    A pixel of one area counts if it belongs to that area and its centre is in a pixel of the other area.
    """
    grid = other.source_stack.grid
    count = 0
    for window in _overlap_windows(one.source_stack.grid, grid):
        rows, columns, x, y = _pixel_positions(one.source_stack.grid.crop(window), grid)
        inside = (rows >= 0) & (rows < grid.height) & (columns >= 0) & (columns < grid.width)
        if other_area.bounds:
            left, bottom, right, top = other_area.bounds
            inside &= (x >= left) & (x < right) & (y > bottom) & (y <= top)
        if not inside.any():
            continue
        inside &= one.pixels(window)
        if not inside.any():
            continue
        rows, columns = rows[inside], columns[inside]
        top_row, left_column = int(rows.min()), int(columns.min())
        there = Window(left_column, top_row, int(columns.max()) - left_column + 1, int(rows.max()) - top_row + 1)
        count += int(np.count_nonzero(other.pixels(there)[rows - top_row, columns - left_column]))
    return count


def _pixel_positions(
    grid: Grid, other: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the position of pixel centres in another grid.

    Returns:
        Row and column in that grid, then x and y in its CRS, each (height, width).
    """
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    xs, ys = grid.transform * (columns, rows)
    if grid.crs != other.crs:
        moved = transform(grid.crs, other.crs, xs.ravel(), ys.ravel())
        xs, ys = (np.asarray(values).reshape(grid.shape) for values in moved)
    there_columns, there_rows = ~other.transform * (xs, ys)
    return (
        np.floor(np.nan_to_num(there_rows, nan=-1, posinf=-1, neginf=-1)).astype(np.int64),
        np.floor(np.nan_to_num(there_columns, nan=-1, posinf=-1, neginf=-1)).astype(np.int64),
        xs,
        ys,
    )
