"""Conversion of networks to int8 (for CPUs) and float16 (for GPUs).

In the int8 form, weights are signed and symmetric, with a scale for each output channel. Activations are unsigned, with
a scale and a zero point for each tensor from its lowest and highest value over calibration patches. These layers remain
in float32:

- the layers that scale the bands and replace NaN: a quantised tensor has one scale, but the bands differ by orders of
  magnitude;
- the first convolution, for the same reason. In float32 it takes the same time (its few channels do not fill an integer
  vector), and the F1 in transfer fell by 0.0002 instead of 0.003;
- the sigmoid, because quantising its output would add a second rounding error.

In the float16 form, the input, the output, the layers that scale the bands and the sigmoid remain in float32, because
physical values can exceed the range (65,504) and the resolution of float16. ONNX Runtime's own converter is not used,
since it converts the tensors between two such layers to float16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

QUANTIZED_OPERATORS = ["Conv", "Relu", "MaxPool", "Resize", "Concat"]
_BATCH_SIZE = 16


def quantize_to_int8(model: onnx.ModelProto, patches: NDArray[np.float32]) -> onnx.ModelProto:
    """Return the 8-bit form of a model, reproducible to the byte.

    Args:
        model: float32 model of `talud train`, which is not changed.
        patches: calibration patches (patches, bands, height, width) in physical units, NaN where invalid.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    # Tell ONNX Runtime that the graph needs no preprocessing: it has no shape arithmetic, and shapes are inferred.
    helper.set_model_props(source, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            source,
            path,
            _Batches(model.graph.input[0].name, patches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            nodes_to_exclude=_float32_nodes(model.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        result = onnx.load(path)
    del result.metadata_props[:]
    return result


def _float32_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that remain in float32.

    These are the nodes up to the first convolution and its activation.
    """
    names: list[str] = []
    for node in graph.node:
        names.append(node.name)
        if node.op_type == "Conv":
            return names + [after.name for after in graph.node if node.output[0] in after.input]
    return names


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Batches of calibration patches for ONNX Runtime."""

    def __init__(self, name: str, patches: NDArray[np.float32]) -> None:
        self._batches: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: patches[start : start + _BATCH_SIZE]} for start in range(0, len(patches), _BATCH_SIZE)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, None at the end."""
        return next(self._batches, None)


def convert_to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float16 form of a model of `talud train`."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    _halve_weights(graph)
    halves: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    body = False
    for node in graph.node:
        body = body or node.op_type == "Conv"
        half = body and node.op_type != "Sigmoid"
        for place, name in enumerate(node.input):
            computed = any(name in before.output for before in nodes)
            if computed and (name in halves) != half:
                node.input[place] = _cast_tensor(nodes, halves, name, half)
        nodes.append(node)
        halves |= set(node.output) if half else set()
    copies = [*nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.checker.check_model(result, full_check=True)
    return result


def _halve_weights(graph: onnx.GraphProto) -> None:
    """Convert the constants of all operators from the first convolution on to float16.

    The scales of a Resize remain, since ONNX allows only float32 there.
    """
    first = next(place for place, node in enumerate(graph.node) if node.op_type == "Conv")
    used = {name for node in graph.node[first:] if node.op_type != "Resize" for name in node.input}
    for constant in graph.initializer:
        if constant.name in used and constant.data_type == TensorProto.FLOAT:
            halved = numpy_helper.to_array(constant).astype(np.float16)
            constant.CopyFrom(numpy_helper.from_array(halved, constant.name))


def _cast_tensor(nodes: list[onnx.NodeProto], halves: set[str], name: str, half: bool) -> str:
    """Return a tensor's name in the other precision; add a Cast if missing."""
    result = f"{name}_{'float16' if half else 'float32'}"
    if not any(result in node.output for node in nodes):
        to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        nodes.append(helper.make_node("Cast", [name], [result], name=result, to=to))
    if half:
        halves.add(result)
    return result
