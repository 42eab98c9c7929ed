"""Optimiser of a trial: Adam with a schedule and relative learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from talud.params import Recipe

_WARM_UP_SHARE = 0.15  # share of the steps in which the learning rate of one_cycle rises
_FIRST_RATE = 1 / 25  # first learning rate of one_cycle, relative to the largest


def create_optimizer(
    recipe: Recipe, learning_rate: float, epochs: int, steps: int, pretrained: Sequence[keras.Variable] = ()
) -> keras.optimizers.Optimizer:
    """Return Adam, or AdamW for weight decay (Loshchilov and Hutter, 2019).

    Args:
        recipe: schedule, weight decay, averaging and relative learning rate of pretrained weights.
        learning_rate: largest learning rate.
        epochs: largest number of epochs of the trial.
        steps: number of batches in an epoch.
        pretrained: trainable weights that start from those of another training.
    """
    rate = schedule(recipe, learning_rate, epochs, steps)
    options = {
        "weight_decay": recipe.weight_decay or None,
        "use_ema": bool(recipe.averaging),
        "ema_momentum": recipe.averaging or 0.99,
    }
    if recipe.encoder_rate < 1 and pretrained:
        adam = AdamOfTwoRates(pretrained, recipe.encoder_rate, rate, **options)
        adam.exclude_from_weight_decay(var_list=list(pretrained))
        return adam
    return (keras.optimizers.AdamW if recipe.weight_decay else keras.optimizers.Adam)(rate, **options)


def schedule(
    recipe: Recipe, learning_rate: float, epochs: int, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate, or its schedule as a function of the step alone.

    Args:
        recipe: recipe with the name of the schedule.
        learning_rate: largest learning rate.
        epochs: largest number of epochs of the trial.
        steps: number of batches in an epoch.
    """
    cosine = keras.optimizers.schedules.CosineDecay
    if recipe.schedule == "cosine":  # Loshchilov and Hutter, 2017, without restarts
        warm = steps // 2
        return cosine(
            learning_rate / 100, epochs * steps - warm, alpha=0.01, warmup_target=learning_rate, warmup_steps=warm
        )
    if recipe.schedule == "one_cycle":  # Smith and Topin, 2019, with a cosine instead of a line as the second half
        total = epochs * steps
        warm = round(_WARM_UP_SHARE * total)
        return cosine(
            learning_rate * _FIRST_RATE, total - warm, alpha=0.0, warmup_target=learning_rate, warmup_steps=warm
        )
    return learning_rate


class AdamOfTwoRates(keras.optimizers.Adam):  # type: ignore[misc]
    """Adam with a lower learning rate for some weights.

    The weight decay of these is relative to their own learning rate: exclude them from that of Keras.
    """

    def __init__(self, slow: Sequence[keras.Variable], relative_rate: float, *arguments: Any, **options: Any) -> None:
        """Choose the weights and their learning rate relative to the others."""
        super().__init__(*arguments, **options)
        self._slow, self._relative_rate = tuple(slow), relative_rate

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a weight in place.

        Args:
            gradient: gradient of the loss.
            variable: weight: a Keras variable, or with TensorFlow its `tf.Variable`.
            learning_rate: learning rate of the other weights.
        """
        # Variables compare element by element, so they are found by identity.
        if any(variable is one or variable is one.value for one in self._slow):
            learning_rate = learning_rate * self._relative_rate
            if self.weight_decay is not None:
                self.assign_sub(variable, variable * (learning_rate * self.weight_decay))
        super().update_step(gradient, variable, learning_rate)
