"""Tests of the layers with a faster training step, against those of Keras in float32."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from talud.networks.fast_layers import DepthwiseConvolution, Normalisation, StridedPointwiseConvolution

tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("other backends use Keras's own layers", allow_module_level=True)


def step(layer: keras.Layer, inputs: np.ndarray, upstream: np.ndarray) -> list[np.ndarray]:
    """Return output, gradients and statistics of a training step.

    The gradients are those of the inputs and of the trainable weights.
    """
    tensor = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        output = layer(tensor, **({"training": True} if isinstance(layer, layers.BatchNormalization) else {}))
        loss = tf.reduce_sum(tf.cast(output, tf.float32) * upstream)
    gradients = tape.gradient(loss, [tensor, *(weight.value for weight in layer.trainable_variables)])
    statistics = [weight.value for weight in layer.non_trainable_variables]
    return [np.asarray(values, np.float32) for values in (output, *gradients, *statistics)]


@pytest.mark.parametrize(
    ("dtype", "channels", "tolerance"),
    [("float32", 4, 1e-5), ("mixed_bfloat16", 16, 1e-2), ("mixed_bfloat16", 4, 1e-2), ("mixed_float16", 32, 2e-3)],
)
def test_normalisation_trains_like_that_of_keras(dtype: str, channels: int, tolerance: float) -> None:
    generator = np.random.default_rng(1)
    inputs = generator.normal(3, 2, (2, 5, 3, channels)).astype(np.float32)
    upstream = generator.normal(size=inputs.shape).astype(np.float32)
    expected = step(layers.BatchNormalization(momentum=0.7), inputs, upstream)
    found = step(Normalisation(momentum=0.7, dtype=dtype), inputs, upstream)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())
    # The variance is that of the population.
    np.testing.assert_allclose(found[-1], 0.7 + 0.3 * inputs.var(axis=(0, 1, 2)), rtol=tolerance)


def test_normalisation_of_a_single_pixel_has_no_variance() -> None:
    layer = Normalisation(momentum=0.5)
    layer(np.full((1, 1, 1, 2), 4.0, np.float32), training=True)
    np.testing.assert_allclose(layer.moving_variance, [0.5, 0.5])
    np.testing.assert_allclose(layer.moving_mean, [2, 2])


def test_frozen_and_inferring_normalisation_keeps_statistics() -> None:
    layer = Normalisation()
    inputs = np.random.default_rng(2).normal(size=(2, 3, 3, 2)).astype(np.float32)
    inferred = np.asarray(layer(inputs))
    layer.trainable = False
    np.testing.assert_array_equal(layer(inputs, training=True), inferred)
    np.testing.assert_array_equal(layer.moving_variance, [1, 1])
    np.testing.assert_allclose(inferred, inputs / np.sqrt(1 + layer.epsilon), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [3, 5])
def test_depthwise_gradients_are_those_of_tensorflow(side: int, stride: int, dtype: str) -> None:
    """Compare with float32, with small integers that all types represent exactly."""
    generator = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return generator.integers(-1, 2, shape).astype(np.float32)

    options: dict[str, Any] = {"strides": stride, "padding": "same", "depthwise_initializer": "zeros"}
    plain, fast = layers.DepthwiseConv2D(side, **options), DepthwiseConvolution(side, **options, dtype=dtype)
    for layer in (plain, fast):
        layer.build((None, None, None, 3))
    for height, width in ((8, 7), (9, 10)):
        inputs, upstream = draw(2, height, width, 3), draw(2, -(-height // stride), -(-width // stride), 3)
        weights = [draw(side, side, 3, 1), draw(3)]
        for layer in (plain, fast):
            layer.set_weights(weights)
        for one, other in zip(step(fast, inputs, upstream), step(plain, inputs, upstream), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
            assert np.abs(other).max() >= 2


@pytest.mark.parametrize("side", [4, 5])
def test_strided_pointwise_convolution_trains_like_a_product(side: int) -> None:
    generator = np.random.default_rng(4)
    layer = StridedPointwiseConvolution(3, 1, strides=2, padding="same")
    layer.build((None, None, None, 2))
    # The gradient of Keras's own layer fails when the size of the batch changes.
    for batch in (4, 1, 3):
        inputs = generator.normal(size=(batch, side, side, 2)).astype(np.float32)
        chosen = inputs[:, ::2, ::2]
        upstream = generator.normal(size=(*chosen.shape[:3], 3)).astype(np.float32)
        with tf.GradientTape() as tape:
            output = layer(tf.constant(inputs), training=True)
            loss = tf.reduce_sum(output * upstream)
        of_kernel, of_bias = tape.gradient(loss, [weight.value for weight in layer.trainable_variables])
        kernel, bias = (np.asarray(weight) for weight in layer.trainable_variables)
        np.testing.assert_allclose(output, chosen @ kernel[0, 0] + bias, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_kernel[0, 0], np.einsum("nhwc,nhwf->cf", chosen, upstream), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(of_bias, upstream.sum(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer(inputs), output, rtol=1e-5, atol=1e-6)
