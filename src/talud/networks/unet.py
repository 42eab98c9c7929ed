"""U-Net of the published study.

Tensors are `(batch, height, width, bands)`. Height and width are free multiples of 2^depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from talud.networks.fast_layers import Normalisation
from talud.params.networks import PLAIN_UNET

SCALING = "scaling"  # name of the layer that scales the bands
KERNEL_SIDE = 3  # side of every convolution except the last, in pixels
POOL_SIDE = 2  # side of every pooling and up-sampling, in pixels
NORMALISATION_SUFFIX = "_normalisation"  # appended to a convolution's name for its batch normalisation
# Momentum of the statistics of batch normalisation; low, for an epoch may have only a few dozen batches.
NORMALISATION_MOMENTUM = 0.95
NORMALISATION_EPSILON = 1e-3  # number that batch normalisation adds to a variance; Keras's default

Precision = Literal[False, "float16", "bfloat16"]


@keras.saving.register_keras_serializable("talud")
class Scaling(layers.Layer):  # type: ignore[misc]
    """Preprocessing: (x - mean) / deviation of each band, 0 where NaN.

    0 is the mean of a scaled band, so that an invalid pixel carries no signal. The constants are non-trainable weights,
    which are saved and exported with the others.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the constants, with mean 0 and deviation 1."""
        bands = input_shape[-1]
        self.mean = self.add_weight(shape=(bands,), initializer="zeros", trainable=False, name="mean")
        self.deviation = self.add_weight(shape=(bands,), initializer="ones", trainable=False, name="deviation")

    def call(self, inputs: Any) -> Any:
        """Scale a stack (batch, height, width, bands); NaN becomes 0."""
        return ops.where(ops.isnan(inputs), 0.0, (inputs - self.mean) / self.deviation)


def build(
    filters: int,
    depth: int,
    mean: NDArray[np.float32],
    deviation: NDArray[np.float32],
    seed: int,
    *,
    rematerialise: bool = False,
    mixed_precision: Precision = False,
    batch_normalisation: bool = False,
) -> keras.Model:
    """Return an untrained U-Net, He-initialised from a seed.

    Args:
        filters: number of filters of the first level, doubled at each lower level.
        depth: number of poolings.
        mean: mean of each band over the valid training pixels, (bands,).
        deviation: standard deviation of each band, above 0, (bands,).
        seed: seed of the weights.
        rematerialise: recompute the activations inside each block in the backward pass, which gives the same values
            with less memory and more time.
        mixed_precision: float16 or bfloat16 to compute everything but the scaling of the bands and the probability in
            that type; the weights are always float32.
        batch_normalisation: normalise the output of each convolution except the last, before its ReLU (Ioffe and
            Szegedy, 2015). The export folds it into the convolutions.

    Returns:
        A model from `stack` (batch, height, width, bands), in physical units with NaN for invalid, to `probability`
        (batch, height, width, 1), both float32.
    """
    dtype = f"mixed_{mixed_precision}" if mixed_precision else "float32"
    blocks = _Blocks.create(filters, depth, seed, dtype, batch_normalisation)
    stack = layers.Input((None, None, len(mean)), dtype="float32", name="stack")
    probability = blocks.run(stack, lambda block: block)
    blocks.scaling.set_weights([mean, deviation])
    if rematerialise:
        return Rematerialised(stack, probability, blocks)
    return keras.Model(stack, probability, name=PLAIN_UNET)


def recompute_normalisation(model: keras.Model, stacks: Iterable[NDArray[np.float32]]) -> None:
    """Recompute the statistics of batch normalisation as means over batches.

    Args:
        model: model of `build` that is not rematerialised.
        stacks: stacks of the batches, (batch, height, width, bands).
    """
    normalisations = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for count, stack in enumerate(stacks):
        for normalisation in normalisations:
            normalisation.momentum = count / (count + 1)
        model(stack, training=True)
    for normalisation in normalisations:
        normalisation.momentum = NORMALISATION_MOMENTUM


Block = Callable[..., Any]  # function from one or more tensors to one tensor


@dataclass(frozen=True)
class _Blocks:
    """Layers of a U-Net, grouped in blocks that can be rematerialised.

    Attributes:
        scaling: preprocessing layer.
        encoder: blocks from the first level to the bottom; all outputs except the last are skip connections.
        up: up-sampling blocks, from the bottom to the first level.
        decoder: blocks that join a skip connection with the up-sampled tensor, in the same order.
        probability: last layer.
    """

    scaling: Scaling
    encoder: tuple[Block, ...]
    up: tuple[Block, ...]
    decoder: tuple[Block, ...]
    probability: layers.Conv2D

    @classmethod
    def create(cls, filters: int, depth: int, seed: int, dtype: str, normalised: bool) -> _Blocks:
        """Create the layers with the arithmetic of `dtype`."""
        convolution = _convolutions(filters, itertools.count(seed), dtype, normalised)
        encoder, up, decoder = [], [], []
        for level in range(depth + 1):
            pool = [layers.MaxPooling2D(POOL_SIDE, dtype=dtype, name=f"pool_{level - 1}")] if level else []
            name = f"encoder_{level}" if level < depth else "bottom"
            encoder.append(_chain(*pool, *convolution(level, f"{name}_first"), *convolution(level, f"{name}_second")))
        for level in reversed(range(depth)):
            larger = layers.UpSampling2D(POOL_SIDE, interpolation="nearest", dtype=dtype, name=f"up_{level}")
            up.append(_chain(larger, *convolution(level, f"up_{level}_convolution")))
            join = layers.Concatenate(dtype=dtype, name=f"skip_{level}")
            first, second = (convolution(level, f"decoder_{level}_{name}") for name in ("first", "second"))
            decoder.append(_chain(join, *first, *second))
        last = layers.Conv2D(
            1, 1, activation="sigmoid", kernel_initializer=_he(seed - 1), dtype="float32", name="probability"
        )
        return cls(Scaling(dtype="float32", name=SCALING), tuple(encoder), tuple(up), tuple(decoder), last)

    def run(self, stack: Any, through: Callable[[Block], Block]) -> Any:
        """Return the probability of a stack; wrap blocks with `through`."""
        x, skips = self.scaling(stack), []
        for encode in self.encoder:
            x = through(encode)(x)
            skips.append(x)
        skips.pop()
        for up, decode in zip(self.up, self.decoder, strict=True):
            x = through(decode)(skips.pop(), through(up)(x))
        return self.probability(x)


class Rematerialised(keras.Model):  # type: ignore[misc]
    """U-Net that rematerialises its blocks in the backward pass.

    Keras's `RematScope` rematerialises each layer separately, and so still stores all tensors between layers.
    """

    def __init__(self, stack: Any, probability: Any, blocks: _Blocks) -> None:
        super().__init__(stack, probability, name=PLAIN_UNET)
        self._blocks = blocks

    def call(self, inputs: Any) -> Any:
        """Return the probability of a stack."""
        return self._blocks.run(inputs, recomputed)


def recomputed(block: Block) -> Block:
    """Return a block that the backward pass recomputes from its inputs."""

    # A new function for each call: JAX caches by identity, and would reuse the weights of an earlier call.
    def call_block(*inputs: Any) -> Any:
        return block(*inputs)

    recomputed: Block = keras.remat(call_block)
    return recomputed


def _chain(*chained: layers.Layer) -> Block:
    """Chain layers into a block; the first may take several tensors."""

    def block(*inputs: Any) -> Any:
        x = inputs[0] if len(inputs) == 1 else list(inputs)
        for layer in chained:
            x = layer(x)
        return x

    return block


def _he(seed: int) -> keras.initializers.Initializer:
    return keras.initializers.HeNormal(seed=seed)


def _convolutions(
    filters: int, seeds: Iterator[int], dtype: str, normalised: bool
) -> Callable[[int, str], tuple[layers.Layer, ...]]:
    """Return a factory of 3 × 3 convolutions with ReLU."""

    def convolution(level: int, name: str) -> tuple[layers.Layer, ...]:
        layer = layers.Conv2D(
            filters * 2**level,
            KERNEL_SIDE,
            padding="same",
            activation=None if normalised else "relu",
            use_bias=not normalised,
            kernel_initializer=_he(next(seeds)),
            dtype=dtype,
            name=name,
        )
        if not normalised:
            return (layer,)
        normalisation = Normalisation(
            momentum=NORMALISATION_MOMENTUM, dtype=dtype, name=f"{name}{NORMALISATION_SUFFIX}"
        )
        return layer, normalisation, layers.ReLU(dtype=dtype, name=f"{name}_relu")

    return convolution
