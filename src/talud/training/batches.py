"""Batches of patches: shuffled anew each epoch, turned and mirrored, the same way for the same seed."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from talud.data.patches import Patches

SYMMETRIES = 8  # of a square: the dihedral group D4


def turned(image: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """An image (height, width, ...) of equal sides under one of the eight symmetries of the square.

    0 to 3 are quarter turns; 4 to 7 are the same after mirroring left and right.
    """
    mirrored = image[:, ::-1] if symmetry >= SYMMETRIES // 2 else image
    return np.rot90(mirrored, symmetry % 4)


class TrainingBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches for `fit`: stacks (batch, height, width, bands) and truths (batch, height, width, 1).

    Pass `shuffle=False` to `fit`: the order is drawn here, from the seed. The last batch of an epoch may be smaller.
    """

    def __init__(self, patches: Patches, batch_size: int, *, augment: bool, seed: int) -> None:
        super().__init__()
        self._patches = patches
        self._batch_size = batch_size
        self._augment = augment
        self._generator = np.random.default_rng(seed)
        self._draw()

    def __len__(self) -> int:
        return math.ceil(len(self._patches) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        chosen = slice(index * self._batch_size, (index + 1) * self._batch_size)
        numbers, symmetries = self._order[chosen], self._symmetries[chosen]
        pairs = list(zip(numbers, symmetries, strict=True))
        stack = np.stack([turned(self._patches.stack[number], symmetry) for number, symmetry in pairs])
        truth = np.stack([turned(self._patches.mask[number], symmetry) for number, symmetry in pairs])
        return stack, truth[..., np.newaxis]

    def on_epoch_end(self) -> None:
        """Draw the order and the symmetries of the next epoch."""
        self._draw()

    def _draw(self) -> None:
        count = len(self._patches)
        self._order = self._generator.permutation(count)
        drawn = self._generator.integers(SYMMETRIES, size=count)
        self._symmetries = drawn if self._augment else np.zeros(count, np.int64)
