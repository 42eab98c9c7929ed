"""Band groups and clouds taken away from training patches, so that a network learns to do without them.

What is taken away becomes NaN, which the network's first layer neutralises, as it does where a raster has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from talud.bands import Group, band, groups
from talud.metrics import UNKNOWN
from talud.params import DroppingOptions

MOST_COVER = 0.8  # of a patch, under simulated cloud
_WIDTHS = 1 / 16, 1 / 4  # narrowest and widest of the noise that clouds are cut from, as shares of a patch's side
_STREAM = 0xC10D  # so that the same seed, epoch and batch draw nothing else alike


@dataclass(frozen=True)
class Dropping:
    """What is taken away from the patches of a training.

    Attributes:
        options: how often.
        groups: of each band, in order.
    """

    options: DroppingOptions
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, options: DroppingOptions, bands: Sequence[str]) -> Dropping | None:
        """What the options ask for, of a network of these bands; None where that is nothing."""
        members = tuple(band(name).group for name in bands)
        return cls(options, members) if options.optional(groups(tuple(bands))) else None

    def applied(
        self, stack: NDArray[np.float32], truth: NDArray[np.uint8], drawn_by: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A batch of which groups are dropped and which is clouded over; the truth is unknown where no band is left.

        Args:
            stack: (batch, height, width, bands), NaN where invalid; it is left as it is.
            truth: (batch, height, width), 255 where unknown; it is left as it is.
            drawn_by: numbers, such as seed, epoch and batch, that decide what is drawn.
        """
        generator = np.random.default_rng([*drawn_by, _STREAM])
        stack = without_groups(stack, self.groups, self.options.groups, generator)
        stack = under_clouds(stack, self.groups, self.options.clouds, generator)
        return stack, np.where(np.isnan(stack).all(axis=-1), np.uint8(UNKNOWN), truth)


def without_groups(
    stack: NDArray[np.float32],
    groups: Sequence[Group],
    probabilities: Mapping[Group, float],
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """A copy of a batch in which whole groups of a patch are NaN: each with its probability, but never all.

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


def under_clouds(
    stack: NDArray[np.float32], groups: Sequence[Group], share: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """A copy of a batch in which some patches have a cloud: smooth blobs where the optical bands are NaN.

    Args:
        stack: (batch, height, width, bands).
        groups: of each band.
        share: of the patches that get a cloud; each covers 0 to 80 % of its patch.
        generator: of the draws.
    """
    optical = [band for band, group in enumerate(groups) if group is Group.OPTICAL]
    result = stack.copy()
    for patch in np.flatnonzero(generator.random(len(stack)) < share):
        hidden = cloud((stack.shape[1], stack.shape[2]), generator.uniform(0, MOST_COVER), generator)
        result[patch, hidden] = np.where(np.isin(np.arange(len(groups)), optical), np.nan, result[patch, hidden])
    return result


def cloud(shape: tuple[int, int], cover: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Where a simulated cloud lies: smooth noise of a random width, cut at the level that gives it its cover.

    Args:
        shape: (height, width).
        cover: share of the pixels, which the cloud has to within one pixel.
        generator: of the draws.
    """
    width = generator.uniform(*_WIDTHS) * min(shape)
    noise = ndimage.gaussian_filter(generator.standard_normal(shape, np.float32), width, mode="reflect")
    hidden = np.zeros(noise.size, np.bool_)
    hidden[np.argsort(noise, axis=None)[: round(cover * noise.size)]] = True
    return hidden.reshape(shape)
