"""Rewriting of TensorFlow's axis order into ONNX's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from talud.engine.margins import node_attributes
from talud.engine.model_file import INPUT_NAME
from talud.errors import StudyError
from talud.networks.tracing import Trace, Weight

_TO_ONNX, _TO_TENSORFLOW = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class Constant:
    """Constant of a graph.

    Attributes:
        values: array, in double precision if it is of real numbers.
        weight: first of the weights that it was computed from; None if from none.
    """

    values: NDArray[Any]
    weight: Weight | None = None


@dataclass(frozen=True)
class Node:
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
class Tensor:
    """Tensor that depends on the stack.

    Attributes:
        name: tensor in ONNX's axis order that has its values.
        channels_last: True if the original graph has it in TensorFlow's axis order.
    """

    name: str
    channels_last: bool


@dataclass
class AxisOrderRewriter:
    """Writer of a graph in ONNX's axis order, node by node."""

    trace: Trace
    constants: dict[str, Constant] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.trace.graph.graph
        self.tensors[graph.input[0].name] = Tensor(INPUT_NAME, channels_last=True)
        for constant in graph.initializer:
            self.constants[constant.name] = Constant(_exact(numpy_helper.to_array(constant)))
        for name, weight in self.trace.weights.items():
            self.constants[name] = Constant(weight.values.astype(np.float64), weight)
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
            elif channels_last and name and node.op_type not in {"Slice", "Pad"}:
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
        if channels_last and node.op_type == "Pad":
            names = self._turned_pad(node, names)
        self.nodes.append(Node(node.op_type, tuple(names), output, attributes, layer, position))
        self.tensors[output] = Tensor(output, channels_last)
        self._positions[output] = position

    def finished(self) -> tuple[list[Node], str]:
        """Return the nodes, and the name of the output."""
        return self.nodes, self.tensors[self.trace.graph.graph.output[0].name].name

    def _compute(self, node: onnx.NodeProto) -> None:
        """Compute a node whose inputs are constants."""
        inputs = {name: self.constants[name] for name in node.input if name}
        feeds = {name: each.values for name, each in inputs.items()}
        values: NDArray[Any] = np.asarray(next(iter(ReferenceEvaluator(node).run(None, feeds))))
        weights = [each.weight for each in inputs.values() if each.weight]
        self.constants[node.output[0]] = Constant(values, weights[0] if weights else None)

    def _is_neutral(self, node: onnx.NodeProto) -> bool:
        """Check if a node multiplies by the constant 1."""
        factors = [self.constants[name] for name in node.input if name in self.constants]
        if node.op_type != "Mul" or not factors:
            return False
        return all(not one.weight and np.all(one.values == 1) for one in factors)

    def _variable(self, node: onnx.NodeProto) -> str:
        """Return the first input of a node that depends on the stack."""
        return str(next(name for name in node.input if name in self.tensors))

    def _turned(self, node: onnx.NodeProto, source: Tensor) -> Tensor:
        """Return the tensor in the other axis order.

        A reshape that turns an image of one channel is a transposition, too.
        """
        before, after = self._shapes[self._variable(node)], self._shapes[node.output[0]]
        if node.op_type == "Reshape" and before == after:
            return source
        order = _TO_ONNX if source.channels_last else _TO_TENSORFLOW
        turns = len(before) == 4 and after == tuple(before[axis] for axis in order)
        if node.op_type == "Transpose":
            turns = tuple(node_attributes(node)["perm"]) == order
        else:
            turns = turns and before[3 if source.channels_last else 1] == 1
        if not turns:
            raise self._refusal(node)
        return Tensor(source.name, not source.channels_last)

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
        self.constants[turned] = Constant(np.array([_TO_ONNX.index(axis % 4) for axis in axes.tolist()], axes.dtype))
        return [*names[:3], turned, *names[4:]]

    def _turned_pad(self, node: onnx.NodeProto, names: list[str]) -> list[str]:
        """Return the inputs of a Pad of all axes in ONNX's axis order."""
        pads, turned = self.constants[node.input[1]].values, f"{node.input[1]}_turned"
        if len(node.input) > 3 or pads.size != 8:
            raise self._refusal(node)
        self.constants[turned] = Constant(pads.reshape(2, 4)[:, _TO_ONNX].ravel())
        return [names[0], turned, *names[2:]]

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
        self.constants[scales] = Constant(np.array(factors, np.float64))
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
