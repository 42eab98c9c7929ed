"""Channels and variables of bands, given by the user or named by files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from talud.bands import RESCALED_TERRAIN_BANDS, SAR_BANDS, TERRAIN_BANDS, Group, band_named
from talud.data import band_names, patch_cubes, patch_files, sources
from talud.data.band_names import BandDescriptions, MissingBandError, parse_band_name
from talud.data.patch_bands import Channel
from talud.data.patch_files import Layout
from talud.errors import SourceError
from talud.params import PatchData
from talud.text import counted

# Channels of Landslide4Sense: Sentinel-2 without its band 8A, then slope and elevation in an unknown scale.
LANDSLIDE4SENSE = (
    "coastal", "blue", "green", "red", "red_edge_1", "red_edge_2", "red_edge_3", "nir", "water_vapour", "cirrus",
    "swir1", "swir2", *(band.name for band in RESCALED_TERRAIN_BANDS),
)  # fmt: skip
_ELEVATION, *_DERIVED = (band.name for band in TERRAIN_BANDS)
_OPTICAL_POSITIONS = {"red": 1, "green": 2, "blue": 3}  # of images that do not describe their bands


def number_bands(images: Sequence[Path], sar: Path | None, data: PatchData, layout: Layout) -> dict[str, Channel]:
    """Return the channels or variables of the bands that are read.

    Those that the user gives are kept; the others are named by the files.

    Args:
        images: images; all are read if bands are found by description.
        sar: file with SAR variables of the first patch.
        data: bands, which are red, green and blue if the user gives none.
        layout: layout of the images.

    Raises:
        SourceError: The images do not describe their bands, or in different ways.
    """
    first = images[0]
    given = "bands" in data.model_fields_set
    if given:
        _check_kind(first, data, layout)
    if layout == "image":
        return _number_described_bands(images, data.bands if given else dict.fromkeys(_OPTICAL_POSITIONS))
    channels = 0 if layout == "variables" else patch_files.shape_of(first).channels
    if layout == "channels" and not given and channels != len(LANDSLIDE4SENSE):
        return dict(_OPTICAL_POSITIONS)
    asked = data.bands if given else dict.fromkeys(_OPTICAL_POSITIONS)
    if layout == "variables":
        paths = [path for path in (first, sar) if path]
        return resolve_bands(asked, lambda name: _variable_in(paths, name), str(first))
    check_rescaled(asked, channels, first)
    return resolve_bands(asked, landslide4sense_channel(channels), str(first))


def _check_kind(image: Path, data: PatchData, layout: Layout) -> None:
    """Check that channels are numbers, and variables names."""
    numbered = layout != "variables"
    advice = "its channels have numbers" if numbered else "its variables have names, such as B04"
    for name, channel in data.bands.items():
        if channel is not None and isinstance(channel, str) == numbered:
            raise SourceError(f"{image}: patches.bands has {channel!r} for {name}, but {advice}")


def _variable_in(paths: Sequence[Path], band: str) -> str | None:
    """Return the variable of a band if a file of a patch has it."""
    name = patch_cubes.variable_of(band)
    return name if name and any(patch_cubes.has_variable(path, name) for path in paths) else None


def _number_described_bands(images: Sequence[Path], wanted: Mapping[str, Channel | None]) -> dict[str, Channel]:
    """Return the channel numbers of bands, by description if not given."""
    if None not in wanted.values():
        return {name: channel for name, channel in wanted.items() if channel is not None}
    optical = [name for name, given in wanted.items() if given is None and band_named(name).group is Group.OPTICAL]
    taken: dict[tuple[str, ...], dict[str, Channel]] = {}
    for image in images:
        if image.suffix.lower() in patch_files.HDF5_SUFFIXES | patch_files.NETCDF_SUFFIXES:
            continue  # refused where shapes are compared
        with sources.open_source(image) as dataset:
            file = BandDescriptions.of(dataset)
        if file.descriptions not in taken:
            found: Mapping[str, int] = {}
            if optical:
                found = band_names.find_optical_bands(file, optical, _OPTICAL_POSITIONS, "patches.bands").numbers
            taken[file.descriptions] = resolve_bands({**wanted, **found}, described_channel(file), file.path)
        if taken[file.descriptions] != next(iter(taken.values())):
            raise SourceError(
                f"{image}: describes its bands as {file.summary}, in another order than {images[0].name}; "
                "write all images in one order"
            )
    return next(iter(taken.values()))


def resolve_bands(
    bands: Mapping[str, Channel | None], find: Callable[[str], Channel | None], place: str
) -> dict[str, Channel]:
    """Find the channel or variable of each band that is read.

    Slope and curvature are computed where the files have elevation, but not them.

    Args:
        bands: band name → channel or variable; those with None are looked up.
        find: function from the name of a band to its channel, None if the files do not name it.
        place: what the files name, for errors.

    Raises:
        MissingBandError: A band is neither in the files nor computed.
    """
    found = {name: find(name) if given is None else given for name, given in bands.items()}
    missing = [name for name, channel in found.items() if channel is None]
    if set(missing) & set(_DERIVED) and _ELEVATION not in found:
        found[_ELEVATION] = find(_ELEVATION)
    if found.get(_ELEVATION) is not None:
        missing = [name for name in missing if name not in _DERIVED]
    if missing:
        raise MissingBandError(
            f"{place} has no band {', '.join(missing)}; name its channel in patches.bands, for example "
            f"{{{missing[0]}: 4}}, or remove it"
        )
    return {name: channel for name, channel in found.items() if channel is not None}


def landslide4sense_channel(channels: int) -> Callable[[str], Channel | None]:
    """Return the function from band name to channel for HDF5 files."""

    def find(name: str) -> Channel | None:
        known = channels == len(LANDSLIDE4SENSE) and name in LANDSLIDE4SENSE
        return LANDSLIDE4SENSE.index(name) + 1 if known else None

    return find


def described_channel(file: BandDescriptions) -> Callable[[str], Channel | None]:
    """Return the function from band name to channel for described images.

    It finds terrain and SAR bands; optical bands have more evidence than descriptions.
    """
    texts = [re.sub(r"[\s_-]+", "_", text.casefold()) for text in file.descriptions]

    def find(name: str) -> Channel | None:
        same = [place for place, text in enumerate(texts, start=1) if text == name]
        if name == _ELEVATION and not same:
            same = [place for place, text in enumerate(file.descriptions, start=1) if parse_band_name(text) == name]
        if len(same) > 1:
            raise MissingBandError(f"{file.path}: bands {same[0]} and {same[1]} can both be {name}; number it")
        return same[0] if same else None

    return find


def check_rescaled(bands: Mapping[str, Channel | None], channels: int, path: Path) -> None:
    """Check that Landslide4Sense's last channels are not taken as metres.

    Raises:
        SourceError: Channel 13 or 14 has the name of a band with a unit.
    """
    named = {band.name for band in (*TERRAIN_BANDS, *SAR_BANDS)}
    for name, number in bands.items():
        if channels == len(LANDSLIDE4SENSE) and name in named and number in (13, 14):
            raise SourceError(
                f"{path}: channel {number} of {counted(channels, 'channel')} is rescaled in Landslide4Sense, neither "
                f"degrees nor metres; name it {LANDSLIDE4SENSE[number - 1]} instead of {name}"
            )
