"""Losses for a rare class and the pixel scores, for truths that hold unknown pixels.

Truth has the shape (batch, height, width, 1): 1 landslide, 0 background, 255 unknown; predictions are probabilities
of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from talud.metrics import LANDSLIDE, UNKNOWN


def dice(truth: Any, probability: Any) -> Any:
    """One minus the Dice coefficient of all known pixels of a batch, a scalar: Keras's `dice` over all four axes.

    All pixels of the batch make one coefficient. Taken patch by patch, a patch without a landslide would cost 1
    whatever the network says there, and have no gradient: nothing could be learned from background.
    """
    return keras.losses.dice(*_known(truth, probability), axis=_ALL)


def dice_cross_entropy(truth: Any, probability: Any) -> Any:
    """`dice` and the mean binary cross-entropy of the known pixels, added.

    Dice sees no more than sums and is flat where the network is sure and wrong; cross-entropy is not.
    """
    known = ops.cast(ops.convert_to_tensor(truth) != UNKNOWN, ops.dtype(ops.convert_to_tensor(probability)))
    each = ops.expand_dims(keras.losses.binary_crossentropy(*_known(truth, probability)), -1)
    return dice(truth, probability) + ops.sum(each * known) / ops.maximum(ops.sum(known), 1)


def tversky(truth: Any, probability: Any) -> Any:
    """Keras's `tversky` over all known pixels of a batch, a scalar: a missed pixel counts 0.7, a false alarm 0.3.

    Salehi, Erdogmus and Gholipour, 2017, who found these best for lesions, a class as rare as landslides.
    """
    # Keras weighs (1 - prediction) · truth, the misses, by what it calls alpha.
    return keras.losses.tversky(*_known(truth, probability), alpha=0.7, beta=0.3, axis=_ALL)


def focal_tversky(truth: Any, probability: Any) -> Any:
    """`tversky` to the power of 3/4, a scalar, which keeps its gradient where the loss is small.

    Abraham and Khan, 2019 (γ = 4/3).
    """
    return tversky(truth, probability) ** 0.75


_ALL = (0, 1, 2, 3)


def _known(truth: Any, probability: Any) -> tuple[Any, Any]:
    """Truth and prediction, both 0 where the truth is unknown: such a pixel adds nothing, and gets no gradient."""
    probability = ops.convert_to_tensor(probability)
    truth = ops.cast(truth, probability.dtype)
    known = ops.cast(truth != UNKNOWN, probability.dtype)
    return truth * known, probability * known


LOSSES: Mapping[str, Callable[[Any, Any], Any]] = {
    loss.__name__: loss for loss in (dice, dice_cross_entropy, tversky, focal_tversky)
}


@keras.saving.register_keras_serializable("talud")
class Loss(keras.losses.Loss):  # type: ignore[misc]
    """One of `LOSSES`, by its name, as a loss for `compile`."""

    def __init__(self, name: str = "dice", **options: Any) -> None:
        super().__init__(name=name, **options)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of a batch, a scalar."""
        return LOSSES[self.name](y_true, y_pred)


@keras.saving.register_keras_serializable("talud")
class PixelScores(keras.metrics.Metric):  # type: ignore[misc]
    """Precision, recall, F1 and IoU of the landslide class over a whole epoch, from summed counts.

    The mean of a score over batches is not the score of their pixels, so the counts are added up, as whole numbers.
    A pixel is landslide where its probability is at least 0.5; unknown pixels are not counted.
    """

    def __init__(self, name: str = "scores", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.hits, self.alarms, self.misses = (
            self.add_weight(shape=(), initializer="zeros", dtype="int32", name=count)
            for count in ("hits", "alarms", "misses")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add the counts of a batch; weights of samples are of no use here and refused."""
        if sample_weight is not None:
            raise ValueError("PixelScores counts pixels; sample weights mean nothing to it")
        known = ops.not_equal(y_true, UNKNOWN)
        landslide = ops.equal(y_true, LANDSLIDE)
        mapped = ops.logical_and(y_pred >= 0.5, known)
        self.hits.assign_add(_count(ops.logical_and(mapped, landslide)))
        self.alarms.assign_add(_count(ops.logical_and(mapped, ops.logical_not(landslide))))
        self.misses.assign_add(_count(ops.logical_and(ops.logical_not(mapped), landslide)))

    def result(self) -> dict[str, Any]:
        """The four scores by name; 0 where a denominator is 0."""
        hits, alarms, misses = (ops.cast(count, "float32") for count in (self.hits, self.alarms, self.misses))
        return {
            "precision": ops.divide_no_nan(hits, hits + alarms),
            "recall": ops.divide_no_nan(hits, hits + misses),
            "f1": ops.divide_no_nan(2 * hits, 2 * hits + alarms + misses),
            "iou": ops.divide_no_nan(hits, hits + alarms + misses),
        }


def _count(condition: Any) -> Any:
    return ops.sum(ops.cast(condition, "int32"))
