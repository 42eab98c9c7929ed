"""Tidying of graphs that tf2onnx wrote into ones that the engine can tile.

The result has one node for each operation of a layer, in ONNX's axis order.

The steps, in order:

1. Operations on weights alone are computed, in double precision.
2. Transpositions are removed. A tensor in TensorFlow's axis order (batch, height, width, channels) is written in
   ONNX's, (batch, channels, height, width), and the operators and constants that use it are changed accordingly.
3. Biases and batch normalisations with fixed statistics become part of the convolution before them. The normalisation
   is equivalent to a kernel multiplied by scale / deviation and a bias that is the remaining offset.
4. Nodes are sorted and named by the layers of the model, and constants by the weights, so that equal weights give equal
   bytes. Batch, height and width are free.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from talud.engine.margins import node_attributes
from talud.engine.model_file import INPUT_NAME, OUTPUT_NAME
from talud.errors import StudyError
from talud.networks.tracing import OPSET, Trace, Weight
from talud.networks.unet import SCALING

IR_VERSION = 10  # newest version that every supported ONNX Runtime reads
_TO_ONNX, _TO_TENSORFLOW = (0, 3, 1, 2), (0, 2, 3, 1)
# Attributes with these values are left out, since they are ONNX's defaults.
_DEFAULTS: Mapping[str, Any] = {
    "strides": [1, 1], "dilations": [1, 1], "group": 1, "exclude_outside": 0, "ceil_mode": 0, "storage_order": 0,
    "auto_pad": b"NOTSET",
}  # fmt: skip
# Suffix of an operator that is not the last of its layer; by default its type.
_SUFFIXES = {"Conv": "linear"}
# Names of constant inputs after the first input.
_ROLES = {"Conv": ("kernel", "bias"), "Resize": ("roi", "scales"), "Clip": ("lowest", "highest")}


@dataclass(frozen=True)
class _Constant:
    """Constant of a graph.

    Attributes:
        values: array, in double precision if it is of real numbers.
        weight: first of the weights that it was computed from; None if from none.
    """

    values: NDArray[Any]
    weight: Weight | None = None


@dataclass(frozen=True)
class _Node:
    """Operator with one output, in ONNX's axis order.

    Attributes:
        operator: type of the operator.
        inputs: names of tensors and constants; empty for one that is left out.
        output: name of the output.
        attributes: attributes by name.
        layer: name of the layer in whose call it was written; None if unknown.
        position: index of that layer, or of the last one known before it, in the model.
    """

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]
    layer: str | None
    position: int


@dataclass(frozen=True)
class _Tensor:
    """Tensor that depends on the stack.

    Attributes:
        name: tensor in ONNX's axis order that has its values.
        channels_last: True if the original graph has it in TensorFlow's axis order.
    """

    name: str
    channels_last: bool


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
    rewriter = _Rewriter(trace)
    for node in trace.graph.graph.node:
        rewriter.add(node)
    nodes, output = rewriter.finished()
    nodes, output = _fold_into_convolutions(nodes, rewriter.constants, output)
    bands = trace.graph.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    return _written(_sorted(nodes), rewriter.constants, output, bands, name)


@dataclass
class _Rewriter:
    """Writer of a graph in ONNX's axis order, node by node."""

    trace: Trace
    constants: dict[str, _Constant] = field(default_factory=dict)
    nodes: list[_Node] = field(default_factory=list)
    tensors: dict[str, _Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.trace.graph.graph
        self.tensors[graph.input[0].name] = _Tensor(INPUT_NAME, channels_last=True)
        for constant in graph.initializer:
            self.constants[constant.name] = _Constant(_exact(numpy_helper.to_array(constant)))
        for name, weight in self.trace.weights.items():
            self.constants[name] = _Constant(weight.values.astype(np.float64), weight)
        inferred = shape_inference.infer_shapes(self.trace.graph).graph
        self._shapes = {
            value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
        }
        self._upsamplings = {name: list(layers) for name, layers in self.trace.upsamplings.items()}
        self._positions: dict[str, int] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Write a node, or compute its constant result."""
        if not any(name in self.tensors for name in node.input):
            self._compute(node)
            return
        if not onnx.defs.has(node.op_type, node.domain):
            raise self._refusal(node)
        inputs = [self.tensors[name] for name in node.input if name in self.tensors]
        if node.op_type in {"Transpose", "Reshape", "Identity"} or self._is_neutral(node):
            source = self.tensors[self._variable(node)]
            if node.op_type in {"Transpose", "Reshape"}:
                source = self._turned(node, source)
            self.tensors[node.output[0]] = source
            return
        layouts = {tensor.channels_last for tensor in inputs}
        if len(layouts) > 1:
            raise self._refusal(node)
        (channels_last,) = layouts
        names, output = [], node.output[0]
        for name in node.input:
            if name in self.tensors:
                names.append(self.tensors[name].name)
            elif channels_last and name and node.op_type != "Slice":
                names.append(self._turned_constant(name))
            else:
                names.append(name)
        layer, position = self._layer_of(node, names)
        attributes = node_attributes(node)
        if node.op_type == "Resize":
            names, attributes = self._repetition(node, names)
        if channels_last and "axis" in attributes:
            attributes["axis"] = _TO_ONNX.index(attributes["axis"] % 4)
        if channels_last and node.op_type == "Slice":
            names = self._turned_slice(node, names)
        self.nodes.append(_Node(node.op_type, tuple(names), output, attributes, layer, position))
        self.tensors[output] = _Tensor(output, channels_last)
        self._positions[output] = position

    def finished(self) -> tuple[list[_Node], str]:
        """Return the nodes, and the name of the output."""
        return self.nodes, self.tensors[self.trace.graph.graph.output[0].name].name

    def _compute(self, node: onnx.NodeProto) -> None:
        """Compute a node whose inputs are constants."""
        inputs = {name: self.constants[name] for name in node.input if name}
        feeds = {name: each.values for name, each in inputs.items()}
        values: NDArray[Any] = np.asarray(next(iter(ReferenceEvaluator(node).run(None, feeds))))
        weights = [each.weight for each in inputs.values() if each.weight]
        self.constants[node.output[0]] = _Constant(values, weights[0] if weights else None)

    def _is_neutral(self, node: onnx.NodeProto) -> bool:
        """Check if a node multiplies by the constant 1."""
        factors = [self.constants[name] for name in node.input if name in self.constants]
        if node.op_type != "Mul" or not factors:
            return False
        return all(not one.weight and np.all(one.values == 1) for one in factors)

    def _variable(self, node: onnx.NodeProto) -> str:
        """Return the first input of a node that depends on the stack."""
        return str(next(name for name in node.input if name in self.tensors))

    def _turned(self, node: onnx.NodeProto, source: _Tensor) -> _Tensor:
        """Return the tensor in the other axis order.

        A reshape that turns an image of one channel is a transposition, too.
        """
        before, after = self._shapes[self._variable(node)], self._shapes[node.output[0]]
        order = _TO_ONNX if source.channels_last else _TO_TENSORFLOW
        turns = len(before) == 4 and after == tuple(before[axis] for axis in order)
        if node.op_type == "Transpose":
            turns = tuple(node_attributes(node)["perm"]) == order
        else:
            turns = turns and before[3 if source.channels_last else 1] == 1
        if not turns:
            raise self._refusal(node)
        return _Tensor(source.name, not source.channels_last)

    def _turned_constant(self, name: str) -> str:
        """Return a constant of a pointwise operator in ONNX's axis order."""
        constant = self.constants[name]
        values = constant.values
        if values.ndim == 0:
            return name
        turned = f"{name}_turned"
        values = values.reshape((1,) * (4 - values.ndim) + values.shape).transpose(_TO_ONNX)
        self.constants[turned] = replace(constant, values=values)
        return turned

    def _turned_slice(self, node: onnx.NodeProto, names: list[str]) -> list[str]:
        """Return the inputs of a Slice in ONNX's axis order."""
        if len(node.input) < 4:
            raise self._refusal(node)
        axes = self.constants[node.input[3]].values
        turned = f"{node.input[3]}_turned"
        self.constants[turned] = _Constant(np.array([_TO_ONNX.index(axis % 4) for axis in axes.tolist()], axes.dtype))
        return [*names[:3], turned, *names[4:]]

    def _repetition(self, node: onnx.NodeProto, names: list[str]) -> tuple[list[str], dict[str, Any]]:
        """Return inputs and attributes of a Resize that repeats pixels.

        Nearest neighbours with an integer factor are repetitions in every coordinate mode of TensorFlow.
        """
        before, after = self._shapes[node.input[0]], self._shapes[node.output[0]]
        repeats = all(b and a % b == 0 for a, b in zip(after[2:], before[2:], strict=True))
        if node_attributes(node)["mode"] != b"nearest" or after[:2] != before[:2] or not repeats:
            raise self._refusal(node)
        scales = f"{node.output[0]}_scales"
        factors = [a // b for a, b in zip(after, before, strict=True)]
        self.constants[scales] = _Constant(np.array(factors, np.float64))
        form = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return [names[0], "", scales], form

    def _layer_of(self, node: onnx.NodeProto, names: list[str]) -> tuple[str | None, int]:
        """Return the layer of a node, and its position in the model.

        tf2onnx does not name up-samplings, which are found by their input.
        """
        before = max((self._positions[name] for name in names if name in self._positions), default=-1)
        named = self.trace.layer_of(node.name)
        if named is None and node.op_type == "Resize" and before >= 0:
            enlarging = self._upsamplings.get(self.trace.layers[before], [])
            named = enlarging.pop(0) if enlarging else None
        return named, self.trace.layers.index(named) if named else before

    def _refusal(self, node: onnx.NodeProto) -> StudyError:
        layer = self.trace.layer_of(node.name)
        within = f" of the layer '{layer}'" if layer else ""
        return StudyError(
            f"the operator {node.op_type}{within} cannot be exported; use convolutions, poolings, nearest up-sampling, "
            "pointwise operators and concatenations of bands"
        )


def _exact(values: NDArray[Any]) -> NDArray[Any]:
    """Return real numbers in double precision.

    A number that was written in decimal, such as the 0.001 of a normalisation, becomes exactly that number again.
    """
    if values.dtype != np.float32:
        return values
    return np.array([float(str(value)) for value in values.ravel()], np.float64).reshape(values.shape)


def _fold_into_convolutions(
    nodes: list[_Node], constants: dict[str, _Constant], output: str
) -> tuple[list[_Node], str]:
    """Fold factors and offsets of weights into the convolutions before them.

    Return the remaining nodes, and the name of the output.
    """
    uses = Counter(name for node in nodes for name in node.inputs) + Counter([output])
    renamed: dict[str, str] = {}
    places: dict[str, int] = {}
    result: list[_Node] = []
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


def _folded(convolution: _Node, node: _Node, constants: dict[str, _Constant]) -> _Node | None:
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


def _sorted(nodes: list[_Node]) -> list[_Node]:
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


def _written(
    nodes: list[_Node], constants: Mapping[str, _Constant], output: str, bands: int, name: str
) -> onnx.ModelProto:
    """Write nodes and constants under their final names."""
    tensors = _tensor_names(nodes, output)
    written: dict[str, onnx.TensorProto] = {}
    body = []
    for node in nodes:
        inputs = []
        for index, original in enumerate(node.inputs):
            if original in constants:
                constant = _stored(constants[original].values, node.operator)
                wanted = _constant_name(node, index, constants[original], tensors[node.output])
                # A layer that is called twice has the same constant, or two after different normalisations.
                names = (name for name in _numbered(wanted) if name not in tensors.values())
                constant.name = next(
                    name for name in names if name not in written or written[name].raw_data == constant.raw_data
                )
                written[constant.name] = constant
                inputs.append(constant.name)
            else:
                inputs.append(tensors[original] if original else "")
        final = tensors[node.output]
        body.append(helper.make_node(node.operator, inputs, [final], name=final, **_attributes(node, constants)))
    graph = helper.make_graph(
        body,
        name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["batch", bands, "height", "width"])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        list(written.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="talud")
    onnx.checker.check_model(model, full_check=True)
    return model


def _stored(values: NDArray[Any], operator: str) -> onnx.TensorProto:
    """Return a constant as it is stored, without a name.

    The bounds of a Clip must be scalars. Others have an axis, as in files of earlier versions.
    """
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return numpy_helper.from_array(
        np.asarray(values, order="C") if operator == "Clip" else np.ascontiguousarray(values)
    )


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, then the name with the numbers from 2 on."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def _tensor_names(nodes: list[_Node], output: str) -> dict[str, str]:
    """Return the final name of the input and of each node's output.

    The last node of a layer has the layer's name; the others have the name of their operator, too.
    """
    last = {node.layer: node.output for node in nodes}
    names = {INPUT_NAME: INPUT_NAME, output: OUTPUT_NAME}
    for node in nodes:
        if node.output == output:
            continue
        name = f"{node.layer or 'graph'}_{_SUFFIXES.get(node.operator, node.operator.lower())}"
        wanted = node.layer if node.layer and last[node.layer] == node.output else name
        names[node.output] = next(free for free in _numbered(wanted) if free not in names.values())
    return names


def _constant_name(node: _Node, index: int, constant: _Constant, tensor: str) -> str:
    """Return the final name of a constant input.

    The constants that scale the bands are named `mean` and `deviation`.
    """
    if constant.weight and node.layer == SCALING:
        return constant.weight.name
    roles = _ROLES.get(node.operator, ())
    role = roles[index - 1] if 0 < index <= len(roles) else f"constant_{index}"
    return f"{node.layer or tensor}_{role}" if node.operator == "Conv" else f"{tensor}_{role}"


def _attributes(node: _Node, constants: Mapping[str, _Constant]) -> dict[str, Any]:
    """Return a node's attributes that differ from ONNX's defaults.

    A convolution always states its kernel and pads, which the engine reads.
    """
    stated = {name: value for name, value in node.attributes.items() if _DEFAULTS.get(name) != value}
    if node.operator == "Conv":
        stated["kernel_shape"] = list(constants[node.inputs[1]].values.shape[2:])
        stated.setdefault("pads", [0, 0, 0, 0])
    elif not any(stated.get("pads", [0])):
        stated.pop("pads", None)
    return stated
