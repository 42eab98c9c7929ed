"""Convolutions and larger blocks of which networks are built.

All are plain Keras layers with a name of their own. A network has the same names with and without batch normalisation.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from talud.networks.unet import NORMALISATION_MOMENTUM, NORMALISATION_SUFFIX

Activation = Literal["relu", "relu6", "sigmoid"]
# Gain of the variance of weights before an activation (He et al., 2015); 1 where there is no rectifier.
_GAINS = {"relu": 2.0, "relu6": 2.0}


@dataclass(frozen=True)
class Blocks:
    """Factory of a network's layers.

    Tensors are `(batch, height, width, channels)`. Methods append layers to a tensor and return the result.

    Attributes:
        seed: seed of the weights. Each layer's weights depend on the seed and on its name alone.
        dtype: dtype policy of the layers.
        normalised: normalise the output of each convolution (Ioffe and Szegedy, 2015); otherwise it has a bias.
    """

    seed: int
    dtype: str
    normalised: bool

    def convolution(
        self, x: Any, filters: int, side: int, name: str, *, stride: int = 1, activation: Activation | None = "relu"
    ) -> Any:
        """Append a convolution, its normalisation and its activation."""
        layer = layers.Conv2D(
            filters,
            side,
            strides=stride,
            padding="same",
            use_bias=not self.normalised,
            kernel_initializer=self._initializer(name, side * side * x.shape[-1], activation),
            dtype=self.dtype,
            name=name,
        )
        return self._finish(layer(x), name, activation)

    def depthwise(
        self, x: Any, side: int, name: str, *, stride: int = 1, activation: Activation | None = "relu6"
    ) -> Any:
        """Append a depthwise convolution, its normalisation and its activation."""
        layer = layers.DepthwiseConv2D(
            side,
            strides=stride,
            padding="same",
            use_bias=not self.normalised,
            depthwise_initializer=self._initializer(name, side * side, activation),
            dtype=self.dtype,
            name=name,
        )
        return self._finish(layer(x), name, activation)

    def pair(self, x: Any, filters: int, name: str) -> Any:
        """Append two 3 × 3 convolutions with ReLU, `name`_first and `name`_second."""
        return self.convolution(self.convolution(x, filters, 3, f"{name}_first"), filters, 3, f"{name}_second")

    def up(self, x: Any, name: str) -> Any:
        """Append an up-sampling that repeats each pixel 2 × 2 times."""
        return layers.UpSampling2D(2, interpolation="nearest", dtype=self.dtype, name=name)(x)

    def join(self, tensors: list[Any], name: str) -> Any:
        """Concatenate the channels of tensors of equal size."""
        return layers.Concatenate(dtype=self.dtype, name=name)(tensors)

    def add(self, tensors: list[Any], name: str) -> Any:
        """Add tensors of equal shape."""
        return layers.Add(dtype=self.dtype, name=name)(tensors)

    def activate(self, x: Any, activation: Activation, name: str) -> Any:
        """Append an activation."""
        if activation == "sigmoid":
            return layers.Activation("sigmoid", dtype=self.dtype, name=name)(x)
        return layers.ReLU(6.0 if activation == "relu6" else None, dtype=self.dtype, name=name)(x)

    def probability(self, x: Any, name: str = "probability") -> Any:
        """Append the last layer: a 1 × 1 convolution with a sigmoid, in float32."""
        initializer = self._initializer(name, x.shape[-1], None)
        last = layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer=initializer, dtype="float32", name=name)
        return last(x)

    def _finish(self, x: Any, name: str, activation: Activation | None) -> Any:
        if self.normalised:
            x = layers.BatchNormalization(
                momentum=NORMALISATION_MOMENTUM, dtype=self.dtype, name=f"{name}{NORMALISATION_SUFFIX}"
            )(x)
        return x if activation is None else self.activate(x, activation, f"{name}_{activation}")

    def _initializer(self, name: str, fan_in: int, activation: Activation | None) -> keras.initializers.Initializer:
        """Return the initializer of a kernel: normal, variance gain / fan-in.

        Keras's own He initializer takes the channels of a depthwise kernel for inputs of each output.
        """
        seed = int(np.random.SeedSequence([self.seed, zlib.crc32(name.encode())]).generate_state(1)[0] >> 1)
        gain = _GAINS.get(activation or "", 1.0)
        return keras.initializers.RandomNormal(stddev=math.sqrt(gain / fan_in), seed=seed)
