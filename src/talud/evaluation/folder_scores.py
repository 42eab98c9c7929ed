"""A model scored on a folder of patches: no project, no stack, each patch read alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from talud.confusion_map import at_threshold
from talud.contract import Contract
from talud.data import sources
from talud.data.patch_folder import PatchFolder
from talud.engine.runtime import Model
from talud.errors import MismatchError, ParamsError, SourceError
from talud.evaluation.assessment import Assessment, Sight, Subject
from talud.mapping.raster_checks import check_plausible, plausible
from talud.mapping.tiles import probability_where_mapped
from talud.params import PatchData
from talud.progress import Progress
from talud.text import counted

_SAMPLE = 64  # patches, whose values are looked at before any is scored
_COLOURS = ("red", "green", "blue")
_TIFF = frozenset({".tif", ".tiff"})


def assess_folder(
    model: Model, folder: Path, bands: Mapping[str, int] | None = None, progress: Progress | None = None
) -> Assessment:
    """Score a model on the patches of a folder, at its own threshold.

    Args:
        model: to score.
        folder: with `images` and `masks`, see `talud.data.patch_folder`; every image needs its mask.
        bands: band name → number of the channel in an image. Default: the names that TIFF images state; else three
            channels are red, green and blue.
        progress: told, after each patch, how many are done and how many there are.

    Raises:
        ParamsError: a channel number is less than 1.
        SourceError: images or masks are missing, cannot be read, or do not fit together.
        MismatchError: the images lack a band of the model's contract, or hold other values than it expects.
        StudyError: no pixel can be scored.
        ModelError: the network fails.
    """
    patches = _find(folder, model.contract, bands)
    without = [pair.image for pair in patches.pairs if pair.mask is None]
    if without:
        raise SourceError(
            f"{without[0]}: has no mask in {folder / patches.data.masks} ({len(without)} of {len(patches.pairs)} "
            "images have none); give each image its mask, or take it away"
        )
    _check_values(patches, model.contract, folder)
    sights = _sights(model, patches, progress)
    tuned = model.contract.derived.finetuned
    notes = (
        [f"fine-tuned on {counted(tuned.patches, 'patch', 'patches')} of {tuned.area}, counted too where they lie here"]
        if tuned
        else []
    )
    return Assessment.of(Subject.of(model), str(folder), "all patches", "patches", sights, notes)


def _find(folder: Path, contract: Contract, bands: Mapping[str, int] | None) -> PatchFolder:
    """The patches, their bands in the order of the contract."""
    for name, number in (bands or {}).items():
        if number < 1:
            raise ParamsError(f"channels are counted from 1, so {name} cannot be number {number}")
    if bands is None:
        first = PatchFolder.find(folder, _data({contract.input.band_names[0]: 1})).pairs[0].image
        bands = _stated(first)
    missing = [name for name in contract.input.band_names if name not in bands]
    if missing:
        raise MismatchError(
            f"{folder}: has no band {', '.join(missing)}; it has {', '.join(bands)}, the model expects "
            f"{', '.join(contract.input.band_names)}; say which channel is which, such as --bands red=1,green=2,blue=3"
        )
    return PatchFolder.find(folder, _data({name: bands[name] for name in contract.input.band_names}))


def _data(bands: Mapping[str, int]) -> PatchData:
    """What to read. Unlike an area, which becomes a stack, a folder may hold bands of any source: none is checked."""
    return PatchData.model_construct(bands=dict(bands))


def _stated(image: Path) -> dict[str, int]:
    """Band name → number, as an image says it, or as is usual."""
    if image.suffix.lower() not in _TIFF | {".png"}:
        raise MismatchError(f"{image}: names no channels; say which is which, such as --bands red=4,green=3,blue=2")
    with sources.open_source(image) as dataset:
        named = {name: number for number, name in enumerate(dataset.descriptions, start=1) if name}
        count = sources.colour_bands(dataset)
    if named and image.suffix.lower() in _TIFF:
        return named
    if count != len(_COLOURS):
        raise MismatchError(
            f"{image}: has {counted(count, 'channel')} without names; say which is which, "
            "such as --bands red=3,green=2,blue=1"
        )
    return {name: number for number, name in enumerate(_COLOURS, start=1)}


def _check_values(patches: PatchFolder, contract: Contract, folder: Path) -> None:
    """That the bands hold what the model expects, by some patches, evenly spread."""
    step = -(-len(patches.pairs) // _SAMPLE)
    sample = [patches.read(pair)[0] for pair in patches.pairs[::step]]
    check_plausible(np.concatenate(sample, axis=1), contract, folder)


def _sights(model: Model, patches: PatchFolder, progress: Progress | None) -> Iterator[Sight]:
    for done, pair in enumerate(patches.pairs, start=1):
        values, truth = patches.read(pair)
        probability = probability_where_mapped(model, plausible(values, model.contract))
        yield truth, at_threshold(probability, model.contract.measured.threshold)
        if progress:
            progress(done, len(patches.pairs))
