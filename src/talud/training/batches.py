"""Shuffled and augmented batches of training patches, reproducible by seed.

Geometric and radiometric augmentation make a network independent of orientation, scale and illumination. Dropped band
groups and simulated clouds make it work with missing bands. Stacks are float32 (patches, height, width, bands) in
physical units, NaN where invalid. Masks are uint8 (patches, height, width). Radiometric changes are in units of each
band's standard deviation over the training pixels, and apply to optical and SAR bands only: terrain does not depend on
illumination.
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
from talud.errors import StudyError
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.params import Augmentation, DroppingOptions

SYMMETRIES = 8  # symmetries of the square: the dihedral group D4
HAZE_LEVEL = 3.0  # brightness of opaque haze, in standard deviations above the mean
_GAMMA_SPAN = 3.0  # range of the gamma change, in standard deviations on each side of the mean
WHITE_LEVEL = 3.0  # white of an optical band, in standard deviations above the mean; black is 0
_DARKEST = 1e-3  # lowest level before a change of gamma, in white levels
_OFFSET_SHARE = 0.3  # largest offset in white levels for a light or hue of 1


def apply_symmetry(image: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Rotate and mirror a square image of shape (height, width, ...).

    Args:
        image: square image.
        symmetry: 0 to 3 are quarter turns; 4 to 7 are the same after mirroring left and right.
    """
    mirrored = image[:, ::-1] if symmetry >= SYMMETRIES // 2 else image
    return np.rot90(mirrored, symmetry % 4)


