"""How far a pixel reaches: the halo and the alignment of a model, derived from its ONNX graph.

The graph is walked from its output to its input. For each pixel of the smallest tile, one cell of the lattice of
poolings, the interval of the pixels that it depends on is carried backwards through each node. All operators here
treat rows and columns alike, so one dimension stands for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import onnx
from onnx import helper, numpy_helper

from talud.errors import ModelError

_POINTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "IsNaN", "Where", "Concat", "Identity"}

Interval = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The context that a tile needs.

    Attributes:
        halo: pixels around a tile that its output can depend on, rounded up to a multiple of the alignment; the tile's
            corners lie on the lattice.
        alignment: windows whose origin and size are multiples of this see the same lattice of poolings.
    """

    halo: int
    alignment: int


def receptive_field(model: onnx.ModelProto) -> ReceptiveField:
    """The receptive field of a graph of one input and one output.

    Raises:
        ModelError: an operator's reach is not known here, or paths of different scale meet.
    """
    alignment = math.lcm(*(int(scale) for scale in _scales(model).values()))
    reaches = [_influence(model, position) for position in range(alignment)]
    before = max(-lowest for lowest, _ in reaches)
    after = max(highest for _, highest in reaches) - (alignment - 1)
    return ReceptiveField(-(-max(before, after, 0) // alignment) * alignment, alignment)


def _scales(model: onnx.ModelProto) -> dict[str, Fraction]:
    """How many input pixels one pixel of each tensor spans."""
    scales = {value.name: Fraction(1) for value in model.graph.input}
    for node in model.graph.node:
        incoming = {scales[name] for name in node.input if name in scales}
        if len(incoming) != 1:
            raise ModelError(f"the graph's node '{node.name}' joins tensors of different scale")
        step = Fraction(_steps(model, node))
        scale = incoming.pop() * step
        if scale.denominator != 1:
            raise ModelError(f"the graph's node '{node.name}' makes pixels smaller than the input's")
        scales[node.output[0]] = scale
    return scales


def _influence(model: onnx.ModelProto, position: int) -> Interval:
    """The input pixels, as an interval, that the output pixel at `position` depends on."""
    reach: dict[str, Interval] = {model.graph.output[0].name: (position, position)}
    constants = {constant.name for constant in model.graph.initializer}
    for node in reversed(model.graph.node):
        if node.output[0] not in reach:
            continue
        needed = _needed(model, node, reach[node.output[0]])
        for name in _tensors(node, constants):
            lowest, highest = reach.get(name, needed)
            reach[name] = min(lowest, needed[0]), max(highest, needed[1])
    return reach[model.graph.input[0].name]


def _tensors(node: onnx.NodeProto, constants: set[str]) -> Iterator[str]:
    return (name for name in node.input if name and name not in constants)


def _steps(model: onnx.ModelProto, node: onnx.NodeProto) -> Fraction:
    """By what a node multiplies the size of a pixel."""
    if node.op_type == "Resize":
        return Fraction(1, _factor(model, node))
    return Fraction(_attributes(node).get("strides", [1])[0])


def _needed(model: onnx.ModelProto, node: onnx.NodeProto, wanted: Interval) -> Interval:
    """The interval of a node's input that an interval of its output depends on."""
    if node.op_type in _POINTWISE:
        return wanted
    if node.op_type == "Resize":
        factor = _factor(model, node)
        return wanted[0] // factor, wanted[1] // factor
    if node.op_type in {"Conv", "MaxPool"}:
        form = _attributes(node)
        kernel, stride = form["kernel_shape"][0], form.get("strides", [1])[0]
        dilation, before = form.get("dilations", [1])[0], form.get("pads", [0])[0]
        start = wanted[0] * stride - before
        return start, wanted[1] * stride - before + (kernel - 1) * dilation
    raise ModelError(f"the reach of the graph's operator '{node.op_type}' ('{node.name}') is not known")


def _factor(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """By how much a Resize repeats each pixel."""
    mode = _attributes(node)
    constants = {constant.name: constant for constant in model.graph.initializer}
    repeats = (
        mode.get("mode") == b"nearest"
        and mode.get("coordinate_transformation_mode") == b"asymmetric"
        and mode.get("nearest_mode") == b"floor"
    )
    if not repeats or len(node.input) != 3 or node.input[2] not in constants:
        raise ModelError(f"the graph's node '{node.name}' is not an up-sampling by constant repetition")
    return int(numpy_helper.to_array(constants[node.input[2]])[-1])


def _attributes(node: onnx.NodeProto) -> dict[str, list[int] | bytes]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
