"""Losses of a batch, and scores of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from talud.metrics import LANDSLIDE, UNKNOWN


def dice(truth: Any, probability: Any) -> Any:
    """Return the Dice loss of all known pixels of a batch.

    It is Keras's `dice` over all four axes: one coefficient for all pixels of the batch. With one coefficient for each
    patch, a patch without landslides would always have the loss 1 and no gradient, so that the network could not learn
    from background.
    """
    return keras.losses.dice(*_known(truth, probability), axis=_ALL)


def dice_cross_entropy(truth: Any, probability: Any) -> Any:
    """Return the sum of `dice` and the binary cross-entropy.

    The Dice loss has almost no gradient where the network is confident and wrong; cross-entropy does. Unknown pixels
    are ignored.
    """
    known = ops.cast(ops.convert_to_tensor(truth) != UNKNOWN, ops.dtype(ops.convert_to_tensor(probability)))
    each = ops.expand_dims(keras.losses.binary_crossentropy(*_known(truth, probability)), -1)
    return dice(truth, probability) + ops.sum(each * known) / ops.maximum(ops.sum(known), 1)


def tversky(truth: Any, probability: Any) -> Any:
    """Return the Tversky loss of all known pixels of a batch.

    A missed pixel has the weight 0.7, a false alarm 0.3. Salehi, Erdogmus and Gholipour (2017) found these weights best
    for lesions, which are as rare as landslides.
    """
    # Keras's alpha is the weight of the missed pixels.
    return keras.losses.tversky(*_known(truth, probability), alpha=0.7, beta=0.3, axis=_ALL)


def focal_tversky(truth: Any, probability: Any) -> Any:
    """Return the Tversky loss to the power of 3/4.

    Its gradient is larger where the loss is small (Abraham and Khan, 2019, γ = 4/3).
    """
    return tversky(truth, probability) ** 0.75


_ALL = (0, 1, 2, 3)


def _known(truth: Any, probability: Any) -> tuple[Any, Any]:
    """Set truth and prediction to 0 where the truth is unknown.

    Unknown pixels then contribute neither to the loss nor to the gradient.
    """
    probability = ops.convert_to_tensor(probability)
    truth = ops.cast(truth, probability.dtype)
    known = ops.cast(truth != UNKNOWN, probability.dtype)
    return truth * known, probability * known


LOSSES: Mapping[str, Callable[[Any, Any], Any]] = {
    loss.__name__: loss for loss in (dice, dice_cross_entropy, tversky, focal_tversky)
}


@keras.saving.register_keras_serializable("talud")
class Loss(keras.losses.Loss):  # type: ignore[misc]
    """Loss with a name of `LOSSES`, for `compile`."""

    def __init__(self, name: str = "dice", **options: Any) -> None:
        super().__init__(name=name, **options)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of a batch, a scalar."""
        return LOSSES[self.name](y_true, y_pred)


@keras.saving.register_keras_serializable("talud")
class PixelScores(keras.metrics.Metric):  # type: ignore[misc]
    """Precision, recall, F1 and IoU of landslides over an epoch.

    They are computed from integer counts summed over the batches, because the mean of a score over batches is not the
    score of their pixels. A pixel counts as landslide if its probability is at least 0.5. Unknown pixels are ignored.
    """

    def __init__(self, name: str = "scores", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.hits, self.alarms, self.misses = (
            self.add_weight(shape=(), initializer="zeros", dtype="int32", name=count)
            for count in ("hits", "alarms", "misses")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add the counts of a batch.

        Raises:
            ValueError: Sample weights are given.
        """
        if sample_weight is not None:
            raise ValueError("PixelScores does not support sample weights")
        known = ops.not_equal(y_true, UNKNOWN)
        landslide = ops.equal(y_true, LANDSLIDE)
        mapped = ops.logical_and(y_pred >= 0.5, known)
        self.hits.assign_add(_count(ops.logical_and(mapped, landslide)))
        self.alarms.assign_add(_count(ops.logical_and(mapped, ops.logical_not(landslide))))
        self.misses.assign_add(_count(ops.logical_and(ops.logical_not(mapped), landslide)))

    def result(self) -> dict[str, Any]:
        """Return the four scores by name, 0 if undefined."""
        hits, alarms, misses = (ops.cast(count, "float32") for count in (self.hits, self.alarms, self.misses))
        return {
            "precision": ops.divide_no_nan(hits, hits + alarms),
            "recall": ops.divide_no_nan(hits, hits + misses),
            "f1": ops.divide_no_nan(2 * hits, 2 * hits + alarms + misses),
            "iou": ops.divide_no_nan(hits, hits + alarms + misses),
        }


def _count(condition: Any) -> Any:
    return ops.sum(ops.cast(condition, "int32"))
