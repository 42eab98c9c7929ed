"""The Dice loss and the pixel scores, for truths that hold unknown pixels.

Truth has the shape (batch, height, width, 1): 1 landslide, 0 background, 255 unknown; predictions are probabilities
of the same shape.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from talud.metrics import LANDSLIDE, UNKNOWN


def dice(truth: Any, probability: Any) -> Any:
    """One minus the Dice coefficient of all known pixels of a batch, a scalar: Keras's `dice` over all four axes.

    All pixels of the batch make one coefficient. Taken patch by patch, a patch without a landslide would cost 1
    whatever the network says there, and have no gradient: nothing could be learned from background. An unknown
    pixel is 0 in truth and prediction, so it adds nothing to any sum and gets no gradient.
    """
    probability = ops.convert_to_tensor(probability)
    truth = ops.cast(truth, probability.dtype)
    known = ops.cast(truth != UNKNOWN, probability.dtype)
    return keras.losses.dice(truth * known, probability * known, axis=(0, 1, 2, 3))


@keras.saving.register_keras_serializable("talud")
class Dice(keras.losses.Loss):  # type: ignore[misc]
    """`dice` as a loss for `compile`."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of a batch, a scalar."""
        return dice(y_true, y_pred)


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
