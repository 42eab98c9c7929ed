"""Labelled sites, read window by window with model probabilities."""

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
from talud.data.patch_contract import find_patches
from talud.data.patch_folder import PatchFolder
from talud.data.patches import Block, Patches, SplitPart, read_patches, split_blocks
from talud.data.stack_record import check_current_stack
from talud.engine.runtime import Model
from talud.errors import SourceError
from talud.grid import Grid
from talud.mapping.raster_checks import check_plausible, mask_implausible
from talud.mapping.reader import open_stack
from talud.mapping.tiles import mapped_probability
from talud.measurement.assessment import Assessment
from talud.metrics import UNKNOWN, ThresholdHistogram
from talud.params import SplitOptions
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import BLOCK_SIZE, open_raster, patch_side

# Patches whose values are checked before the first is scored.
_CHECKED_PATCHES = 64


@dataclass(frozen=True)
class Site:
    """Labelled area with its stack, mask and split.

    Attributes:
        name: name of the area.
        stack: path of the stack.
        mask: path of the mask.
        split: options of the split into training, validation and test blocks.
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
        return cls(area, check_current_stack(project, area), project.mask(area), params.split, params.seed)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of the training, validation and test parts.

        Raises:
            SourceError: the mask is missing or cannot be read.
            StudyError: the area cannot be split.
        """
        return split_blocks(self.mask, self.split, self.seed)

    @cached_property
    def patch_side(self) -> int | None:
        """Patch side in pixels; None for a continuous raster."""
        with open_raster(self.stack) as stack:
            return patch_side(stack)

    @property
    def unit(self) -> str:
        """Unit of the split: patches or blocks."""
        return "patches" if self.patch_side else "blocks"

    def windows(self, part: SplitPart | None = None, side: int | None = None) -> list[Window]:
        """Return a part's blocks, or squares covering the site.

        Args:
            part: part of the split. Default: the whole site, cut into squares.
            side: side of these squares in pixels. Default: the patch side, else the block side.

        Raises:
            SourceError: a raster is missing or cannot be read.
            StudyError: the area cannot be split.
        """
        if part is not None:
            return [block.window for block in self.blocks if block.part == part]
        with open_raster(self.mask) as mask:
            return Grid.of(mask).windows(side or self.patch_side or self.split.block)

    @property
    def labelled(self) -> bool:
        """True if any pixel of the mask is known."""
        with open_raster(self.mask) as mask:
            return any((mask.read(1, window=window) != UNKNOWN).any() for window in Grid.of(mask).windows(BLOCK_SIZE))

    @contextmanager
    def open_truth(self) -> Iterator[Callable[[Window], NDArray[np.uint8]]]:
        """Open the mask and yield its reader.

        The reader takes a window and returns uint8: 1 landslide, 0 background, 255 unknown.

        Raises:
            SourceError: the mask is missing or cannot be read.
        """
        with open_raster(self.mask) as mask:
            yield lambda window: mask.read(1, window=window)

    def read_windows(self, contract: Contract, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
        """Yield the bands of windows in contract order.

        Each is float32 (bands, height, width), NaN where invalid.

        Raises:
            SourceError: the stack is missing or cannot be read.
            MismatchError: the stack does not fit the contract.
        """
        with open_stack(self.stack, contract) as stack:
            for window in windows:
                yield stack.read(window)

    def cut_patches(
        self,
        bands: Sequence[str],
        part: SplitPart,
        optional: Collection[Group] = (),
        blocks: Sequence[Block] | None = None,
    ) -> Patches:
        """Cut the patches of a part (see `talud.data.patches.read_patches`).

        Args:
            bands: names of the bands to read.
            part: part of the split.
            optional: groups that may be missing in a patch.
            blocks: blocks to cut. Default: the blocks of the split.

        Raises:
            StudyError: stack and mask differ in grid.
            SourceError: a raster cannot be read.
        """
        chosen = [block for block in (self.blocks if blocks is None else blocks) if block.part == part]
        return read_patches(self.stack, self.mask, bands, chosen, self.split, self.seed, optional)


def join_patches(
    sites: Iterable[Site], bands: Sequence[str], part: SplitPart, optional: Collection[Group] = ()
) -> Patches:
    """Cut the patches of a part of several sites."""
    return Patches.concatenate([site.cut_patches(bands, part, optional) for site in sites])


@dataclass(frozen=True)
class FolderSite:
    """Labelled folder of patches.

    Its patches are the windows of one tall image.

    Attributes:
        name: path for messages.
        folder: images and masks; bands are in contract order.
    """

    name: str
    folder: PatchFolder
    unit = "patches"

    @classmethod
    def find(cls, folder: Path, contract: Contract, bands: Mapping[str, int] | None = None) -> Self:
        """Find a folder's patches; check masks and value ranges.

        Args:
            folder: folder with images and masks.
            contract: contract of the model.
            bands: band name → channel number in an image, from 1. Default: band names of TIFF images; else red, green
                and blue for three channels.

        Raises:
            ParamsError: a channel number is less than 1.
            SourceError: images or masks are missing, cannot be read, or do not fit together.
            MismatchError: the images lack a band of the contract, or their values are implausible for it.
        """
        found = find_patches(folder, contract, bands)
        without = [pair.image for pair in found.pairs if pair.mask is None]
        if without:
            raise SourceError(
                f"{without[0]}: has no mask in {folder / found.data.masks} ({len(without)} of {len(found.pairs)} "
                "images have none); add the missing masks, or remove these images"
            )
        step = -(-len(found.pairs) // _CHECKED_PATCHES)
        sample = [found.read(pair)[0] for pair in found.pairs[::step]]
        check_plausible(np.concatenate(sample, axis=1), contract, folder)
        return cls(str(folder), found)

    def windows(self) -> list[Window]:
        """Return the window of each patch."""
        side = self.folder.side
        return [Window(0, side * number, side, side) for number in range(len(self.folder.pairs))]

    @contextmanager
    def open_truth(self) -> Iterator[Callable[[Window], NDArray[np.uint8]]]:
        """Yield a reader of the masks.

        The reader takes a window and returns uint8: 1 landslide, 0 background, 255 unknown.
        """
        yield lambda window: self._read(window)[1]

    def read_windows(self, contract: Contract, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
        """Yield the bands of patches in contract order.

        Each is float32 (bands, side, side), NaN where invalid or implausible.

        Raises:
            SourceError: an image or a mask cannot be read.
        """
        for window in windows:
            yield mask_implausible(self._read(window)[0], contract)

    def _read(self, window: Window) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        return self.folder.read(self.folder.pairs[int(window.row_off) // self.folder.side])


class Predictor(Protocol):
    """Source of probabilities other than a model."""

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[Any]]:
        """Yield each window's probabilities, NaN where not mapped."""


@dataclass(frozen=True)
class ProbabilityMap:
    """Probability raster written by `talud predict` for a site."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the probability map in the folder of a map."""
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
    """Window with its truth and each model's probabilities.

    Attributes:
        window: window in pixels of the site.
        truth: uint8 (height, width): 1 landslide, 0 background, 255 unknown.
        probabilities: float32 (height, width) for each model, NaN where not mapped.
    """

    window: Window
    truth: NDArray[np.uint8]
    probabilities: tuple[NDArray[Any], ...]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Pixels that every model maps, bool (height, width)."""
        return np.asarray(np.isfinite(np.stack(self.probabilities)).all(axis=0))

    def assess(self, thresholds: Sequence[float]) -> tuple[Assessment, ...]:
        """Assess each model on the pixels that all models map."""
        valid = self.valid
        return tuple(
            Assessment.of(self.truth, np.where(valid, probability, np.float32(np.nan)), threshold)
            for probability, threshold in zip(self.probabilities, thresholds, strict=True)
        )


def labelled_windows(
    site: Site | FolderSite, windows: Sequence[Window], *models: Model | Predictor
) -> Iterator[LabelledWindow]:
    """Yield windows with truth and each model's probabilities.

    A model reads each window without its surroundings.

    Args:
        site: labelled site.
        windows: windows of whole pixels, inside the site.
        models: models or other predictors.

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
    """Yield labelled windows from temporary maps of the whole site.

    Unlike in `labelled_windows`, each pixel is predicted with its surroundings.

    Raises:
        SourceError: the stack or mask is missing or cannot be read.
        MismatchError: the stack does not fit a model's contract.
        ModelError: a network fails.
    """
    with temporary_maps(site, *models) as maps:
        yield from labelled_windows(site, windows, *map(ProbabilityMap.of, maps))


@contextmanager
def temporary_maps(site: Site, *models: Model) -> Iterator[list[Path]]:
    """Map a site with each model into temporary folders.

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
    """Assess each model on the pixels that all models map.

    Args:
        windows: disjoint windows with the probabilities of the same models.
        thresholds: for each model, the least probability that is mapped as landslide.
    """
    counted = [window.assess(thresholds) for window in windows]
    return tuple(Assessment.total(parts[number] for parts in counted) for number in range(len(thresholds)))


def probability_histogram(windows: Iterable[LabelledWindow]) -> ThresholdHistogram:
    """Return the histogram of the first model's probabilities."""
    parts = (ThresholdHistogram.of(window.probabilities[0], window.truth) for window in windows)
    return sum(parts, start=ThresholdHistogram())


def _probabilities(
    model: Model | Predictor, site: Site | FolderSite, windows: Sequence[Window]
) -> Generator[NDArray[Any]]:
    if not isinstance(model, Model):
        yield from model.probabilities(windows)
        return
    for values in site.read_windows(model.contract, windows):
        yield mapped_probability(model, values)
