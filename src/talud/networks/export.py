"""Export of Keras models to ONNX graphs that the engine can tile."""

from __future__ import annotations

import keras
import numpy as np
import onnx
from onnx import numpy_helper

from talud.engine.margins import receptive_field
from talud.errors import ModelError, StudyError
from talud.networks.locality import check_local
from talud.networks.tidying import tidy
from talud.networks.tracing import trace

# Side at which a model is converted. It must be a multiple of the alignment, because the padding of a strided
# convolution depends on the side.
_SIDE_PIXELS = 3 * 512


def to_onnx(model: keras.Model) -> onnx.ModelProto:
    """Convert a functional Keras model to ONNX.

    The same weights always give the same bytes.

    Args:
        model: model from a stack (batch, height, width, bands) to a probability (batch, height, width, 1).

    Returns:
        A float32 graph from `stack` (batch, bands, height, width) to `probability` (batch, 1, height, width). Batch,
        height and width are free.

    Raises:
        StudyError: The model has an operation that cannot be converted, or that cannot be computed in tiles.
    """
    try:
        check_local(model)
        graph = tidy(trace(model, _SIDE_PIXELS), model.name)
        alignment = receptive_field(graph).alignment
    except ModelError as error:
        raise StudyError(f"the network '{model.name}' cannot be exported: {error}") from error
    if _SIDE_PIXELS % alignment:
        raise StudyError(
            f"the network '{model.name}' has an alignment of {alignment} pixels, which is not a divisor of "
            f"{_SIDE_PIXELS}; change the strides of its layers"
        )
    return graph


def with_last_layer(graph: onnx.ModelProto, model: keras.Model) -> onnx.ModelProto:
    """Return a copy of an exported graph with the present weights of the last layer.

    A conversion takes a second or more, and the calibration changes only this layer.

    Args:
        graph: graph of `to_onnx`.
        model: model of the graph, whose last layer is a convolution.
    """
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    layer = model.layers[-1]
    kernel, bias = layer.get_weights()
    weights = {f"{layer.name}_kernel": kernel.transpose(3, 2, 0, 1), f"{layer.name}_bias": bias}
    for constant in result.graph.initializer:
        if constant.name in weights:
            values = np.ascontiguousarray(weights[constant.name], np.float32)
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    return result
