"""Batches of training patches: shuffled and changed at random, the same way for the same seed.

Changes of position, scale and light teach a network what a landslide is, not how one image was lit; dropped band groups
and clouds teach it to do without them. Stacks are float32 (patches, height, width, bands) in physical units, NaN where
invalid; masks uint8 (patches, height, width). Radiometry is changed in units of each band's deviation over the training
pixels, and only in optical and SAR bands: terrain is measured, and stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from talud.bands import Group, band_named, groups_of
from talud.data.patches import Patches
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.params import Augmentation, DroppingOptions

SYMMETRIES = 8  # of a square: the dihedral group D4
HAZE_LEVEL = 3.0  # deviations above the mean: how bright haze is that lets nothing through
_GAMMA_SPAN = 3.0  # deviations on each side of the mean that gamma maps onto themselves


def apply_symmetry(image: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Return an image (height, width, ...) of equal sides under a symmetry of the square.

    0 to 3 are quarter turns; 4 to 7 are the same after mirroring left and right.
    """
    mirrored = image[:, ::-1] if symmetry >= SYMMETRIES // 2 else image
    return np.rot90(mirrored, symmetry % 4)


@dataclass(frozen=True)
class Augmenter:
    """Random changes of training patches.

    Attributes:
        options: of the recipe.
        mean: of each band over the training pixels, (bands,).
        deviation: likewise.
        optical: which bands are optical, (bands,).
        radar: which are SAR, (bands,).
    """

    options: Augmentation
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    optical: NDArray[np.bool_]
    radar: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        options: Augmentation,
        bands: tuple[str, ...],
        mean: NDArray[np.floating],
        deviation: NDArray[np.floating],
    ) -> Augmenter:
        """Return the augmenter of bands by name, with statistics of shape (bands,)."""
        groups = np.array([band_named(name).group for name in bands])
        optical, radar = groups == Group.OPTICAL, groups == Group.SAR
        return cls(options, mean.astype(np.float32), deviation.astype(np.float32), optical, radar)

    def __call__(self, patches: Patches, places: NDArray[np.intp], generator: np.random.Generator) -> Patches:
        """Return the patches at some places, changed.

        Args:
            patches: all that there are; landslides that are pasted come from them.
            places: of those that are asked for.
            generator: of all that is drawn.
        """
        stack, mask = patches.stack[places], patches.mask[places]
        if self.options.paste:
            stack, mask = self._paste_landslides(patches, stack, mask, generator)
        pairs = [self._transform_geometry(*pair, generator) for pair in zip(stack, mask, strict=True)]
        stack, mask = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return Patches(self._transform_radiometry(stack, generator), mask)

    def _paste_landslides(
        self, patches: Patches, stack: NDArray[np.float32], mask: NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Paste landslides of other patches into some patches, at the brightness around them."""
        stack, mask = stack.copy(), mask.copy()
        for place in np.flatnonzero(generator.random(len(mask)) < self.options.paste):
            donor, symmetry = int(generator.integers(len(patches))), int(generator.integers(SYMMETRIES))
            pixels, truth = (apply_symmetry(values[donor], symmetry) for values in (patches.stack, patches.mask))
            there = (truth == LANDSLIDE) & (mask[place] != UNKNOWN)
            moved = np.nan_to_num(_background(stack[place], mask[place]) - _background(pixels, truth))
            stack[place][there] = (pixels + np.where(self.optical | self.radar, moved, 0))[there]
            mask[place][there] = LANDSLIDE
        return stack, mask

    def _transform_geometry(
        self, stack: NDArray[np.float32], mask: NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Turn and mirror a patch, and enlarge a part of it to the whole."""
        if self.options.symmetries:
            symmetry = int(generator.integers(SYMMETRIES))
            stack, mask = apply_symmetry(stack, symmetry), apply_symmetry(mask, symmetry)
        if self.options.scale:
            side = len(mask)
            kept = round(side * (1 - self.options.scale * generator.random()))
            first, second = (
                start + np.arange(side) * kept // side for start in generator.integers(side - kept + 1, size=2)
            )
            stack, mask = stack[first][:, second], mask[first][:, second]
        return stack, mask

    def _transform_radiometry(self, stack: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change gamma, gain and offset of each band, and add haze."""
        options = self.options
        if not (options.gain or options.offset or options.gamma or options.haze):
            return stack
        scaled = (stack - self.mean) / self.deviation
        if options.gamma:
            exponent = np.exp(self._draw_changes(options.gamma, self.optical, len(stack), generator))
            unit = np.clip(scaled / (2 * _GAMMA_SPAN) + 0.5, 0, 1) ** exponent
            scaled = np.where(self.optical & (np.abs(scaled) < _GAMMA_SPAN), (unit - 0.5) * 2 * _GAMMA_SPAN, scaled)
        lit = self.optical | self.radar
        scaled = scaled * np.exp(self._draw_changes(options.gain, lit, len(stack), generator))
        scaled = scaled + self._draw_changes(options.offset, lit, len(stack), generator)
        if options.haze:
            share = self.optical * options.haze * generator.random((len(stack), 1, 1, 1)) ** 2
            scaled = scaled * (1 - share) + share * HAZE_LEVEL
        return (scaled * self.deviation + self.mean).astype(np.float32)

    def _draw_changes(
        self, deviation: float, bands: NDArray[np.bool_], count: int, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """Draw a normal number for each patch and band, mostly common to all bands.

        The shape is (count, 1, 1, bands).
        """
        common = generator.normal(size=(count, 1, 1, 1))
        own = generator.normal(size=(count, 1, 1, len(bands))) * self.options.per_band
        drawn: NDArray[np.float32] = ((common + own) * deviation * bands).astype(np.float32)
        return drawn


def _background(stack: NDArray[np.float32], mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the median of each band outside landslides, (bands,).

    It is NaN for a band without a valid pixel there.
    """
    valid = [values[np.isfinite(values)] for values in np.moveaxis(stack[mask != LANDSLIDE], -1, 0)]
    return np.array([np.median(values) if len(values) else np.nan for values in valid], np.float32)


MAX_CLOUD_COVER = 0.8  # of a patch, under simulated cloud
_CLOUD_WIDTHS = 1 / 16, 1 / 4  # narrowest and widest of the noise that clouds are cut from, as shares of a patch's side
_DROPPING_STREAM = 0xC10D  # so that the same seed, epoch and batch draw nothing else alike


@dataclass(frozen=True)
class Dropping:
    """Dropping of band groups and simulated clouds in training patches.

    Attributes:
        options: how often.
        groups: of each band, in order.
    """

    options: DroppingOptions
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, options: DroppingOptions, bands: Sequence[str]) -> Dropping | None:
        """Return the dropping that options ask for; None if they ask for nothing."""
        members = tuple(band_named(name).group for name in bands)
        return cls(options, members) if options.optional(groups_of(tuple(bands))) else None

    def apply(
        self, stack: NDArray[np.float32], truth: NDArray[np.uint8], seeds: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Drop groups of a batch and put clouds over it.

        The truth becomes unknown where no band is left.

        Args:
            stack: (batch, height, width, bands), NaN where invalid; it is left as it is.
            truth: (batch, height, width), 255 where unknown; it is left as it is.
            seeds: numbers, such as seed, epoch and batch, that decide what is drawn.
        """
        generator = np.random.default_rng([*seeds, _DROPPING_STREAM])
        stack = drop_groups(stack, self.groups, self.options.groups, generator)
        stack = add_clouds(stack, self.groups, self.options.clouds, generator)
        return stack, np.where(np.isnan(stack).all(axis=-1), np.uint8(UNKNOWN), truth)


def drop_groups(
    stack: NDArray[np.float32],
    groups: Sequence[Group],
    probabilities: Mapping[Group, float],
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """Return a copy of a batch with whole groups of a patch set to NaN, but never all.

    Where all would be dropped, one is kept, each as likely as another.

    Args:
        stack: (batch, height, width, bands).
        groups: of each band.
        probabilities: that a group of a patch is dropped; 0 for one that is not named.
        generator: of the draws.
    """
    members = [[place for place, of in enumerate(groups) if of is group] for group in dict.fromkeys(groups)]
    chances = [probabilities.get(group, 0.0) for group in dict.fromkeys(groups)]
    dropped = generator.random((len(stack), len(members))) < chances
    kept = generator.integers(len(members), size=len(stack))
    everything = dropped.all(axis=1)
    dropped[everything, kept[everything]] = False
    result = stack.copy()
    for patch, group in np.argwhere(dropped):
        result[patch, ..., members[group]] = np.nan
    return result


def add_clouds(
    stack: NDArray[np.float32], groups: Sequence[Group], share: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return a copy of a batch with clouds: smooth blobs of NaN in the optical bands.

    Args:
        stack: (batch, height, width, bands).
        groups: of each band.
        share: of the patches that get a cloud; each covers 0 to 80 % of its patch.
        generator: of the draws.
    """
    optical = [band for band, group in enumerate(groups) if group is Group.OPTICAL]
    result = stack.copy()
    for patch in np.flatnonzero(generator.random(len(stack)) < share):
        hidden = simulate_cloud((stack.shape[1], stack.shape[2]), generator.uniform(0, MAX_CLOUD_COVER), generator)
        result[patch, hidden] = np.where(np.isin(np.arange(len(groups)), optical), np.nan, result[patch, hidden])
    return result


def simulate_cloud(shape: tuple[int, int], cover: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of a simulated cloud: smooth noise, cut at the level of its cover.

    Args:
        shape: (height, width).
        cover: share of the pixels, which the cloud has to within one pixel.
        generator: of the draws.
    """
    width = generator.uniform(*_CLOUD_WIDTHS) * min(shape)
    noise = ndimage.gaussian_filter(generator.standard_normal(shape, np.float32), width, mode="reflect")
    hidden = np.zeros(noise.size, np.bool_)
    hidden[np.argsort(noise, axis=None)[: round(cover * noise.size)]] = True
    return hidden.reshape(shape)


class TrainingBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches for one `fit`: stacks (batch, height, width, bands) and truths (..., 1).

    The order and the changes of an epoch, dropping included, depend on the seed and on the epoch's number alone, so a
    training that goes on at `first_epoch` (`fit`'s `initial_epoch`) sees what one that was never interrupted sees. Pass
    `shuffle=False` to `fit`: the order is drawn here. The last batch of an epoch may be smaller.

    Args:
        patches: all of them pass in every epoch.
        batch_size: patches in a batch.
        augmenter: changes them.
        seed: of the order and of the changes.
        first_epoch: the number, counted from 0, of the epoch that `fit` begins with.
        dropping: what is then taken away from them; default: nothing.
    """

    def __init__(
        self,
        patches: Patches,
        batch_size: int,
        *,
        augmenter: Augmenter,
        seed: int,
        first_epoch: int = 0,
        dropping: Dropping | None = None,
    ) -> None:
        super().__init__()
        self._patches = patches
        self._batch_size = batch_size
        self._augmenter = augmenter
        self._seed = seed
        self._epoch = self._next_epoch = first_epoch
        self._dropping = dropping

    def __len__(self) -> int:
        return math.ceil(len(self._patches) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._patches))
        places = order[index * self._batch_size : (index + 1) * self._batch_size]
        # One generator a batch, so that no batch depends on another's having been drawn.
        seeds = [self._seed, self._epoch, index]
        changed = self._augmenter(self._patches, places, np.random.default_rng(seeds))
        stack, truth = changed.stack, changed.mask
        if self._dropping:
            stack, truth = self._dropping.apply(stack, truth, seeds)
        return stack, truth[..., np.newaxis]

    def on_epoch_end(self) -> None:
        """Advance to the next epoch; `fit` calls this once before its first epoch too."""
        self._epoch = self._next_epoch
        self._next_epoch += 1
