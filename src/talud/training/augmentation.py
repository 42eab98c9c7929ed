"""What is changed at random in training patches, so that a network learns what a landslide is and not how one image
was lit: how patches lie, their scale, their radiometry, and where landslides are.

Stacks are float32 (patches, height, width, bands) in physical units, NaN where invalid; masks uint8 (patches, height,
width). Radiometry is changed in units of each band's deviation over the training pixels, and only where light or radar
make it: terrain is measured, and is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talud.bands import Group, band
from talud.data.patches import Patches
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.params import Augmentation

SYMMETRIES = 8  # of a square: the dihedral group D4
VEIL = 3.0  # deviations above the mean: how bright haze is that lets nothing through
_SPAN = 3.0  # deviations on each side of the mean that gamma maps onto themselves


def turned(image: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """An image (height, width, ...) of equal sides under one of the eight symmetries of the square.

    0 to 3 are quarter turns; 4 to 7 are the same after mirroring left and right.
    """
    mirrored = image[:, ::-1] if symmetry >= SYMMETRIES // 2 else image
    return np.rot90(mirrored, symmetry % 4)


@dataclass(frozen=True)
class Augmenter:
    """Draws what is changed, and changes it.

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
        """For bands by name, with their statistics, each of shape (bands,)."""
        groups = np.array([band(name).group for name in bands])
        optical, radar = groups == Group.OPTICAL, groups == Group.SAR
        return cls(options, mean.astype(np.float32), deviation.astype(np.float32), optical, radar)

    def __call__(self, patches: Patches, places: NDArray[np.intp], generator: np.random.Generator) -> Patches:
        """The patches at some places, changed.

        Args:
            patches: all that there are; landslides that are pasted come from them.
            places: of those that are asked for.
            generator: of all that is drawn.
        """
        stack, mask = patches.stack[places], patches.mask[places]
        if self.options.paste:
            stack, mask = self._pasted(patches, stack, mask, generator)
        pairs = [self._laid(*pair, generator) for pair in zip(stack, mask, strict=True)]
        stack, mask = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return Patches(self._lit(stack, generator), mask)

    def _pasted(
        self, patches: Patches, stack: NDArray[np.float32], mask: NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Some patches with the landslides of others, moved to the brightness of what they come to lie in."""
        stack, mask = stack.copy(), mask.copy()
        for place in np.flatnonzero(generator.random(len(mask)) < self.options.paste):
            donor, symmetry = int(generator.integers(len(patches))), int(generator.integers(SYMMETRIES))
            pixels, truth = (turned(values[donor], symmetry) for values in (patches.stack, patches.mask))
            there = (truth == LANDSLIDE) & (mask[place] != UNKNOWN)
            moved = np.nan_to_num(_background(stack[place], mask[place]) - _background(pixels, truth))
            stack[place][there] = (pixels + np.where(self.optical | self.radar, moved, 0))[there]
            mask[place][there] = LANDSLIDE
        return stack, mask

    def _laid(
        self, stack: NDArray[np.float32], mask: NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A patch turned and mirrored, and a part of it enlarged to the whole."""
        if self.options.symmetries:
            symmetry = int(generator.integers(SYMMETRIES))
            stack, mask = turned(stack, symmetry), turned(mask, symmetry)
        if self.options.scale:
            side = len(mask)
            kept = round(side * (1 - self.options.scale * generator.random()))
            first, second = (
                start + np.arange(side) * kept // side for start in generator.integers(side - kept + 1, size=2)
            )
            stack, mask = stack[first][:, second], mask[first][:, second]
        return stack, mask

    def _lit(self, stack: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Patches under another light: of each band its gamma, its gain, its offset, and haze over all."""
        options = self.options
        if not (options.gain or options.offset or options.gamma or options.haze):
            return stack
        scaled = (stack - self.mean) / self.deviation
        if options.gamma:
            exponent = np.exp(self._drawn(options.gamma, self.optical, len(stack), generator))
            unit = np.clip(scaled / (2 * _SPAN) + 0.5, 0, 1) ** exponent
            scaled = np.where(self.optical & (np.abs(scaled) < _SPAN), (unit - 0.5) * 2 * _SPAN, scaled)
        lit = self.optical | self.radar
        scaled = scaled * np.exp(self._drawn(options.gain, lit, len(stack), generator))
        scaled = scaled + self._drawn(options.offset, lit, len(stack), generator)
        if options.haze:
            share = self.optical * options.haze * generator.random((len(stack), 1, 1, 1)) ** 2
            scaled = scaled * (1 - share) + share * VEIL
        return (scaled * self.deviation + self.mean).astype(np.float32)

    def _drawn(
        self, deviation: float, bands: NDArray[np.bool_], count: int, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """A normal number for each patch and band, most of it common to all bands; (count, 1, 1, bands)."""
        common = generator.normal(size=(count, 1, 1, 1))
        own = generator.normal(size=(count, 1, 1, len(bands))) * self.options.per_band
        drawn: NDArray[np.float32] = ((common + own) * deviation * bands).astype(np.float32)
        return drawn


def _background(stack: NDArray[np.float32], mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The median of each band outside the landslides, (bands,); NaN where it has no valid pixel there."""
    valid = [values[np.isfinite(values)] for values in np.moveaxis(stack[mask != LANDSLIDE], -1, 0)]
    return np.array([np.median(values) if len(values) else np.nan for values in valid], np.float32)
