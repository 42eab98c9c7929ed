"""Labelled places, and the truth and the probabilities of models in their windows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.bands import Group
from talud.contract import Contract
from talud.data import sources
from talud.data.patch_folder import PatchFolder
from talud.data.patches import Block, Part, Patches, read, split
from talud.data.record import current_stack
from talud.engine.runtime import Model
from talud.errors import MismatchError, ParamsError, SourceError
from talud.grid import Grid
from talud.mapping.raster_checks import check_plausible, plausible
from talud.mapping.reader import open_stack
from talud.mapping.tiles import probability_where_mapped
from talud.measurement.assessment import Assessment
from talud.metrics import UNKNOWN, ThresholdHistogram
from talud.params import PatchData, SplitOptions
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import BLOCK, open_raster, patch_side
from talud.text import counted

_SAMPLE = 64  # patches whose values are checked before any is scored
_COLOURS = ("red", "green", "blue")
_TIFF = frozenset({".tif", ".tiff"})


@dataclass(frozen=True)
class Site:
    """A labelled place: an area of a project, with its stack, its mask and its split.

    Attributes:
        name: name of the area.
        stack: path of the bands.
        mask: path of the truth.
        split: sizes and shares of the blocks that make up the parts.
        seed: seed of the split.
    """

    name: str
    stack: Path
    mask: Path
    split: SplitOptions
    seed: int

    @classmethod
    def of(cls, project: Project, area: str) -> Self:
        """Return the site of a project's area.

        Raises:
            ParamsError: there is no such area.
            StudyError: params.yaml has changed since the stack was made.
        """
        params = project.params
        return cls(area, current_stack(project, area), project.mask(area), params.split, params.seed)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that the split deals to the three parts.

        Raises:
            SourceError: the mask is missing or cannot be read.
            StudyError: the area cannot be split.
        """
        return split(self.mask, self.split, self.seed)

    @cached_property
    def patch(self) -> int | None:
        """The side in pixels of the patches that the stack consists of; None for any other raster."""
        with open_raster(self.stack) as stack:
            return patch_side(stack)

    @property
    def unit(self) -> str:
        """The name of the squares that the site is cut into."""
        return "patches" if self.patch else "blocks"

    def windows(self, part: Part | None = None, side: int | None = None) -> list[Window]:
        """Return the blocks of a part, or the squares of the whole site.

        Args:
            part: part of the split; without it the whole site is cut into squares.
            side: side of these squares in pixels. Default: that of the patches, or else of the blocks.

        Raises:
            SourceError: a raster is missing or cannot be read.
            StudyError: the area cannot be split.
        """
        if part is not None:
            return [block.window for block in self.blocks if block.part == part]
        with open_raster(self.mask) as mask:
            return Grid.of(mask).windows(side or self.patch or self.split.block)

    @property
    def labelled(self) -> bool:
        """True if the truth of any pixel is known."""
        with open_raster(self.mask) as mask:
            return any((mask.read(1, window=window) != UNKNOWN).any() for window in Grid.of(mask).windows(BLOCK))

    @contextmanager
    def open_truth(self) -> Iterator[Callable[[Window], NDArray[np.uint8]]]:
        """Open the truth: a function that reads a window of it, 1 landslide, 0 background, 255 unknown.

        Raises:
            SourceError: the mask is missing or cannot be read.
        """
        with open_raster(self.mask) as mask:
            yield lambda window: mask.read(1, window=window)

    def pixels(self, contract: Contract, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
        """Yield the bands of windows in contract order, (bands, height, width), NaN where invalid.

        Raises:
            SourceError: the stack is missing or cannot be read.
            MismatchError: the stack does not fit the contract.
        """
        with open_stack(self.stack, contract) as stack:
            for window in windows:
                yield stack.read(window)

    def patches(
        self, bands: Sequence[str], part: Part, optional: Collection[Group] = (), blocks: Sequence[Block] | None = None
    ) -> Patches:
        """Cut the patches of a part (see `talud.data.patches.read`).

        Args:
            bands: names of the bands to read.
            part: part of the split.
            optional: groups that the network learns to do without.
            blocks: blocks to cut. Default: those of the split.

        Raises:
            StudyError: stack and mask differ in grid.
            SourceError: a raster cannot be read.
        """
        chosen = [block for block in (self.blocks if blocks is None else blocks) if block.part == part]
        return read(self.stack, self.mask, bands, chosen, self.split, self.seed, optional)


def join_patches(sites: Iterable[Site], bands: Sequence[str], part: Part, optional: Collection[Group] = ()) -> Patches:
    """Cut the patches of a part of several sites, one site after the other."""
    return Patches.joined([site.patches(bands, part, optional) for site in sites])


@dataclass(frozen=True)
class FolderSite:
    """A labelled place: a folder of patches, which lie below one another as windows.

    Attributes:
        name: name for messages.
        folder: images and masks of the patches; the bands are in the order of the model's contract.
    """

    name: str
    folder: PatchFolder
    unit = "patches"

    @classmethod
    def find(cls, folder: Path, contract: Contract, bands: Mapping[str, int] | None = None) -> Self:
        """Find the patches of a folder, and check that each has a mask and plausible values.

        Args:
            folder: folder with images and masks.
            contract: contract of the model that is to read them.
            bands: band name → number of the channel in an image. Default: the names that TIFF images state; else three
                channels are red, green and blue.

        Raises:
            ParamsError: a channel number is less than 1.
            SourceError: images or masks are missing, cannot be read, or do not fit together.
            MismatchError: the images lack a band of the contract, or hold other values than it expects.
        """
        found = _find_patches(folder, contract, bands)
        without = [pair.image for pair in found.pairs if pair.mask is None]
        if without:
            raise SourceError(
                f"{without[0]}: has no mask in {folder / found.data.masks} ({len(without)} of {len(found.pairs)} "
                "images have none); give each image its mask, or take it away"
            )
        step = -(-len(found.pairs) // _SAMPLE)
        sample = [found.read(pair)[0] for pair in found.pairs[::step]]
        check_plausible(np.concatenate(sample, axis=1), contract, folder)
        return cls(str(folder), found)

    def windows(self) -> list[Window]:
        """Return the window of each patch."""
        side = self.folder.side
        return [Window(0, side * number, side, side) for number in range(len(self.folder.pairs))]

    @contextmanager
    def open_truth(self) -> Iterator[Callable[[Window], NDArray[np.uint8]]]:
        """Return a function that reads the truth of a patch: 1 landslide, 0 background, 255 unknown."""
        yield lambda window: self._read(window)[1]

    def pixels(self, contract: Contract, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
        """Yield the bands of patches, (bands, side, side), NaN where invalid or implausible.

        Raises:
            SourceError: an image or a mask cannot be read.
        """
        for window in windows:
            yield plausible(self._read(window)[0], contract)

    def _read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        return self.folder.read(self.folder.pairs[int(window.row_off) // self.folder.side])


class Predictor(Protocol):
    """A source of probabilities other than a model."""

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[Any]]:
        """Yield the probability of a landslide in windows of a site, NaN where it maps nothing."""


@dataclass(frozen=True)
class ProbabilityMap:
    """A raster of probabilities on the grid of a site, as `talud predict` writes it."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the probabilities in a folder of a map's files."""
        return cls(folder / "probability.tif")

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float32]]:
        """Yield the probabilities of windows.

        Raises:
            SourceError: the raster is missing or cannot be read.
        """
        with open_raster(self.path) as raster:
            for window in windows:
                yield raster.read(1, window=window, masked=True).filled(np.nan)


@dataclass(frozen=True, eq=False)
class LabelledWindow:
    """A window of a site with its truth and what each model says there.

    Attributes:
        window: pixels of the site.
        truth: uint8 (height, width): 1 landslide, 0 background, 255 unknown.
        probabilities: float32 (height, width) of each model, NaN where it maps nothing.
    """

    window: Window
    truth: NDArray[np.uint8]
    probabilities: tuple[NDArray[Any], ...]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Return the pixels that every model maps."""
        return np.asarray(np.isfinite(np.stack(self.probabilities)).all(axis=0))

    def assess(self, thresholds: Sequence[float]) -> tuple[Assessment, ...]:
        """Count each model, at its threshold, on the pixels that every model maps."""
        valid = self.valid
        return tuple(
            Assessment.of(self.truth, np.where(valid, probability, np.float32(np.nan)), threshold)
            for probability, threshold in zip(self.probabilities, thresholds, strict=True)
        )


def labelled_windows(
    site: Site | FolderSite, windows: Sequence[Window], *models: Model | Predictor
) -> Iterator[LabelledWindow]:
    """Yield windows of a site with their truth and the probability of each model.

    A model sees each window alone, so that no pixel outside it helps.

    Args:
        site: labelled place.
        windows: windows of whole pixels, inside the site.
        models: models, or other sources of probabilities.

    Raises:
        SourceError: a raster is missing or cannot be read.
        MismatchError: the site does not fit a model's contract.
        ModelError: a network fails.
    """
    # The mask is opened first and closed last, even if the caller stops early: rasterio's environments are nested.
    with site.open_truth() as truth, ExitStack() as opened:
        answers = [opened.enter_context(closing(_probabilities(model, site, windows))) for model in models]
        for window, *probabilities in zip(windows, *answers, strict=True):
            yield LabelledWindow(window, truth(window), tuple(probabilities))


def mapped_windows(site: Site, windows: Sequence[Window], *models: Model) -> Iterator[LabelledWindow]:
    """Yield windows likewise, but of maps of the whole site, which are not kept.

    Raises:
        TaludError: an error as in `labelled_windows`.
    """
    with temporary_maps(site, *models) as maps:
        yield from labelled_windows(site, windows, *map(ProbabilityMap.of, maps))


@contextmanager
def temporary_maps(site: Site, *models: Model) -> Iterator[list[Path]]:
    """Map a whole site with each model into a temporary folder, and remove them at the end.

    Raises:
        SourceError: the stack is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
    """
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        maps = [Path(folder) / str(number) for number in range(len(models))]
        for model, out in zip(models, maps, strict=True):
            predict(model, site.stack, out)
        yield maps


def assess(windows: Iterable[LabelledWindow], thresholds: Sequence[float]) -> tuple[Assessment, ...]:
    """Count each model over windows, on the pixels that every model maps.

    Args:
        windows: disjoint windows with the probabilities of the same models.
        thresholds: least probability that each model maps as landslide.
    """
    counted = [window.assess(thresholds) for window in windows]
    return tuple(Assessment.total(parts[number] for parts in counted) for number in range(len(thresholds)))


def probability_histogram(windows: Iterable[LabelledWindow]) -> ThresholdHistogram:
    """Count the pixels of windows by the probability of the first model."""
    parts = (ThresholdHistogram.of(window.probabilities[0], window.truth) for window in windows)
    return sum(parts, start=ThresholdHistogram())


def _probabilities(
    model: Model | Predictor, site: Site | FolderSite, windows: Sequence[Window]
) -> Generator[NDArray[Any]]:
    if not isinstance(model, Model):
        yield from model.probabilities(windows)
        return
    for values in site.pixels(model.contract, windows):
        yield probability_where_mapped(model, values)


def _find_patches(folder: Path, contract: Contract, bands: Mapping[str, int] | None) -> PatchFolder:
    """Return the patches of a folder, with their bands in the order of the contract."""
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
    """Return which channels to read; unlike those of an area, the bands of a folder are not checked."""
    return PatchData.model_construct(bands=dict(bands))


def _stated(image: Path) -> dict[str, int]:
    """Return band name → number, as an image states it; of three unnamed channels red, green and blue."""
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