@dataclass(frozen=True)
class Augmenter:
    """Random augmentation of training patches.

    Attributes:
        options: augmentation options of the recipe.
        mean: mean of each band over the training pixels, (bands,).
        deviation: standard deviation of each band over the training pixels, (bands,).
        optical: mask of the optical bands, (bands,).
        radar: mask of the SAR bands, (bands,).
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
        """Return the augmenter for named bands, given statistics of shape (bands,).

        Raises:
            StudyError: `light` or `hue` is set, and the mean of an optical band is below 0, its black.
        """
        groups = np.array([band_named(name).group for name in bands])
        optical, radar = groups == Group.OPTICAL, groups == Group.SAR
        below = [name for name, low in zip(bands, optical & (mean < 0), strict=True) if low]
        if below and (options.light or options.hue):
            raise StudyError(
                f"augmentation: light and hue need optical bands that are 0 where it is dark, but the mean of "
                f"{below[0]} is below 0; use gain, offset and gamma instead"
            )
        return cls(options, mean.astype(np.float32), deviation.astype(np.float32), optical, radar)

    def __call__(self, patches: Patches, indices: NDArray[np.intp], generator: np.random.Generator) -> Patches:
        """Return augmented copies of selected patches.

        Args:
            patches: all training patches, from which pasted landslides are taken.
            indices: indices of the patches to augment.
            generator: generator of the random numbers.
        """
        stack, mask = patches.stack[indices], patches.mask[indices]
        if self.options.paste:
            stack, mask = self._paste_landslides(patches, stack, mask, generator)
        pairs = [self._transform_geometry(*pair, generator) for pair in zip(stack, mask, strict=True)]
        stack, mask = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return Patches(self._transform_colour(self._transform_radiometry(stack, generator), generator), mask)

    def _paste_landslides(
        self, patches: Patches, stack: NDArray[np.float32], mask: NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Paste landslides from other patches, adjusted to the local brightness."""
        stack, mask = stack.copy(), mask.copy()
        for index in np.flatnonzero(generator.random(len(mask)) < self.options.paste):
            donor, symmetry = int(generator.integers(len(patches))), int(generator.integers(SYMMETRIES))
            pixels, truth = (apply_symmetry(values[donor], symmetry) for values in (patches.stack, patches.mask))
            pasted = (truth == LANDSLIDE) & (mask[index] != UNKNOWN)
            offset = np.nan_to_num(_background(stack[index], mask[index]) - _background(pixels, truth))
            stack[index][pasted] = (pixels + np.where(self.optical | self.radar, offset, 0))[pasted]
            mask[index][pasted] = LANDSLIDE
        return stack, mask

    def _transform_geometry(
        self, stack: NDArray[np.float32], mask: NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Rotate, mirror and rescale a patch at random."""
        if self.options.symmetries:
            symmetry = int(generator.integers(SYMMETRIES))
            stack, mask = apply_symmetry(stack, symmetry), apply_symmetry(mask, symmetry)
        if self.options.scale or self.options.shrink:
            coordinates = self._draw_window(len(mask), generator)
            rows, columns = _mirror(np.floor(coordinates + 0.5).astype(np.intp), len(mask))
            nearest = stack[rows][:, columns]
            stack = _interpolate(_interpolate(stack, coordinates[0], 0), coordinates[1], 1)
            # Beside invalid pixels there is nothing to interpolate with.
            stack, mask = np.where(np.isnan(stack), nearest, stack), mask[rows][:, columns]
        return stack, mask

    def _draw_window(self, side: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Draw a window of another side and return the coordinates it is sampled at.

        A larger window holds the patch; outside, the patch is mirrored.

        Returns:
            Row and column of each of the `side` samples along both axes, in pixels from the centre of the first,
            (2, side).
        """
        scale, shrink = self.options.scale, self.options.shrink
        if shrink:
            factor = math.exp(generator.uniform(math.log1p(-scale), math.log1p(shrink)))
        else:
            factor = 1 - scale * generator.random()
        window = max(1, round(side * factor))
        starts = generator.integers(abs(side - window) + 1, size=2) * (1 if window <= side else -1)
        return starts[:, np.newaxis] + (np.arange(side) + 0.5) * window / side - 0.5

    def _transform_radiometry(self, stack: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change gamma, gain and offset, and add haze."""
        options = self.options
        if not (options.gain or options.offset or options.gamma or options.haze):
            return stack
        scaled = (stack - self.mean) / self.deviation
        if options.gamma:
            exponent = np.exp(self._draw_changes(options.gamma, self.optical, len(stack), generator))
            unit = np.clip(scaled / (2 * _GAMMA_SPAN) + 0.5, 0, 1) ** exponent
            scaled = np.where(self.optical & (np.abs(scaled) < _GAMMA_SPAN), (unit - 0.5) * 2 * _GAMMA_SPAN, scaled)
        radiometric = self.optical | self.radar
        scaled = scaled * np.exp(self._draw_changes(options.gain, radiometric, len(stack), generator))
        scaled = scaled + self._draw_changes(options.offset, radiometric, len(stack), generator)
        if options.haze:
            share = self.optical * options.haze * generator.random((len(stack), 1, 1, 1)) ** 2
            scaled = scaled * (1 - share) + share * HAZE_LEVEL
        return (scaled * self.deviation + self.mean).astype(np.float32)

    def _transform_colour(self, stack: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change gamma, gain, offset and saturation of optical bands.

        Values are in white levels, between black (0) and white (`WHITE_LEVEL` deviations above the mean over the
        training pixels). This fits reflectances and 8-bit images, whose black is 0. Saturation is relative to the mean
        of the valid optical bands.
        """
        light, hue = self.options.light, self.options.hue
        if not (light or hue):
            return stack
        white = (self.mean + WHITE_LEVEL * self.deviation)[self.optical]

        def draw(limit: float, bands: int) -> NDArray[np.float32]:
            return generator.uniform(-limit, limit, (len(stack), 1, 1, bands)).astype(np.float32)

        levels = np.maximum(stack[..., self.optical] / white, np.float32(_DARKEST)) ** np.exp(draw(light, 1))
        levels *= np.exp(draw(light, 1) + draw(hue, len(white)))
        levels += _OFFSET_SHARE * (draw(light, 1) + draw(hue, len(white)))
        valid = np.isfinite(levels)
        count = np.maximum(valid.sum(axis=-1, keepdims=True), 1)
        grey = levels.sum(axis=-1, keepdims=True, where=valid) / count.astype(np.float32)
        levels = np.maximum(grey + (levels - grey) * (1 + draw(light, 1)), 0) * white
        changed = generator.random(len(stack)) >= self.options.unchanged
        result = stack.copy()
        result[..., self.optical] = np.where(
            changed[:, np.newaxis, np.newaxis, np.newaxis], levels, stack[..., self.optical]
        )
        return result

    def _draw_changes(
        self, deviation: float, bands: NDArray[np.bool_], count: int, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """Draw a normally distributed change for each patch and band.

        It is the sum of a part common to all bands of a patch and a part of each band. Shape: (count, 1, 1, bands).
        """
        common = generator.normal(size=(count, 1, 1, 1))
        own = generator.normal(size=(count, 1, 1, len(bands))) * self.options.per_band
        drawn: NDArray[np.float32] = ((common + own) * deviation * bands).astype(np.float32)
        return drawn


def _mirror(indices: NDArray[np.intp], side: int) -> NDArray[np.intp]:
    """Return the pixels at indices of a patch that is mirrored at its borders."""
    indices = indices % (2 * side)
    return np.minimum(indices, 2 * side - 1 - indices)


def _interpolate(stack: NDArray[np.float32], coordinates: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Return a mirrored stack interpolated linearly along an axis, NaN beside NaN.

    Finer pixels of a sensor show no steps; repeated pixels would.
    """
    first = np.floor(coordinates).astype(np.intp)
    shape = [1] * stack.ndim
    shape[axis] = -1
    weight = (coordinates - first).astype(np.float32).reshape(shape)
    before, after = (np.take(stack, _mirror(first + step, stack.shape[axis]), axis) for step in (0, 1))
    return before + (after - before) * weight


def _background(stack: NDArray[np.float32], mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the median of each band outside landslides, (bands,).

    The median of a band without valid pixels there is NaN.
    """
    valid = [values[np.isfinite(values)] for values in np.moveaxis(stack[mask != LANDSLIDE], -1, 0)]
    return np.array([np.median(values) if len(values) else np.nan for values in valid], np.float32)


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
