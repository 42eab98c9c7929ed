"""Layers of Keras with a faster or safer training step on processors.

With TensorFlow, they use its fused or float32 operators where these are faster, and avoid one that fails. Weights,
names and inference are those of Keras's layers, and so are the values of a training step but for rounding. With other
backends they are Keras's.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

_HALF_TYPES = ("float16", "bfloat16")
_VECTOR = 16  # oneDNN's fused normalisation in 16 bits is fast only for multiples of this number of channels
_LARGEST_FAST_SIDE = 3  # side up to which oneDNN's gradients of depthwise kernels are as fast in 16 bits as in 32


@keras.saving.register_keras_serializable("talud")
class Normalisation(layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation of channels with TensorFlow's fused operator."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise a tensor (batch, height, width, channels)."""
        kind = keras.backend.standardize_dtype(inputs.dtype)
        fast = kind == "float32" or (kind in _HALF_TYPES and inputs.shape[-1] % _VECTOR == 0)
        if not (training and self.trainable and mask is None and fast and keras.backend.backend() == "tensorflow"):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        result = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
        )
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        # The operator divides by the number of pixels less one (Bessel's correction), Keras by the number.
        variance = result.batch_variance * (tf.maximum(count - 1, 1) / count)
        for statistic, value in ((self.moving_mean, result.batch_mean), (self.moving_variance, variance)):
            statistic.assign(statistic * self.momentum + value * (1 - self.momentum))
        return result.y


@keras.saving.register_keras_serializable("talud")
class StridedPointwiseConvolution(layers.Conv2D):  # type: ignore[misc]
    """Convolution of single pixels with a stride.

    The gradient of its kernel by TensorFlow 2.21 with oneDNN writes outside its memory if the size of the batch changes
    and the channels are not multiples of 16, as in the last batch of an epoch. In training, the pixels are therefore
    chosen first, and the convolution has no stride.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Convolve a tensor (batch, height, width, channels)."""
        if not training or keras.backend.backend() != "tensorflow":
            return super().call(inputs)
        rows, columns = self.strides
        result = keras.ops.conv(inputs[:, ::rows, ::columns], self.kernel)
        return result + self.bias if self.use_bias else result


@keras.saving.register_keras_serializable("talud")
class DepthwiseConvolution(layers.DepthwiseConv2D):  # type: ignore[misc]
    """Depthwise convolution without activation whose slow gradients are in 32 bits.

    In 16 bits, TensorFlow's gradients of inputs with a stride and of larger kernels take several times as long.
    """

    def call(self, inputs: Any) -> Any:
        """Convolve a tensor (batch, height, width, channels)."""
        if keras.backend.backend() != "tensorflow" or keras.backend.standardize_dtype(inputs.dtype) not in _HALF_TYPES:
            return super().call(inputs)
        result = _convolve_depthwise(inputs, self.kernel, self.strides, self.padding.upper())
        return result + self.bias if self.use_bias else result


def _convolve_depthwise(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> Any:
    """Return TensorFlow's depthwise convolution, with its gradients partly in 32 bits."""
    import tensorflow as tf

    options = {"strides": [1, *strides, 1], "padding": padding}

    def convolve(inputs: Any, kernel: Any) -> Any:
        def gradients(upstream: Any) -> tuple[Any, Any]:
            def widened(tensor: Any, wide: bool) -> Any:
                return tf.cast(tensor, tf.float32) if wide else tensor

            wide = max(strides) > 1
            of_inputs = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(inputs),
                filter=widened(kernel, wide),
                out_backprop=widened(upstream, wide),
                **options,
            )
            wide = max(kernel.shape[:2]) > _LARGEST_FAST_SIDE
            of_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=widened(inputs, wide),
                filter_sizes=tf.shape(kernel),
                out_backprop=widened(upstream, wide),
                **options,
            )
            return tf.cast(of_inputs, inputs.dtype), tf.cast(of_kernel, kernel.dtype)

        return tf.nn.depthwise_conv2d(inputs, kernel, **options), gradients

    # A custom gradient takes tensors, not variables.
    return tf.custom_gradient(convolve)(inputs, tf.identity(keras.ops.cast(kernel, inputs.dtype)))
