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
    """Batches for one `fit`: stacks (batch, height, width, bands) and truths (batch, height, width, 1).

    The order and the turns of an epoch depend on the seed and on the epoch's number alone, so a training that goes on
    at `first_epoch` (`fit`'s `initial_epoch`) sees what one that was never interrupted sees. Pass `shuffle=False` to
    `fit`: the order is drawn here. The last batch of an epoch may be smaller.

    Args:
        patches: all of them pass in every epoch.
        batch_size: patches in a batch.
        augment: turn and mirror them.
        seed: of the order and of the turns.
        first_epoch: the number, counted from 0, of the epoch that `fit` begins with.
    """

    def __init__(self, patches: Patches, batch_size: int, *, augment: bool, seed: int, first_epoch: int = 0) -> None:
        super().__init__()
        self._patches = patches
        self._batch_size = batch_size
        self._augment = augment
        self._seed = seed
        self._next_epoch = first_epoch
        self._places = self._drawn(first_epoch)

    def __len__(self) -> int:
        return math.ceil(len(self._patches) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        places = self._places[index * self._batch_size : (index + 1) * self._batch_size]
        stack = np.stack([turned(self._patches.stack[number], symmetry) for number, symmetry in places])
        truth = np.stack([turned(self._patches.mask[number], symmetry) for number, symmetry in places])
        return stack, truth[..., np.newaxis]

    def on_epoch_end(self) -> None:
        """Draw the next epoch; `fit` calls this once before its first epoch too, having only looked at the batches."""
        self._places = self._drawn(self._next_epoch)
        self._next_epoch += 1

    def _drawn(self, epoch: int) -> list[tuple[int, int]]:
        """The number and the symmetry of each patch, in the order of an epoch."""
        generator, count = np.random.default_rng([self._seed, epoch]), len(self._patches)
        order = generator.permutation(count)
        symmetries = generator.integers(SYMMETRIES, size=count) if self._augment else np.zeros(count, np.int64)
        return list(zip(order.tolist(), symmetries.tolist(), strict=True))
