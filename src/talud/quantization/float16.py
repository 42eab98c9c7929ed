"""A network whose weights and arithmetic are half precision, for GPUs that have it.

Input, output, the layers that scale the bands, and the sigmoid stay in float32: physical values may lie beyond what
half precision reaches (65,504), and a difference of two of them beyond what it resolves. ONNX Runtime's own
converter passes what lies between two such layers through half precision, so it is not used.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The half-precision form of a model of `talud train`, which is left as it is."""
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
                node.input[place] = _cast(nodes, halves, name, half)
        nodes.append(node)
        halves |= set(node.output) if half else set()
    copies = [*nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.checker.check_model(result, full_check=True)
    return result


def _halve_weights(graph: onnx.GraphProto) -> None:
    """Kernels and biases to half precision; a Resize takes its scales in float32 only."""
    weights = {name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]}
    for constant in graph.initializer:
        if constant.name in weights:
            halved = numpy_helper.to_array(constant).astype(np.float16)
            constant.CopyFrom(numpy_helper.from_array(halved, constant.name))


def _cast(nodes: list[onnx.NodeProto], halves: set[str], name: str, half: bool) -> str:
    """The name of a tensor in the other precision; the Cast is appended where there is none yet."""
    result = f"{name}_{'float16' if half else 'float32'}"
    if not any(result in node.output for node in nodes):
        to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        nodes.append(helper.make_node("Cast", [name], [result], name=result, to=to))
    if half:
        halves.add(result)
    return result
