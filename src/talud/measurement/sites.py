"""Labelled places, and the truth and the probabilities of models in their windows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.bands import Group
from talud.contract import Contract
from talud.data.patch_folder import PatchFolder
from talud.data.patches import Block, Part, Patches, read, split
from talud.data.record import current_stack
from talud.engine import coverage
from talud.engine.runtime import Model
from talud.grid import Grid
from talud.mapping.raster_checks import plausible
from talud.mapping.reader import open_stack
from talud.measurement.assessment import Assessment
from talud.metrics import UNKNOWN, ThresholdHistogram
from talud.params import SplitOptions
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import BLOCK, open_raster, patch_side


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
        """Whether the truth of any pixel is known."""
        with open_raster(self.mask) as mask:
            return any((mask.read(1, window=window) != UNKNOWN).any() for window in Grid.of(mask).windows(BLOCK))

    @contextmanager
    def truths(self) -> Iterator[Callable[[Window], NDArray[np.uint8]]]:
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
        chosen = self.blocks if blocks is None else blocks
        return read(self.stack, self.mask, bands, chosen, part, self.split, self.seed, optional)


def joined_patches(
    sites: Iterable[Site], bands: Sequence[str], part: Part, optional: Collection[Group] = ()
) -> Patches:
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

    def windows(self) -> list[Window]:
        """Return the window of each patch."""
        side = self.folder.side
        return [Window(0, side * number, side, side) for number in range(len(self.folder.pairs))]

    @contextmanager
    def truths(self) -> Iterator[Callable[[Window], NDArray[np.uint8]]]:
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

    def assessed(self, thresholds: Sequence[float]) -> tuple[Assessment, ...]:
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
    # The mask is opened first and closed last: rasterio's environments are nested.
    with site.truths() as truth:
        answers = [_probabilities(model, site, windows) for model in models]
        for window, *probabilities in zip(windows, *answers, strict=True):
            yield LabelledWindow(window, truth(window), tuple(probabilities))


def mapped_windows(site: Site, windows: Sequence[Window], *models: Model) -> Iterator[LabelledWindow]:
    """Yield windows likewise, but of maps of the whole site, which are not kept.

    Raises:
        TaludError: an error as in `labelled_windows`.
    """
    with temporary_maps(site, *models) as maps:
        yield from labelled_windows(site, windows, *(ProbabilityMap(folder / "probability.tif") for folder in maps))


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
    counted = [window.assessed(thresholds) for window in windows]
    return tuple(Assessment.total(parts[number] for parts in counted) for number in range(len(thresholds)))


def histogram(windows: Iterable[LabelledWindow]) -> ThresholdHistogram:
    """Count the pixels of windows by the probability of the first model."""
    parts = (ThresholdHistogram.of(window.probabilities[0], window.truth) for window in windows)
    return sum(parts, start=ThresholdHistogram())


def _probabilities(
    model: Model | Predictor, site: Site | FolderSite, windows: Sequence[Window]
) -> Iterator[NDArray[Any]]:
    if not isinstance(model, Model):
        yield from model.probabilities(windows)
        return
    for values in site.pixels(model.contract, windows):
        mapped = coverage.blocked(values, model.contract) == 0
        yield np.where(mapped, model.probability(values), np.float32(np.nan))
