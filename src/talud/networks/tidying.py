"""Tidying of graphs that tf2onnx wrote into ones that the engine can tile.

The result has one node for each operation of a layer, in ONNX's axis order.

The steps, in order:

1. Operations on weights alone are computed, in double precision.
2. Transpositions are removed. A tensor in TensorFlow's axis order (batch, height, width, channels) is written in
   ONNX's, (batch, channels, height, width), and the operators and constants that use it are changed accordingly.
3. Biases and batch normalisations with fixed statistics become part of the convolution before them. The normalisation
   is equivalent to a kernel multiplied by scale / deviation and a bias that is the remaining offset.
4. A layer of zeros around a tensor without negative values becomes the padding of the pooling of maxima after it.
5. Nodes are sorted and named by the layers of the model, and constants by the weights, so that equal weights give equal
   bytes. Batch, height and width are free.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx

from talud.networks.axis_order import AxisOrderRewriter, Constant, Node
from talud.networks.naming import write_graph
from talud.networks.tracing import Trace


def tidy(trace: Trace, name: str) -> onnx.ModelProto:
    """Return the graph of a trace in the form that the engine tiles.

    Args:
        trace: graph of a model at a fixed size, with its weights.
        name: name of the graph.

    Returns:
        A graph from `stack`, float32 (batch, bands, height, width), to `probability`, float32
        (batch, 1, height, width). Batch, height and width are free.

    Raises:
        StudyError: An operator cannot be written in ONNX's axis order.
    """
    rewriter = AxisOrderRewriter(trace)
    for node in trace.graph.graph.node:
        rewriter.add(node)
    nodes, output = rewriter.finished()
    nodes, output = _fold_into_convolutions(nodes, rewriter.constants, output)
    nodes = _fold_into_poolings(nodes, rewriter.constants)
    bands = trace.graph.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    return write_graph(_sorted(nodes), rewriter.constants, output, bands, name)


def _fold_into_convolutions(nodes: list[Node], constants: dict[str, Constant], output: str) -> tuple[list[Node], str]:
    """Fold factors and offsets of weights into the convolutions before them.

    Return the remaining nodes, and the name of the output.
    """
    uses = Counter(name for node in nodes for name in node.inputs) + Counter([output])
    renamed: dict[str, str] = {}
    places: dict[str, int] = {}
    result: list[Node] = []
    for original in nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        place = next((places[name] for name in node.inputs if name in places and uses[name] == 1), None)
        folded = None if place is None else _folded(result[place], node, constants)
        if place is not None and folded:
            result[place] = folded
            renamed[node.output] = folded.output
            uses[folded.output] = uses[node.output]
            continue
        if node.operator == "Conv":
            places[node.output] = len(result)
        result.append(node)
    return result, renamed.get(output, output)


def _folded(convolution: Node, node: Node, constants: dict[str, Constant]) -> Node | None:
    """Return a convolution followed by a Mul or Add; None if not possible."""
    names = [name for name in node.inputs if name in constants]
    if node.operator not in {"Mul", "Add"} or len(names) != 1 or not constants[names[0]].weight:
        return None
    kernel = constants[convolution.inputs[1]]
    channels = len(kernel.values)
    operand = constants[names[0]]
    if operand.values.size not in (1, channels) or operand.values.shape not in {(), (1, operand.values.size, 1, 1)}:
        return None
    values = np.broadcast_to(operand.values.ravel(), channels)
    bias = constants[convolution.inputs[2]] if len(convolution.inputs) > 2 else None
    offsets = bias.values if bias else np.zeros(channels)
    kernel_name, bias_name = f"{node.output}_kernel", f"{node.output}_bias"
    if node.operator == "Mul":
        constants[kernel_name] = replace(kernel, values=kernel.values * values.reshape(-1, 1, 1, 1))
        inputs = [convolution.inputs[0], kernel_name]
        if bias:
            constants[bias_name] = replace(bias, values=offsets * values)
            inputs.append(bias_name)
    else:
        constants[bias_name] = replace(bias or operand, values=offsets + values)
        inputs = [*convolution.inputs[:2], bias_name]
    return replace(convolution, inputs=tuple(inputs))


def _fold_into_poolings(nodes: list[Node], constants: dict[str, Constant]) -> list[Node]:
    """Fold zeros around a tensor into the pooling of maxima after it.

    ONNX pads a pooling with the smallest number, which gives the same maximum where no value is negative.
    """
    makers, uses = {node.output: node for node in nodes}, Counter(name for node in nodes for name in node.inputs)
    result: dict[str, Node] = {}
    for node in nodes:
        result[node.output], pad = node, makers.get(node.inputs[0])
        if node.operator == "MaxPool" and pad and _is_foldable(pad, makers, constants) and uses[pad.output] == 1:
            pads = constants[pad.inputs[1]].values.reshape(2, 4)[:, 2:].ravel().tolist()
            del result[pad.output]
            result[node.output] = replace(node, inputs=pad.inputs[:1], attributes=node.attributes | {"pads": pads})
    return list(result.values())


def _is_foldable(pad: Node, makers: dict[str, Node], constants: dict[str, Constant]) -> bool:
    """Check if a node adds zeros around a tensor without negative values."""
    maker = makers.get(pad.inputs[0])
    if pad.operator != "Pad" or not maker or pad.attributes.get("mode", b"constant") != b"constant":
        return False
    filled = constants[pad.inputs[2]].values if len(pad.inputs) > 2 else 0
    along_bands = constants[pad.inputs[1]].values.reshape(2, 4)[:, :2]
    return maker.operator in {"Relu", "Sigmoid"} and not np.any(filled) and not along_bands.any()


def _sorted(nodes: list[Node]) -> list[Node]:
    """Sort nodes by the layers of the model, and each after its inputs."""
    makers = {node.output: number for number, node in enumerate(nodes)}
    users: dict[int, list[int]] = {}
    missing = []
    for number, node in enumerate(nodes):
        before = {makers[name] for name in node.inputs if name in makers}
        missing.append(len(before))
        for maker in before:
            users.setdefault(maker, []).append(number)
    ready = [(node.position, number) for number, node in enumerate(nodes) if not missing[number]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, done = heapq.heappop(ready)
        order.append(nodes[done])
        for number in users.get(done, ()):
            missing[number] -= 1
            if not missing[number]:
                heapq.heappush(ready, (nodes[number].position, number))
    return order
