"""Random augmentation of training patches.

Geometric and radiometric augmentation make a network independent of orientation, scale and illumination. Stacks are
float32 (patches, height, width, bands) in physical units, NaN where invalid. Masks are uint8 (patches, height, width).
Radiometric changes apply to optical and SAR bands only: terrain does not depend on illumination.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talud.bands import Group, band_named
from talud.data.patches import Patches
from talud.errors import StudyError
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.params import Augmentation

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
