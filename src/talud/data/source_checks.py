"""Warnings about sources that are suspicious but valid.

They concern undeclared fill values, and scenes that are given twice or in the wrong order.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from scipy.ndimage import label

from talud.data import sources
from talud.data.recipe import Recipe
from talud.data.sar import stated_unit
from talud.errors import TaludWarning
from talud.params import Source

_FILLS = (0.0, -1.0, -99.0, -999.0, -9999.0, -32767.0, -32768.0, -99999.0, 32767.0, 65535.0, float(np.finfo("f4").min))
_LEAST_SHARE = 0.001  # of the pixels, from which a value that many of them have is suspected to be fill
_EMPTY_GAP_METRES = 20.0  # between fill and terrain; a coast has pixels at every height above 0
_SPIKE = 20  # times as many pixels as have a neighbouring value
_SHARE_AT_EDGE = 0.5  # of the fill of an optical image, which is connected with its border
_DAY = re.compile(r"(?<!\d)((?:19[89]|20\d)\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)")
# The first day in the name of a product of Sentinel-1 or 2, of OPERA or of Landsat is that of its acquisition.
_PRODUCT = re.compile(r"S[12][A-D]_|OPERA_|L[COTEM]0\d_|T\d\d[A-Z]{3}_")
_DATE_TAGS = (
    "ACQUISITION_DATE", "ACQUISITIONDATE", "DATE_ACQUIRED", "ACQUISITION_DATETIME", "ACQUISITION_TIME", "SENSING_TIME",
    "ACQUISITION_START_TIME", "SENSING_START", "ZERO_DOPPLER_START_TIME", "PRODUCT_START_TIME", "START_TIME",
    "FIRST_LINE_TIME", "DATATAKE_1_DATATAKE_SENSING_START",
)  # fmt: skip


def warn_of_doubts(recipe: Recipe) -> None:
    """Warn of suspicious sources of a stack that may be intended.

    Raises:
        SourceError: a source cannot be read.
    """
    days: dict[Source, date | None] = {}
    samples: dict[Source, NDArray[np.float64]] = {}
    used: tuple[Source, ...] = ("optical", "dtm", "sar_pre", "sar_post")
    for source in (source for source in used if source in recipe.files):
        indexes = [1] if source == "dtm" else [*recipe.taken[source].numbers.values()]
        with sources.open_source(recipe.files[source]) as dataset:
            days[source] = acquired(dataset)
            samples[source] = sources.sample(dataset, indexes) if indexes else np.empty((0, 0, 0))
            if samples[source].size:
                _warn_of_fill(dataset, source, samples[source], recipe)
    _warn_of_scenes(recipe, samples)
    _warn_of_days(recipe, days)


def acquired(dataset: DatasetReader) -> date | None:
    """Return the day on which a scene was acquired, by its tags or its name.

    None where they state no day, or several.
    """
    tags = {key.upper(): text for key, text in dataset.tags().items()}
    found = [day for key in _DATE_TAGS if (day := _DAY.search(tags.get(key, "")))]
    if not found:
        name = Path(dataset.name).stem
        found = list(_DAY.finditer(name))
        if len({day.groups() for day in found}) > 1 and not _PRODUCT.search(name):
            return None
    try:
        return date(*map(int, found[0].groups())) if found else None
    except ValueError:  # 20150231
        return None


def _warn(text: str) -> None:
    warnings.warn(text, TaludWarning, stacklevel=3)


def _warn_of_scenes(recipe: Recipe, samples: Mapping[Source, NDArray[np.float64]]) -> None:
    """Warn where pre- and post-event SAR scenes have the same pixels."""
    pre, post = samples.get("sar_pre"), samples.get("sar_post")
    if pre is not None and post is not None and pre.size and np.array_equal(pre, post, equal_nan=True):
        _warn(
            f"{recipe.files['sar_pre']} and {recipe.files['sar_post']}: the SAR scenes before and after the event have "
            "the same pixels, so no change can be seen; give two scenes"
        )


def _warn_of_days(recipe: Recipe, found: Mapping[Source, date | None]) -> None:
    """Warn where stated days contradict those given, the event or each other."""
    given = {"optical": recipe.area.acquired.optical, "sar_pre": recipe.area.acquired.sar_pre}
    given["sar_post"], event = recipe.area.acquired.sar_post, recipe.area.event
    days: dict[str, date] = {}
    for source, told in found.items():
        said = given.get(source)
        if said and told and said != told:
            _warn(f"{recipe.files[source]}: its name or tags say {told}, but it is given as of {said}")
        if day := said or told:
            days[source] = day
    pre, post = days.get("sar_pre"), days.get("sar_post")
    if pre and post and pre >= post:
        _warn(
            f"{recipe.files['sar_pre']}: the SAR scene before the event is of {pre}, not before that after it, of "
            f"{post}; exchange them, or state their days"
        )
    if event and pre and pre >= event:
        _warn(f"{recipe.files['sar_pre']}: is of {pre}, not before the event of {event}")
    for source in ("sar_post", "optical"):
        if event and source in days and days[source] < event:
            _warn(f"{recipe.files[source]}: is of {days[source]}, before the event of {event}")


def _warn_of_fill(dataset: DatasetReader, source: Source, sample: NDArray[np.float64], recipe: Recipe) -> None:
    """Warn of frequent values that look like nodata and are not declared."""
    if source == "optical":
        found = _optical_fill(sample)
    elif source == "dtm":
        found = _terrain_fill(sample[0] * dataset.scales[0] + dataset.offsets[0], dataset)
    else:
        stated = stated_unit(dataset, next(iter(recipe.taken[source].numbers.values())))
        unit = recipe.area.sar_unit or (stated[0] if stated else None)
        found = _radar_fill(sample[0], decibels=unit == "db")
    if not found:
        return
    value, count = found
    share = count / sample[0].size
    if dataset.nodata is None or not np.isfinite(dataset.nodata):
        advice = f"declare it with gdal_edit.py -a_nodata {value:g} {dataset.name}"
    else:
        advice = f"it declares {dataset.nodata:g} to be nodata: change {value:g} to that (gdal_calc.py)"
    _warn(f"{dataset.name}: {share:.1%} of its pixels are {value:g}, far from all others, like missing data; {advice}")


def _terrain_fill(elevation: NDArray[np.float64], dataset: DatasetReader) -> tuple[float, int] | None:
    """Return a height that looks like fill, and the number of its pixels.

    No other heights lie near it.
    """
    heights, counts = np.unique(elevation[np.isfinite(elevation)], return_counts=True)
    for stored in _FILLS:
        at = np.flatnonzero(heights == stored * dataset.scales[0] + dataset.offsets[0])
        if not len(at) or len(heights) < 2 or counts[at[0]] < _LEAST_SHARE * elevation.size:
            continue
        if np.abs(np.delete(heights, at[0]) - heights[at[0]]).min() > _EMPTY_GAP_METRES:
            return stored, int(counts[at[0]])
    return None


def _radar_fill(values: NDArray[np.float64], *, decibels: bool) -> tuple[float, int] | None:
    """Return a value that many pixels have exactly and its neighbours do not.

    Values of 0 and less are no power, and are invalid anyway.
    """
    found, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    for fill in _FILLS:
        at = np.flatnonzero(found == fill)
        if not len(at) or len(found) < 2 or not (decibels or fill > 0):
            continue
        neighbours = counts[[place for place in (at[0] - 1, at[0] + 1) if 0 <= place < len(found)]].max()
        if counts[at[0]] >= max(_LEAST_SHARE * values.size, _SPIKE * neighbours):
            return fill, int(counts[at[0]])
    return None


def _optical_fill(bands: NDArray[np.float64]) -> tuple[float, int] | None:
    """Return a value common along the border, and the number of its pixels.

    All bands have it there, and hardly any pixel has a similar value.
    """
    step = 2.0 if np.nanmax(bands, initial=0) > _SPIKE else 1e-3
    for fill in _FILLS:
        marked = (bands == fill).all(axis=0)
        count = int(marked.sum())
        if count < _LEAST_SHARE * marked.size or marked.all():
            continue
        near = int((np.abs(bands - fill) <= step).all(axis=0).sum()) - count
        pieces, _ = label(marked, np.ones((3, 3)))
        rim = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
        at_edge = np.isin(pieces, rim[rim > 0]).sum()
        if count >= _SPIKE * near and at_edge >= _SHARE_AT_EDGE * count:
            return fill, count
    return None
