"""Conversion between a Keras U-Net and an ONNX graph.

The graph has the layout (batch, bands, height, width). It is written node by node, because the runtime derives the halo
from it: a converter that traces TensorFlow writes an up-sampling of free size as forty nodes of shape arithmetic, which
hide the receptive field and cost time. The same model always gives the same bytes, names are those of the layers, and
TensorFlow is not needed. Every export compares the graph with the Keras model on real patches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from talud.engine.model_file import INPUT_NAME, OUTPUT_NAME, weights_digest
from talud.errors import ModelError, StudyError
from talud.networks import unet
from talud.networks.unet import Scaling

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
        StudyError: The model has a layer that cannot be converted.
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


def from_onnx(graph: onnx.ModelProto, origin: str, mixed_precision: unet.Precision = False) -> keras.Model:
    """Rebuild the Keras model from a graph of `to_onnx`.

    Args:
        graph: graph of a float32 model.
        origin: name of the model for error messages.
        mixed_precision: precision of the rebuilt model's arithmetic, as for `talud.networks.unet.build`.

    Raises:
        ModelError: The graph was not written by `to_onnx`.
    """
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.graph.initializer}
    depth = sum(re.fullmatch(r"up_\d+_scales", name) is not None for name in constants)
    refused = f"{origin}: is not a float32 U-Net of talud train, so it cannot be trained further"
    try:
        filters = constants["encoder_0_first_kernel"].shape[0]
        scaling = constants["mean"].ravel(), constants["deviation"].ravel()
        model = unet.build(filters, depth, *scaling, seed=0, mixed_precision=mixed_precision)
        for layer in (layer for layer in model.layers if isinstance(layer, layers.Conv2D)):
            kernel = constants[f"{layer.name}_kernel"].transpose(2, 3, 1, 0)
            layer.set_weights([kernel, constants[f"{layer.name}_bias"]])
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(refused) from error
    if weights_digest(to_onnx(model)) != weights_digest(graph):
        raise ModelError(refused)
    return model


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
    raise StudyError(f"the layer '{layer.name}' ({type(layer).__name__}) cannot be converted to ONNX by talud")


def _scaling(graph: _Graph, layer: Scaling, stack: str) -> str:
    mean, deviation = (np.reshape(values, (1, -1, 1, 1)) for values in layer.get_weights())
    shifted = graph.node("Sub", [stack, graph.constant("mean", mean)], "shifted")
    scaled = graph.node("Div", [shifted, graph.constant("deviation", deviation)], "scaled")
    invalid = graph.node("IsNaN", [stack], "invalid")
    neutral = graph.constant("neutral", np.zeros((), np.float32))
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
