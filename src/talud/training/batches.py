"""Shuffled batches of training patches, reproducible by seed.

Dropped band groups and simulated clouds make a network work with missing bands. Stacks are float32 (patches, height,
width, bands) in physical units, NaN where invalid. Masks are uint8 (patches, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from talud.bands import Group, band_named, groups_of
from talud.data.patches import Patches
from talud.metrics import UNKNOWN
from talud.params import DroppingOptions
from talud.training.augmentation import Augmenter

MAX_CLOUD_COVER = 0.8  # largest share of a patch under simulated clouds
_CLOUD_WIDTHS = 1 / 16, 1 / 4  # range of the smoothing width of cloud noise, as a share of a patch's side
# Extra seed of the dropping, so that its random numbers are independent of those of the augmentation.
_DROPPING_STREAM = 0xC10D


@dataclass(frozen=True)
class Dropping:
    """Random removal of band groups, and simulated clouds, in training patches.

    Attributes:
        options: probabilities of the recipe.
        groups: group of each band, in order.
    """

    options: DroppingOptions
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, options: DroppingOptions, bands: Sequence[str]) -> Dropping | None:
        """Return the dropping for named bands, None if nothing is dropped."""
        members = tuple(band_named(name).group for name in bands)
        return cls(options, members) if options.optional_groups(groups_of(tuple(bands))) else None

    def apply(
        self, stack: NDArray[np.float32], truth: NDArray[np.uint8], seeds: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a batch with dropped groups and simulated clouds.

        The truth becomes unknown where no valid band remains. The inputs are not changed.

        Args:
            stack: stacks (batch, height, width, bands), NaN where invalid.
            truth: truth (batch, height, width), 255 where unknown.
            seeds: seeds of the random numbers, such as the seed, the epoch and the batch.
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
    """Return a copy of a batch with dropped band groups (NaN).

    At least one group of each patch is kept. If all would be dropped, the one to keep is drawn with equal probability.

    Args:
        stack: stacks (batch, height, width, bands).
        groups: group of each band.
        probabilities: probability of dropping each group; 0 for a group that is not named.
        generator: generator of the random numbers.
    """
    members = [[index for index, other in enumerate(groups) if other is group] for group in dict.fromkeys(groups)]
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
    """Return a copy of a batch with simulated clouds.

    Pixels under a cloud are NaN in the optical bands.

    Args:
        stack: stacks (batch, height, width, bands).
        groups: group of each band.
        share: share of the patches with a cloud, which covers 0 to 80 % of the patch.
        generator: generator of the random numbers.
    """
    optical = [band for band, group in enumerate(groups) if group is Group.OPTICAL]
    result = stack.copy()
    for patch in np.flatnonzero(generator.random(len(stack)) < share):
        hidden = simulate_cloud((stack.shape[1], stack.shape[2]), generator.uniform(0, MAX_CLOUD_COVER), generator)
        result[patch, hidden] = np.where(np.isin(np.arange(len(groups)), optical), np.nan, result[patch, hidden])
    return result


def simulate_cloud(shape: tuple[int, int], cover: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of a simulated cloud: thresholded smooth noise.

    Args:
        shape: (height, width).
        cover: share of the pixels under the cloud, exact to within one pixel.
        generator: generator of the random numbers.
    """
    width = generator.uniform(*_CLOUD_WIDTHS) * min(shape)
    noise = ndimage.gaussian_filter(generator.standard_normal(shape, np.float32), width, mode="reflect")
    hidden = np.zeros(noise.size, np.bool_)
    hidden[np.argsort(noise, axis=None)[: round(cover * noise.size)]] = True
    return hidden.reshape(shape)


def draws_per_area(sizes: Sequence[int]) -> int:
    """Return the number of patches that a balanced epoch draws from each area.

    All areas together then give at least as many patches as there are, and less than one per area more.
    """
    return math.ceil(sum(sizes) / len(sizes))


def balanced_order(sizes: Sequence[int], generator: np.random.Generator) -> NDArray[np.intp]:
    """Return the patches of an epoch with equally many of each area, shuffled.

    The patches of an area are drawn without replacement, as many rounds as needed: in an epoch, the numbers of times
    that two patches of one area are drawn differ by at most 1.

    Args:
        sizes: number of patches of each area, at least 1, in the order of the patches.
        generator: generator of the random numbers.

    Returns:
        Indices of patches, (areas × draws per area,).
    """
    count, starts = draws_per_area(sizes), np.cumsum([0, *sizes])
    drawn = [
        start + np.concatenate([generator.permutation(size) for _ in range(math.ceil(count / size))])[:count]
        for start, size in zip(starts, sizes, strict=False)
    ]
    return generator.permutation(np.concatenate(drawn))


class TrainingBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches for one `fit`: stacks (batch, height, width, bands) and truths (..., 1).

    The order, augmentation and dropping of an epoch depend only on the seed and the epoch's number. A training that
    resumes at `first_epoch` (`fit`'s `initial_epoch`) therefore sees the same batches as an uninterrupted one. Pass
    `shuffle=False` to `fit`: the patches are shuffled here. The last batch of an epoch may be smaller.

    Args:
        patches: training patches, all of which are used in every epoch unless they are balanced.
        batch_size: number of patches in a batch.
        augmenter: augmentation of the patches.
        seed: seed of the order, the augmentation and the dropping.
        first_epoch: number of the epoch with which `fit` begins, counted from 0.
        dropping: dropping applied after the augmentation; default: none.
        balanced: True to draw equally many patches of each area in an epoch, see `balanced_order`.
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
        balanced: bool = False,
    ) -> None:
        super().__init__()
        self._patches = patches
        self._batch_size = batch_size
        self._augmenter = augmenter
        self._seed = seed
        self._epoch = self._next_epoch = first_epoch
        self._dropping = dropping
        self._sizes = tuple(filter(None, patches.area_sizes)) if balanced else ()

    def __len__(self) -> int:
        drawn = len(self._sizes) * draws_per_area(self._sizes) if self._sizes else len(self._patches)
        return math.ceil(drawn / self._batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        generator = np.random.default_rng([self._seed, self._epoch])
        order = balanced_order(self._sizes, generator) if self._sizes else generator.permutation(len(self._patches))
        indices = order[index * self._batch_size : (index + 1) * self._batch_size]
        # Each batch has its own generator, so that batches do not depend on the order in which they are requested.
        seeds = [self._seed, self._epoch, index]
        changed = self._augmenter(self._patches, indices, np.random.default_rng(seeds))
        stack, truth = changed.stack, changed.mask
        if self._dropping:
            stack, truth = self._dropping.apply(stack, truth, seeds)
        return stack, truth[..., np.newaxis]

    def on_epoch_end(self) -> None:
        """Advance to the next epoch.

        `fit` also calls this once before its first epoch.
        """
        self._epoch = self._next_epoch
        self._next_epoch += 1
