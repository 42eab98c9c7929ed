"""SAR backscatter: units and speckle filter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy.ndimage import uniform_filter

from talud.data import sources
from talud.data.sources import SourceLayer
from talud.errors import SourceError
from talud.grid import Grid
from talud.params import SarUnit
from talud.text import counted

Polarisation = Literal["vv", "vh"]
POLARISATIONS: tuple[Polarisation, ...] = ("vv", "vh")
UNIT_NAMES: Mapping[SarUnit, str] = {"amplitude": "amplitude", "power": "power", "db": "dB"}
# Spellings of units by producers, in a band's unit or in one of the tags below.
_UNITS_BY_SPELLING: Mapping[str, SarUnit] = {
    "amplitude": "amplitude",
    "power": "power",
    "linear power": "power",
    "intensity": "power",
    "linear backscatter intensity": "power",
    "db": "db",
    "decibel": "db",
    "decibels": "db",
}
_UNIT_TAGS = ("SAR_UNIT", "UNIT", "UNITS", "unit", "units", "OUTPUT_BACKSCATTER_EXPRESSION_CONVENTION")
# Words that state a unit in a description; "power" and "linear" may have another meaning there.
_UNIT_WORDS = frozenset({"db", "decibel", "decibels", "amplitude", "intensity"})
_MAX_NEGATIVE_SHARE = 0.1  # share of power values that may be negative after the subtraction of noise
_MIN_DB = -100.0  # smaller values are fill
_EQUIVALENT_LOOKS = (
    4.4  # equivalent number of looks of Sentinel-1 IW GRD in high resolution, by its product specification
)

Backscatter = NDArray[np.floating]


def to_power(values: Backscatter, unit: SarUnit) -> Backscatter:
    """Convert backscatter to power, NaN if not positive.

    Power is the square of amplitude; zero backscatter counts as no measurement.
    """
    if unit == "db":
        return np.power(10.0, values / 10)
    power = values**2 if unit == "amplitude" else values
    return np.where(values > 0, power, np.nan)


def from_power(power: Backscatter, unit: SarUnit) -> Backscatter:
    """Convert power, above 0 or NaN, to another unit.

    Amplitude is its square root, decibels are 10 log₁₀ of it.
    """
    if unit == "db":
        decibels: Backscatter = 10 * np.log10(power)
        return decibels
    return np.sqrt(power) if unit == "amplitude" else power


def lee_filter(power: Backscatter, window: int) -> Backscatter:
    """Apply Lee's speckle filter to power, ignoring NaN pixels.

    The estimate is m + k (z − m), with m the mean of the window and k the share of its variance that is not speckle, (1
    − Cu² / Ci²) / (1 + Cu²), between 0 and 1; Ci = standard deviation / m, Cu² = 1 / 4.4 (the equivalent number of
    looks of Sentinel-1 GRD). J. S. Lee, Digital image enhancement and noise filtering by use of local statistics, IEEE
    Transactions on Pattern Analysis and Machine Intelligence 2 (1980) 165-168.

    Args:
        power: power (height, width), NaN where invalid.
        window: side of the filter's window in pixels.
    """
    valid = np.isfinite(power)
    values = np.where(valid, power, 0.0).astype(np.float64)
    share, total, squares = (
        uniform_filter(part, window, mode="constant") for part in (valid.astype(np.float64), values, values**2)
    )
    speckle = 1 / _EQUIVALENT_LOOKS
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / share
        variation = np.maximum(squares / share - mean**2, 0) / mean**2
        weight = np.clip((1 - speckle / variation) / (1 + speckle), 0, 1)
        estimate = mean + weight * (values - mean)
    return np.where(valid, estimate, np.nan)


def stated_unit(dataset: DatasetReader, index: int) -> tuple[SarUnit, str] | None:
    """Return a band's stated unit and its location.

    The location is the band's unit, a tag or the description of the band. The result is None if no unit is stated.

    Raises:
        SourceError: The file states two units.
    """
    tags = {**dataset.tags(), **dataset.tags(index)}
    texts = {"band unit": dataset.units[index - 1], **{f"tag {name}": tags.get(name) for name in _UNIT_TAGS}}
    found = {
        place: unit for place, text in texts.items() if (unit := _UNITS_BY_SPELLING.get((text or "").strip().lower()))
    }
    description = dataset.descriptions[index - 1] or ""
    for word in re.split(r"[^a-z]+", description.lower()):
        if word in _UNIT_WORDS:
            found.setdefault("description", _UNITS_BY_SPELLING[word])
    if len(set(found.values())) > 1:
        stated = " and ".join(f"{UNIT_NAMES[unit]} ({place})" for place, unit in found.items())
        raise SourceError(f"{dataset.name}: states two units for band {index}: {stated}; correct the wrong one")
    return next(((unit, place) for place, unit in found.items()), None)


def _scene_unit(dataset: DatasetReader, indexes: Sequence[int], given: SarUnit | None) -> SarUnit:
    """Return the unit of a scene.

    The unit that the user gives and the one in the file must agree, and fit the values.

    Raises:
        SourceError: They contradict each other, or both are missing.
    """
    stated = [one for one in (stated_unit(dataset, index) for index in indexes) if one]
    for found, place in stated:
        other = given or stated[0][0]
        if found != other:
            raise SourceError(
                f"{dataset.name}: states {UNIT_NAMES[found]} ({place}), but sar_unit is {UNIT_NAMES[other]}; leave "
                f"sar_unit (--sar-unit) out, or, if the file is wrong, correct it (gdal_edit.py -units "
                f"{UNIT_NAMES[other]} for the unit of its bands)"
            )
    unit = given or (stated[0][0] if stated else None)
    if unit is None:
        raise SourceError(
            f"{dataset.name}: neither its unit nor its tags state amplitude, power or dB; set sar_unit (for the area "
            "in params.yaml, or --sar-unit)"
        )
    scales, offsets = (
        np.array([numbers[index - 1] for index in indexes])[:, None, None]
        for numbers in (dataset.scales, dataset.offsets)
    )
    check_unit(sources.read_sample(dataset, indexes) * scales + offsets, unit, dataset.name)
    return unit


def check_unit(values: Backscatter, unit: SarUnit, name: str | Path) -> None:
    """Check that backscatter can be in a unit.

    Args:
        values: backscatter, NaN where invalid.
        unit: unit that the user or the file states.
        name: name of the file, for errors.

    Raises:
        SourceError: Power or amplitude is often negative, or dB never.
    """
    values = values[np.isfinite(values) & (values != 0) & (values > _MIN_DB)]
    negative = np.count_nonzero(values < 0) / max(len(values), 1)
    if unit != "db" and negative > _MAX_NEGATIVE_SHARE:
        raise SourceError(
            f"{name}: {negative:.0%} of its values are negative, which {UNIT_NAMES[unit]} cannot be; they look "
            "like dB: set sar_unit (--sar-unit) to db"
        )
    if unit == "db" and len(values) and not negative:
        low, high = np.percentile(values, (1, 99))
        raise SourceError(
            f"{name}: has values from {low:.3g} to {high:.3g} and none below 0, which backscatter in dB "
            "cannot be; they look like amplitude or power: set sar_unit (--sar-unit), and correct the file's unit"
        )


def sar_layer(
    dataset: DatasetReader,
    numbers: Mapping[Polarisation, int],
    time: Literal["pre", "post"],
    unit: SarUnit | None,
    stack_unit: SarUnit,
    lee_window: int,
) -> SourceLayer:
    """Return the layer of a scene's polarisations.

    The values are resampled as power, then converted to `stack_unit`.

    Args:
        dataset: terrain-corrected scene.
        numbers: polarisation → band number.
        time: "pre" or "post" event.
        unit: unit of the scene; None for the unit that the file states.
        stack_unit: unit of the bands in the stack.
        lee_window: side of the Lee filter in pixels of the scene; 0 for no filter.

    Raises:
        SourceError: A band is missing, or the unit is unknown or contradicts the values.
    """
    for name, number in numbers.items():
        if number > dataset.count:
            raise SourceError(
                f"{dataset.name}: has {counted(dataset.count, 'band')}, but {name} is expected in band {number}"
            )
    indexes = tuple(numbers.values())
    scene_unit = _scene_unit(dataset, indexes, unit)
    margin = lee_window // 2

    def read(window: Window) -> Backscatter:
        values = sources.read_values(dataset, indexes, sources.expand_window(window, margin))
        power = to_power(values, scene_unit)
        power[:, ~np.isfinite(power).all(axis=0)] = np.nan
        if not lee_window:
            return power
        rows = slice(margin, margin + int(window.height))
        columns = slice(margin, margin + int(window.width))
        return np.stack([lee_filter(band, lee_window)[rows, columns] for band in power])

    bands = tuple(f"{polarisation}_{time}" for polarisation in numbers)
    units = (UNIT_NAMES[stack_unit],) * len(bands)
    return SourceLayer(
        Path(dataset.name), Grid.of(dataset), bands, units, read, lambda power: from_power(power, stack_unit)
    )
