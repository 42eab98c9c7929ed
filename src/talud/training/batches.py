"""Batches of patches: shuffled and changed anew each epoch, the same way for the same seed."""

from __future__ import annotations

import math

import keras
import numpy as np
from numpy.typing import NDArray

from talud.data.patches import Patches
from talud.training.augmentation import Augmenter
from talud.training.dropping import Dropping


class TrainingBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches for one `fit`: stacks (batch, height, width, bands) and truths (batch, height, width, 1).

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
        drawn_by = [self._seed, self._epoch, index]
        changed = self._augmenter(self._patches, places, np.random.default_rng(drawn_by))
        stack, truth = changed.stack, changed.mask
        if self._dropping:
            stack, truth = self._dropping.applied(stack, truth, drawn_by)
        return stack, truth[..., np.newaxis]

    def on_epoch_end(self) -> None:
        """Go on to the next epoch; `fit` calls this once before its first epoch too, having only looked at a batch."""
        self._epoch = self._next_epoch
        self._next_epoch += 1
