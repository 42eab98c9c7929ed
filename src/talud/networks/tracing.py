"""Conversion of Keras models with tf2onnx.

The engine cannot tile the graph that tf2onnx writes: it keeps TensorFlow's axis order, with a transposition around each
convolution, and a fixed size. `talud.networks.tidying` turns it into one that the engine can tile.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers
from numpy.typing import NDArray

from talud.engine.model_file import INPUT_NAME
from talud.errors import StudyError
from talud.networks import blocks  # noqa: F401  its layers are registered for loading
from talud.text import first_line

OPSET = 18
_LAYER = re.compile(r"layer(\d+)end")


@dataclass(frozen=True)
class Weight:
    """Weight of a layer.

    Attributes:
        layer: name of the layer.
        name: name of the weight within the layer, such as "kernel".
        values: float32 array in Keras's axis order.
    """

    layer: str
    name: str
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Trace:
    """Graph of a model as tf2onnx writes it, with the origin of its parts.

    Attributes:
        graph: graph whose first input is the stack (1, side, side, bands), and whose other inputs are the weights.
        weights: weights by the name of their input.
        layers: names of the model's layers, in its order.
        upsamplings: names of up-sampling layers by the name of the layer that they enlarge.
    """

    graph: onnx.ModelProto
    weights: dict[str, Weight]
    layers: tuple[str, ...]
    upsamplings: dict[str, tuple[str, ...]]

    def layer_of(self, node: str) -> str | None:
        """Return the layer in whose call a node was written; None if unknown."""
        return _layer_of(node, self.layers)


def _layer_of(path: str, layers: Sequence[str]) -> str | None:
    """Return the layer whose number is the last in a path."""
    numbers = _LAYER.findall(path)
    return layers[int(numbers[-1])] if numbers else None


def trace(model: keras.Model, side: int) -> Trace:
    """Convert a functional model at a fixed size.

    The weights are inputs of the graph, so that no optimiser changes them, and each keeps its name.

    Args:
        model: model with one input (batch, height, width, bands).
        side: height and width of the input in pixels.

    Raises:
        StudyError: The model has an operation that tf2onnx cannot convert, or is not a functional model.
    """
    try:
        plain, names = _convertible(model)
    except (ValueError, TypeError, AttributeError) as error:
        raise StudyError(f"the network '{model.name}' is not a functional Keras model: {first_line(error)}") from error
    weights = {}
    for index, variable in enumerate(_variables(plain)):
        layer = _layer_of(variable.path, names)
        weights[f"weight{index}"] = Weight(layer or "", variable.name, variable.numpy().astype(np.float32))
    if keras.backend.backend() == "tensorflow":
        graph = _convert(plain, side)
    else:
        graph = _convert_in_tensorflow_process(plain, side)
    enlarged: dict[str, tuple[str, ...]] = {}
    for layer in model.layers:
        if isinstance(layer, layers.UpSampling2D):
            source = layer.input._keras_history.operation.name
            enlarged[source] = (*enlarged.get(source, ()), layer.name)
    return Trace(graph, weights, names, enlarged)


def _convertible(model: keras.Model) -> tuple[keras.Model, tuple[str, ...]]:
    """Return a float32 copy that tf2onnx can convert, and the layers' names.

    The copy's layers are numbered, because TensorFlow makes names unique by suffixes that may belong to a name.
    """
    names: list[str] = []

    def numbered(layer: Any) -> Any:
        config = {**layer.get_config(), "name": f"layer{len(names)}end"}
        if isinstance(layer, keras.Layer):  # other operations, such as a slice of bands, have no type
            config["dtype"] = "float32"
        names.append(layer.name)
        kind = type(layer)
        if kind is layers.UpSampling2D and layer.interpolation == "nearest":
            kind = NearestUpSampling
        elif kind is layers.Conv2D and layer.groups > 1:
            kind = GroupedConvolution
        return kind.from_config(config)

    copy = keras.models.clone_model(model, clone_function=numbered, recursive=True)
    copy.set_weights(model.get_weights())
    return copy, tuple(names)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """Return the weights in the order in which the graph takes them."""
    return [*model.trainable_variables, *model.non_trainable_variables]


def _convert(model: keras.Model, side: int) -> onnx.ModelProto:
    """Convert a model of numbered layers; the backend is TensorFlow."""
    import tensorflow as tf
    import tf2onnx

    trainable = len(model.trainable_variables)

    def run(stack: Any, *weights: Any) -> Any:
        return model.stateless_call(list(weights[:trainable]), list(weights[trainable:]), stack, training=False)[0]

    signature = [tf.TensorSpec((1, side, side, model.inputs[0].shape[-1]), tf.float32, name=INPUT_NAME)]
    signature += [tf.TensorSpec(each.shape, tf.float32, name=f"weight{i}") for i, each in enumerate(_variables(model))]
    logger = logging.getLogger("tf2onnx")
    # An operation that it cannot convert is only logged there, and found by `talud.networks.tidying`.
    logger.setLevel(logging.CRITICAL)
    with tf.device("/cpu:0"):
        try:
            graph: onnx.ModelProto
            graph, _ = tf2onnx.convert.from_function(tf.function(run), input_signature=signature, opset=OPSET)
        except Exception as error:  # tf2onnx and TensorFlow raise many kinds
            raise StudyError(f"tf2onnx cannot convert the network '{model.name}': {first_line(error)}") from error
    return graph


def _convert_in_tensorflow_process(model: keras.Model, side: int) -> onnx.ModelProto:
    """Convert a model of numbered layers in a process whose backend is TensorFlow."""
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        saved, written = Path(folder) / "model.keras", Path(folder) / "model.onnx"
        model.save(saved)
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        command = [sys.executable, "-m", __name__, str(saved), str(side), str(written)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise StudyError(f"the network cannot be converted by TensorFlow: {reason}")
        return onnx.load(written)


@keras.saving.register_keras_serializable("talud")
class NearestUpSampling(layers.UpSampling2D):  # type: ignore[misc]
    """Up-sampling that tf2onnx converts to one Resize.

    Keras repeats rows and columns, which tf2onnx writes as eight operators of shape arithmetic. The values are equal.
    """

    def call(self, inputs: Any) -> Any:
        """Return the enlarged tensor (batch, height, width, channels)."""
        if keras.backend.backend() != "tensorflow":
            return super().call(inputs)
        import tensorflow as tf

        size = [inputs.shape[1] * self.size[0], inputs.shape[2] * self.size[1]]
        return tf.raw_ops.ResizeNearestNeighbor(images=inputs, size=size)


@keras.saving.register_keras_serializable("talud")
class GroupedConvolution(layers.Conv2D):  # type: ignore[misc]
    """Grouped convolution that tf2onnx can convert.

    On a CPU, Keras compiles a grouped convolution with XLA, which tf2onnx cannot read.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return the convolution of a tensor (batch, height, width, channels)."""
        if keras.backend.backend() != "tensorflow":
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate)


def _main(saved: str, side: str, written: str) -> None:
    onnx.save(_convert(keras.models.load_model(saved, compile=False), int(side)), written)


if __name__ == "__main__":
    _main(*sys.argv[1:])
