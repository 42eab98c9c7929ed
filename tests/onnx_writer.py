"""Oracle of the export: U-Nets written as ONNX node by node, without tf2onnx.

It is independent of TensorFlow, and takes milliseconds, so that most tests make their models with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from talud.engine.model_file import INPUT_NAME, OUTPUT_NAME
from talud.networks import unet
from talud.networks.unet import NORMALISATION_SUFFIX, Scaling

OPSET = 18
IR_VERSION = 10  # newest version that every supported ONNX Runtime reads
_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid"}


@dataclass
class _Graph:
    """Nodes and constants written so far."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: NDArray[np.float32]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def to_onnx(model: keras.Model) -> onnx.ModelProto:
    """Convert a model of `talud.networks.unet` to ONNX.

    The input is `stack`, float32 (batch, bands, height, width). The output is `probability`, float32
    (batch, 1, height, width). Batch, height and width are free.

    Raises:
        TypeError: The model has a layer that is not one of the U-Net.
    """
    graph = _Graph()
    tensors = {id(model.inputs[0]): INPUT_NAME}
    for layer in model.layers[1:]:
        sources = layer.input if isinstance(layer.input, list) else [layer.input]
        tensors[id(layer.output)] = _write(graph, layer, [tensors[id(source)] for source in sources])
    bands = model.inputs[0].shape[-1]
    body = helper.make_graph(
        graph.nodes,
        model.name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["batch", bands, "height", "width"])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        graph.constants,
    )
    opset = [helper.make_opsetid("", OPSET)]
    result = helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION, producer_name="talud")
    onnx.checker.check_model(result, full_check=True)
    return result


def _write(graph: _Graph, layer: keras.Layer, inputs: list[str]) -> str:
    """Append a layer's nodes; return its output's name."""
    match layer:
        case Scaling():
            return _scaling(graph, layer, inputs[0])
        case layers.Conv2D():
            return _convolution(graph, layer, inputs[0])
        case layers.MaxPooling2D():
            side = list(layer.pool_size)
            return graph.node("MaxPool", inputs, layer.name, kernel_shape=side, strides=list(layer.strides))
        case layers.UpSampling2D():
            return _up_sampling(graph, layer, inputs[0])
        case layers.Concatenate():
            return graph.node("Concat", inputs, layer.name, axis=1)
    raise TypeError(f"the layer '{layer.name}' ({type(layer).__name__}) is not one of the U-Net")


def _scaling(graph: _Graph, layer: Scaling, stack: str) -> str:
    mean, deviation = (np.reshape(values, (1, -1, 1, 1)) for values in layer.get_weights())
    shifted = graph.node("Sub", [stack, graph.constant("mean", mean)], "scaling_sub")
    scaled = graph.node("Div", [shifted, graph.constant("deviation", deviation)], "scaling_div")
    invalid = graph.node("IsNaN", [stack], "scaling_isnan")
    neutral = graph.constant("scaling_constant_1", np.zeros((), np.float32))
    return graph.node("Where", [invalid, neutral, scaled], layer.name)


def _convolution(graph: _Graph, layer: layers.Conv2D, x: str) -> str:
    kernel, bias = layer.get_weights()  # kernel (height, width, in, out)
    weights = graph.constant(f"{layer.name}_kernel", kernel.transpose(3, 2, 0, 1))
    offset = graph.constant(f"{layer.name}_bias", bias)
    margin = [(side - 1) // 2 for side in layer.kernel_size]
    form = {"kernel_shape": list(layer.kernel_size), "pads": margin * 2}
    linear = graph.node("Conv", [x, weights, offset], f"{layer.name}_linear", **form)
    return graph.node(_ACTIVATIONS[layer.activation.__name__], [linear], layer.name)


def _up_sampling(graph: _Graph, layer: layers.UpSampling2D, x: str) -> str:
    scales = graph.constant(f"{layer.name}_scales", np.array([1, 1, *layer.size], np.float32))
    repeat = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.node("Resize", [x, "", scales], layer.name, **repeat)


def fold_batch_normalisation(model: keras.Model) -> keras.Model:
    """Return an equivalent float32 U-Net without batch normalisation.

    A convolution followed by a normalisation with fixed statistics is equivalent to one convolution, whose kernel is
    multiplied by scale / deviation and whose bias is the remaining offset.

    Args:
        model: trained model of `talud.networks.unet`.
    """
    layer = {layer.name: layer for layer in model.layers}
    depth = sum(name.startswith("pool_") for name in layer)
    filters = layer["encoder_0_first"].filters
    mean, deviation = layer["scaling"].get_weights()
    plain = unet.build(filters, depth, mean, deviation, seed=0)
    load_folded(plain, model)
    return plain


def load_folded(plain: keras.Model, model: keras.Model) -> None:
    """Load the weights of a model with batch normalisation into one without.

    Args:
        plain: model with the layers of the other one except its normalisations, and with biases; changed in place.
        model: trained model in which the normalisation of a convolution has its name and `NORMALISATION_SUFFIX`.
    """
    layer = {layer.name: layer for layer in model.layers}
    for target in plain.layers:
        weights = layer[target.name].get_weights()
        if f"{target.name}{NORMALISATION_SUFFIX}" in layer:
            weights = _fold(weights[0], layer[f"{target.name}{NORMALISATION_SUFFIX}"])
        target.set_weights(weights)


def _fold(kernel: NDArray[np.float32], normalisation: layers.BatchNormalization) -> list[NDArray[np.float32]]:
    """Fold a normalisation into its convolution's kernel and bias.

    The last axes of a kernel have the output channels: one of a convolution's, two of a depthwise convolution's.
    """
    scale, offset, mean, variance = (weight.astype(np.float64) for weight in normalisation.get_weights())
    factor = scale / np.sqrt(variance + normalisation.epsilon)
    channels = kernel.shape[-1:] if kernel.shape[-1] == len(factor) else kernel.shape[-2:]
    return [(kernel * factor.reshape(channels)).astype(np.float32), (offset - mean * factor).astype(np.float32)]
