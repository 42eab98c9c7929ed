"""The U-Net: the study's architecture for any number of bands, filters and depth.

Tensors are `(batch, height, width, bands)`. Height and width are free, and multiples of 2^depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

KERNEL = 3  # side of every convolution but the last
POOL = 2  # side of every pooling and up-sampling


@keras.saving.register_keras_serializable("talud")
class Scaling(layers.Layer):  # type: ignore[misc]
    """The model's preprocessing: (x - mean) / deviation for each band, then 0 where x is NaN.

    0 is the mean of a scaled band, so an invalid pixel carries no signal. The constants are weights that no
    optimiser moves; they are saved and exported with the others.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the constants: mean 0 and deviation 1 until `set_weights([mean, deviation])`."""
        bands = input_shape[-1]
        self.mean = self.add_weight(shape=(bands,), initializer="zeros", trainable=False, name="mean")
        self.deviation = self.add_weight(shape=(bands,), initializer="ones", trainable=False, name="deviation")

    def call(self, inputs: Any) -> Any:
        """Scale a stack of shape (batch, height, width, bands); NaN becomes 0."""
        return ops.where(ops.isnan(inputs), 0.0, (inputs - self.mean) / self.deviation)


def build(
    filters: int, depth: int, mean: NDArray[np.float32], deviation: NDArray[np.float32], seed: int
) -> keras.Model:
    """A U-Net of fresh weights, He-initialised from the seed.

    Args:
        filters: of the first level; they double with each level down.
        depth: number of poolings.
        mean: of each band over the valid training pixels, shape (bands,).
        deviation: standard deviation of each band, shape (bands,), above 0.
        seed: two models of one seed have equal weights.

    Returns:
        A model from `stack` (batch, height, width, bands), in physical units with NaN for invalid, to `probability`
        (batch, height, width, 1).
    """
    convolve = _convolutions(itertools.count(seed))
    stack = layers.Input((None, None, len(mean)), name="stack")
    scaling = Scaling(name="scaling")
    x = scaling(stack)
    scaling.set_weights([mean, deviation])
    skips = []
    for level in range(depth):
        x = convolve(x, filters * 2**level, f"encoder_{level}_first")
        x = convolve(x, filters * 2**level, f"encoder_{level}_second")
        skips.append(x)
        x = layers.MaxPooling2D(POOL, name=f"pool_{level}")(x)
    x = convolve(x, filters * 2**depth, "bottom_first")
    x = convolve(x, filters * 2**depth, "bottom_second")
    for level in reversed(range(depth)):
        x = layers.UpSampling2D(POOL, interpolation="nearest", name=f"up_{level}")(x)
        x = convolve(x, filters * 2**level, f"up_{level}_convolution")
        x = layers.Concatenate(name=f"skip_{level}")([skips[level], x])
        x = convolve(x, filters * 2**level, f"decoder_{level}_first")
        x = convolve(x, filters * 2**level, f"decoder_{level}_second")
    probability = layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer=_he(seed - 1), name="probability")(x)
    return keras.Model(stack, probability, name="unet")


def _he(seed: int) -> keras.initializers.Initializer:
    return keras.initializers.HeNormal(seed=seed)


def _convolutions(seeds: Iterator[int]) -> Callable[[Any, int, str], Any]:
    """A 3 × 3 convolution with ReLU, of its own seed at each call."""

    def convolve(x: Any, filters: int, name: str) -> Any:
        initializer = _he(next(seeds))
        convolution = layers.Conv2D(
            filters, KERNEL, padding="same", activation="relu", kernel_initializer=initializer, name=name
        )
        return convolution(x)

    return convolve
