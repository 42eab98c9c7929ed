"""Folder of patches that a model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from talud.contract import Contract
from talud.data import patch_files, sources, stack_spec
from talud.data.band_names import MissingBandError
from talud.data.patch_channels import LANDSLIDE4SENSE
from talud.data.patch_files import TIFF_SUFFIXES
from talud.data.patch_folder import PIXEL_SIZE_TOLERANCE, PatchFolder, files_by_name
from talud.errors import MismatchError, ParamsError
from talud.params import PatchData
from talud.text import counted

_COLOURS = ("red", "green", "blue")


def find_patches(folder: Path, contract: Contract, bands: Mapping[str, int] | None) -> PatchFolder:
    """Find patches with their bands in contract order.

    SAR bands are taken to have the unit that the contract states. Slope and curvature are computed from elevation if
    the images lack them.

    Args:
        folder: folder with images and masks.
        contract: contract of the model that reads them.
        bands: band name → channel number. Default: the names in the first image.

    Raises:
        SourceError: The folder has no patches, or one cannot be read.
        ParamsError: A channel number is less than 1.
        MismatchError: The images lack a band of the contract, do not name their channels, or state another pixel size.
    """
    for name, number in (bands or {}).items():
        if number < 1:
            raise ParamsError(f"band {name} has channel number {number}, but channels are numbered from 1")
    expected = contract.input.band_names
    found = _named_bands(folder, contract) if bands is None else bands
    computed = {"slope", "curvature"} if "elevation" in found else set()
    missing = [name for name in expected if name not in found and name not in computed]
    if missing:
        raise MismatchError(
            f"{folder}: has no band {', '.join(missing)}; it has {', '.join(found)}, the model expects "
            f"{', '.join(expected)}; name the channels, for example --bands red=1,green=2,blue=3"
        )
    wanted: dict[str, int | str | None]
    wanted = {name: found[name] for name in found if name in expected or (name == "elevation" and computed)}
    options = stack_spec.stack_options(contract)
    data = PatchData.model_construct({"bands"}, bands=wanted)
    try:
        patches = PatchFolder.find(folder, data, options.sar_unit, options, default_size=contract.input.pixel_size)
    except MissingBandError as error:
        raise MismatchError(f"{error}; the model expects {', '.join(expected)}") from error
    smallest, largest = contract.input.pixel_size_range
    size = patches.bands.pixel_size
    if not smallest * (1 - PIXEL_SIZE_TOLERANCE) <= size <= largest * (1 + PIXEL_SIZE_TOLERANCE):
        raise MismatchError(
            f"{patches.pairs[0].image}: has pixels of {size:g} m, the model expects "
            f"{smallest:g}{'' if smallest == largest else f' to {largest:g}'} m; resample the patches"
        )
    return dataclasses.replace(patches, bands=dataclasses.replace(patches.bands, names=expected))


def _named_bands(folder: Path, contract: Contract) -> Mapping[str, int | None]:
    """Return the bands that the first image names.

    The channel is None if it is looked up by name.
    """
    first = next(iter(files_by_name(folder, PatchData().images).values()), None)
    if first is None:  # an error when the patches are found
        return dict.fromkeys(contract.input.band_names)
    layout = patch_files.layout_of(first)
    if layout == "variables":
        return dict.fromkeys(contract.input.band_names)
    if layout == "channels" and patch_files.shape_of(first).channels == len(LANDSLIDE4SENSE):
        return dict.fromkeys(LANDSLIDE4SENSE)
    return _image_bands(first)


def _image_bands(image: Path) -> dict[str, int]:
    """Return band name → channel number of an image.

    Three channels without names are red, green and blue.
    """
    if patch_files.layout_of(image) == "channels":
        raise MismatchError(f"{image}: has no channel names; give them, for example --bands red=4,green=3,blue=2")
    with sources.open_source(image) as dataset:
        named = {name: number for number, name in enumerate(dataset.descriptions, start=1) if name}
        count = sources.count_bands_without_alpha(dataset)
    if named and image.suffix.lower() in TIFF_SUFFIXES:
        return named
    if count != len(_COLOURS):
        raise MismatchError(
            f"{image}: has {counted(count, 'channel')} without names; give them, for example "
            "--bands red=3,green=2,blue=1"
        )
    return {name: number for number, name in enumerate(_COLOURS, start=1)}
