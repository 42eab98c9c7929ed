"""One trial: a U-Net trained with one choice of hyperparameters, kept at its best epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from talud.data.patches import Patches
from talud.errors import StudyError
from talud.training import unet
from talud.training.batches import TrainingBatches
from talud.training.dataset import Statistics
from talud.training.losses import Dice, PixelScores

SCORES = ("precision", "recall", "f1", "iou")
VALIDATION_BATCH = 32

OnEpoch = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Hyperparameters:
    """What makes one trial of a study differ from another."""

    filters: int
    learning_rate: float
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        """A short name, unique in a study."""
        return f"{self.filters} filters · lr {self.learning_rate:g} · batch {self.batch_size}"


@dataclass(frozen=True)
class Trained:
    """What a trial came to at its best epoch.

    Attributes:
        weights: in the order of `keras.Model.get_weights`.
        parameters: how many trainable weights there are.
        best_epoch: counted from 1.
        scores: precision, recall, f1 and iou on the validation patches, at a threshold of 0.5.
        seconds: that the training took.
    """

    weights: list[NDArray[np.float32]]
    parameters: int
    best_epoch: int
    scores: dict[str, float]
    seconds: float


def train(
    training: Patches,
    validation: Patches,
    choice: Hyperparameters,
    statistics: Statistics,
    *,
    depth: int,
    augment: bool,
    seed: int,
    on_epoch: OnEpoch,
) -> Trained:
    """Train a U-Net and keep its best epoch; on one machine, equal arguments give equal weights.

    Args:
        training: what the weights are fitted to.
        validation: what the epoch is chosen by.
        choice: the trial's hyperparameters.
        statistics: of the bands over the training patches.
        depth: of the U-Net.
        augment: turn and mirror the training patches.
        seed: of the weights, the order of the patches and their turns.
        on_epoch: called after each epoch, counted from 1, with `loss`, the four scores, and `val_` of each.

    Raises:
        StudyError: the loss is not finite.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = build(choice, statistics, depth, seed)
    adam = keras.optimizers.Adam(choice.learning_rate)
    # XLA only where the backend needs it: on two cores TensorFlow compiles for 14 s and then trains no faster.
    jit = keras.backend.backend() != "tensorflow"
    model.compile(optimizer=adam, loss=Dice(), metrics=[PixelScores()], jit_compile=jit)
    best = BestEpoch(on_epoch)
    started = time.monotonic()
    model.fit(
        TrainingBatches(training, choice.batch_size, augment=augment, seed=seed),
        validation_data=(validation.stack, validation.mask[..., np.newaxis]),
        validation_batch_size=VALIDATION_BATCH,
        epochs=choice.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[best],
    )
    seconds = time.monotonic() - started
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return Trained(best.weights, parameters, best.epoch, best.scores, seconds)


def build(choice: Hyperparameters, statistics: Statistics, depth: int, seed: int) -> keras.Model:
    """The untrained U-Net of a trial."""
    mean, deviation = statistics.mean.astype(np.float32), statistics.deviation.astype(np.float32)
    return unet.build(choice.filters, depth, mean, deviation, seed)


class BestEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the weights of the epoch of the highest validation F1; of equal ones, of the lower validation loss."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        super().__init__()
        self.epoch = 0
        self.weights: list[NDArray[np.float32]] = []
        self.scores: dict[str, float] = {}
        self._rank = (-math.inf, -math.inf)
        self._on_epoch = on_epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Compare the epoch, and pass its metrics on."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["val_loss"])):
            raise StudyError(f"the loss of epoch {epoch + 1} is not a number; a lower learning rate may help")
        rank = metrics["val_f1"], -metrics["val_loss"]
        if rank > self._rank:
            self._rank, self.epoch = rank, epoch + 1
            self.weights = self.model.get_weights()
            self.scores = {name: metrics[f"val_{name}"] for name in SCORES}
        self._on_epoch(epoch + 1, metrics)
