"""Convolutions and larger blocks of which networks are built.

All are layers of Keras, or faster equivalents, with a name of their own. A network has the same names with and without
batch normalisation.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from talud.networks.fast_layers import DepthwiseConvolution, Normalisation, StridedPointwiseConvolution
from talud.networks.unet import NORMALISATION_EPSILON, NORMALISATION_MOMENTUM, NORMALISATION_SUFFIX

Activation = Literal["relu", "relu6", "sigmoid"]
# Gain of the variance of weights before an activation (He et al., 2015); 1 where there is no rectifier.
_GAINS = {"relu": 2.0, "relu6": 2.0}


Gate = Callable[[int, Any, Any], Any]


@keras.saving.register_keras_serializable("talud")
class BandSlice(layers.Layer):  # type: ignore[misc]
    """Consecutive bands of a stack."""

    def __init__(self, first: int, count: int, **options: Any) -> None:
        """Choose bands.

        Args:
            first: index of the first band.
            count: number of bands.
            options: options of every Keras layer.
        """
        super().__init__(**options)
        self.first, self.count = first, count

    def call(self, inputs: Any) -> Any:
        """Return the bands of a stack (batch, height, width, bands)."""
        return inputs[..., self.first : self.first + self.count]

    def get_config(self) -> dict[str, Any]:
        """Return the options with which the layer is made again."""
        config: dict[str, Any] = super().get_config()
        return config | {"first": self.first, "count": self.count}


@dataclass(frozen=True)
class Blocks:
    """Factory of a network's layers.

    Tensors are `(batch, height, width, channels)`. Methods append layers to a tensor and return the result.

    Attributes:
        seed: seed of the weights. Each layer's weights depend on the seed and on its name alone.
        dtype: dtype policy of the layers.
        normalised: normalise the output of each convolution (Ioffe and Szegedy, 2015); otherwise it has a bias.
        epsilon: number that a normalisation adds to each variance.
    """

    seed: int
    dtype: str
    normalised: bool
    epsilon: float = NORMALISATION_EPSILON

    def convolution(
        self,
        x: Any,
        filters: int,
        side: int,
        name: str,
        *,
        stride: int = 1,
        pad: int | None = None,
        activation: Activation | None = "relu",
    ) -> Any:
        """Append a convolution, its normalisation and its activation.

        `pad` is the number of zeros on each side; by default there are as many as needed, the odd one at the end.
        """
        if pad is not None:
            x = layers.ZeroPadding2D(pad, dtype=self.dtype, name=f"{name}_pad")(x)
        kind = StridedPointwiseConvolution if side == 1 and stride > 1 else layers.Conv2D
        layer = kind(
            filters,
            side,
            strides=stride,
            padding="same" if pad is None else "valid",
            use_bias=not self.normalised,
            kernel_initializer=self._initializer(name, side * side * x.shape[-1], activation),
            dtype=self.dtype,
            name=name,
        )
        return self._finish(layer(x), name, activation)

    def depthwise(
        self,
        x: Any,
        side: int,
        name: str,
        *,
        stride: int = 1,
        multiplier: int = 1,
        activation: Activation | None = "relu6",
    ) -> Any:
        """Append a depthwise convolution, its normalisation and its activation.

        `multiplier` is the number of filters of each channel.
        """
        layer = DepthwiseConvolution(
            side,
            depth_multiplier=multiplier,
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

    def pool(self, x: Any, name: str, *, side: int = 2, average: bool = False) -> Any:
        """Append a pooling, of maxima or means, with windows that do not overlap."""
        kind = layers.AveragePooling2D if average else layers.MaxPooling2D
        return kind(side, dtype=self.dtype, name=name)(x)

    def pool_overlapping(self, x: Any, name: str) -> Any:
        """Append a pooling of the 3 × 3 maxima around every second pixel.

        The tensor must not have negative values.
        """
        padded = layers.ZeroPadding2D(1, dtype=self.dtype, name=f"{name}_pad")(x)
        return layers.MaxPooling2D(3, strides=2, dtype=self.dtype, name=name)(padded)

    def encoder(self, x: Any, filters: int, depth: int, name: str = "encoder") -> list[Any]:
        """Return the tensor of each scale of a U-Net's encoder, finest first.

        Args:
            x: tensor at the finest scale.
            filters: filters at the finest scale, doubled at each coarser one.
            depth: number of poolings.
            name: start of the names of the layers.
        """
        scales = [self.pair(x, filters, f"{name}_0")]
        for level in range(1, depth + 1):
            pooled = self.pool(scales[-1], f"{name}_{level}_pool")
            scales.append(self.pair(pooled, filters * 2**level, f"{name}_{level}"))
        return scales

    def decoder(self, scales: list[Any], widths: Sequence[int], gate: Gate | None = None) -> list[Any]:
        """Return the tensor of each scale of a U-Net's decoder, finest first.

        Args:
            scales: tensor of each scale of the encoder, finest first.
            widths: filters of each scale but the coarsest.
            gate: function of the level, the encoder's tensor and the up-sampled one to what replaces the encoder's.
        """
        found = [scales[-1]]
        for level in reversed(range(len(scales) - 1)):
            larger, skip = self.up(found[0], f"up_{level}"), scales[level]
            skip = skip if gate is None else gate(level, skip, larger)
            found.insert(0, self.pair(self.join([larger, skip], f"skip_{level}"), widths[level], f"decoder_{level}"))
        return found

    def join(self, tensors: list[Any], name: str) -> Any:
        """Concatenate the channels of tensors of equal size."""
        return layers.Concatenate(dtype=self.dtype, name=name)(tensors)

    def multiply(self, tensors: list[Any], name: str) -> Any:
        """Multiply tensors; a single channel applies to all of the other tensor."""
        return layers.Multiply(dtype=self.dtype, name=name)(tensors)

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
            x = Normalisation(
                momentum=NORMALISATION_MOMENTUM,
                epsilon=self.epsilon,
                dtype=self.dtype,
                name=f"{name}{NORMALISATION_SUFFIX}",
            )(x)
        return x if activation is None else self.activate(x, activation, f"{name}_{activation}")

    def _initializer(self, name: str, fan_in: int, activation: Activation | None) -> keras.initializers.Initializer:
        """Return the initializer of a kernel: normal, variance gain / fan-in.

        Keras's own He initializer takes the channels of a depthwise kernel for inputs of each output.
        """
        seed = int(np.random.SeedSequence([self.seed, zlib.crc32(name.encode())]).generate_state(1)[0] >> 1)
        gain = _GAINS.get(activation or "", 1.0)
        return keras.initializers.RandomNormal(stddev=math.sqrt(gain / fan_in), seed=seed)
