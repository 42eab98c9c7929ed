"""Margins that a network needs around a core.

The ONNX graph is walked from its output to its input: the margin that a node needs of its input follows from the margin
needed of its output. A core's corners lie on the lattice of the pooling layers, so the result holds for a core of any
size. All operators here treat rows and columns alike, so one dimension stands for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, reduce
from math import ceil, floor, lcm
from operator import or_
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from talud.engine.tiling import round_up
from talud.errors import ModelError
from talud.text import first_line

POINTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Clip", "IsNaN", "Where", "Identity", "Cast"}
POINTWISE |= {"BatchNormalization", "HardSigmoid", "HardSwish", "QuantizeLinear", "DequantizeLinear"}
POINTWISE |= {"LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Mish", "Tanh", "Erf", "Softplus", "Softsign"}
POINTWISE |= {"Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Pow", "Max", "Min", "Sum", "Greater", "Less", "Not"}

# Largest number of nodes of a graph that is cropped: the search for branches takes its square in bits.
MAX_CROPPED_NODES = 5_000

# Operators whose output depends on the whole image, and those that do unless they work along the bands (axis 1) only.
_GLOBAL = {"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "InstanceNormalization", "GroupNormalization"}
_GLOBAL |= {"Attention", "MultiHeadAttention", "Flatten", "Gemm", "MatMul", "RNN", "LSTM", "GRU", "NonZero", "DFT"}
_ALONG_AXES = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL1"}
_ALONG_AXES |= {"ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "MeanVarianceNormalization", "LayerNormalization"}
_ALONG_AXES |= {"Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "ArgMax", "ArgMin", "TopK"}


class GlobalReachError(ModelError):
    """Operator whose output depends on the whole image."""


class Margin(NamedTuple):
    """Pixels before and after a core along an axis."""

    before: int
    after: int


@dataclass(frozen=True)
class OperatorReach:
    """Input margin needed for an output margin.

    For a margin m of its output, a convolution or pooling of stride s needs a margin of s·m and a constant number of
    extra pixels; a repetition of each pixel f times needs m / f, rounded up.

    Attributes:
        scale: pixel size of the output in pixels of the input: s, or 1 / f.
        extra: constant number of extra pixels on each side.
    """

    scale: Fraction
    extra: Margin

    def input_margin(self, wanted: Margin) -> Margin:
        """Return the input margin that an output margin needs.

        A stride that is larger than the kernel leaves out the last pixels of a core. They are kept as part of the core,
        so a margin is never negative.
        """
        return Margin(*(max(ceil(side * self.scale) + more, 0) for side, more in zip(wanted, self.extra, strict=True)))

    def output_margin(self, margin: Margin) -> Margin:
        """Return the output margin for an input margin."""
        return Margin(*(floor((side - more) / self.scale) for side, more in zip(margin, self.extra, strict=True)))


class TensorForm(NamedTuple):
    """Channels and dtype of a tensor; 0 channels if they are free."""

    channels: int
    dtype: np.dtype[Any]


class CroppedAxis(NamedTuple):
    """Margins of a cropped network along an axis.

    Attributes:
        given: margin of each tensor.
        held: margin to which the inputs of each node are cropped, by the name of its output.
        pads: padding of each node.
    """

    given: dict[str, Margin]
    held: dict[str, Margin]
    pads: dict[str, Margin]


class NetworkGeometry:
    """Geometry of a graph.

    Attributes:
        model: the graph.
        input: name of the input.
        output: name of the output.
        nodes: nodes that depend on the input, in graph order.
        constant_nodes: all other nodes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.input, self.output = model.graph.input[0].name, model.graph.output[0].name
        self._constants = {constant.name: constant for constant in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.constant_nodes: list[onnx.NodeProto] = []
        self._tensors = {self.input}
        for node in model.graph.node:
            if self.variable_inputs(node):
                self.nodes.append(node)
                self._tensors.update(node.output)
            else:
                self.constant_nodes.append(node)

    def variable_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the non-constant inputs of a node."""
        return [name for name in node.input if name in self._tensors]

    @cached_property
    def forms(self) -> dict[str, TensorForm]:
        """Channels and dtype of each tensor, as far as the graph states them.

        Raises:
            ModelError: The graph contradicts itself.
        """
        try:
            inferred = shape_inference.infer_shapes(self.model).graph
        except Exception as error:  # the exceptions of ONNX have no common base class
            raise ModelError(f"the shapes of the graph's tensors contradict each other: {first_line(error)}") from error
        return {
            value.name: TensorForm(value.type.tensor_type.shape.dim[1].dim_value, _dtype(value.type.tensor_type))
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if len(value.type.tensor_type.shape.dim) > 1
        }

    def reach(self, node: onnx.NodeProto) -> OperatorReach:
        """Return the reach of a node's operator.

        Raises:
            GlobalReachError: The operator's output depends on the whole image.
            ModelError: The reach of the operator is not known.
        """
        if node.op_type in _GLOBAL or (node.op_type in _ALONG_AXES and self._work_axes(node) != [1]):
            raise GlobalReachError(
                f"the output of the graph's operator '{node.op_type}' ('{node.name}') depends on the whole image, so a "
                "map could not be computed in tiles; use convolutions and poolings, which see a limited neighbourhood"
            )
        # The same operator name may have another meaning in another domain.
        if node.domain not in {"", "ai.onnx"}:
            raise ModelError(f"the reach of the graph's operator '{node.op_type}' ('{node.name}') is not known")
        if node.op_type in POINTWISE or (node.op_type == "Concat" and node_attributes(node).get("axis") == 1):
            return OperatorReach(Fraction(1), Margin(0, 0))
        if node.op_type == "Resize":
            return OperatorReach(Fraction(1, self._upsampling_factor(node)), Margin(0, 0))
        if node.op_type == "Slice" and self._axes(node) == [1]:
            return OperatorReach(Fraction(1), Margin(0, 0))
        if node.op_type in {"Conv", "MaxPool", "AveragePool"}:
            return _sliding_window_reach(node)
        raise ModelError(f"the reach of the graph's operator '{node.op_type}' ('{node.name}') is not known")

    def scales(self) -> dict[str, int]:
        """Return the pixel size of each tensor in pixels of the input.

        Raises:
            ModelError: Tensors of different scale meet, or the scale of an operator is not known.
        """
        scales = {self.input: Fraction(1)}
        for node in self.nodes:
            incoming = {scales[name] for name in self.variable_inputs(node)}
            if len(incoming) != 1:
                raise ModelError(f"the graph's node '{node.name}' joins tensors of different scale")
            scale = incoming.pop() * self.reach(node).scale
            if scale.denominator != 1:
                raise ModelError(f"the graph's node '{node.name}' makes pixels smaller than the input's")
            scales[node.output[0]] = scale
        return {name: int(scale) for name, scale in scales.items()}

    def margins(self, limit: Margin | None = None) -> dict[str, Margin]:
        """Return the margin that each tensor needs.

        Args:
            limit: pixels that the input has beyond the core, multiples of the alignment; the layers pad beyond them,
                and the input of a strided layer on a branch (`_joins`) is a multiple of the stride. None if it has
                as many as needed.

        Raises:
            ModelError: The reach of an operator is not known or, if there is a limit, its scale.
        """
        scales = self.scales() if limit else {}
        wanted = {self.output: Margin(0, 0)}
        for node in reversed(self.nodes):
            if node.output[0] not in wanted:
                continue
            reach = self.reach(node)
            needed = reach.input_margin(wanted[node.output[0]])
            if limit and node.output[0] in self._joins[0] and reach.scale > 1:
                needed = Margin(*(round_up(side, int(reach.scale)) for side in needed))
            for name in self.variable_inputs(node):
                there = Margin(*(side // scales[name] for side in limit)) if limit else needed
                within = Margin(*map(min, needed, there))
                wanted[name] = Margin(*map(max, wanted.get(name, within), within))
        return wanted

    def cropped_axis(self, limit: Margin) -> CroppedAxis:
        """Return the margins along an axis of a tile that is cropped.

        Each tensor is as wide as the narrowest input of its node allows, or as later nodes need. Only the branches that
        an Add node joins (`_joins`) are as wide as the tensor where they part, and pad as in the plain graph.

        Args:
            limit: as for `margins`; 0 where the core reaches the raster's edge. With 0 on both sides, every layer pads,
                as in the plain graph.

        Raises:
            ModelError: The reach of an operator is not known.
        """
        wanted, (branches, sums) = self.margins(limit), self._joins
        axis = CroppedAxis({self.input: wanted[self.input]}, {}, {})
        for node in self.nodes:
            output = node.output[0]
            if output not in wanted:
                continue
            reach = self.reach(node)
            # A sum of branches is as wide as the branches, and cropped by the nodes that follow the last one.
            wide = output in branches or output in sums
            sources = [
                wanted[name] if name in sums and not wide else axis.given[name] for name in self.variable_inputs(node)
            ]
            narrowest = Margin(*map(min, zip(*sources, strict=True)))
            if output in branches:
                given = Margin(*(floor(side / reach.scale) for side in narrowest))
                held, pads = Margin(*(int(side * reach.scale) for side in given)), _pads(node)
            else:
                given = Margin(*map(max, reach.output_margin(narrowest), wanted[output]))
                needed = reach.input_margin(given)
                held = Margin(*map(min, needed, narrowest))
                pads = Margin(*(side - there for side, there in zip(needed, held, strict=True)))
            axis.given[output], axis.held[output], axis.pads[output] = given, held, pads
        return axis

    @cached_property
    def _joins(self) -> tuple[set[str], set[str]]:
        """Branches that Add nodes join, and their sums, as the outputs of nodes.

        A branch consists of the nodes on one side of an Add node only; those with an up-sampling, as deep as the
        network, are left out. ONNX Runtime computes an Add node within the convolution before it, with another
        rounding, if it can tell that both tensors have one shape. The branches of a cropped graph therefore keep the
        shape that they have in the plain graph. Element-wise operators belong to the sum before them.

        Raises:
            ModelError: The graph has too many nodes.
        """
        if len(self.nodes) > MAX_CROPPED_NODES:
            raise ModelError(f"the graph has {len(self.nodes)} nodes; at most {MAX_CROPPED_NODES} can be cropped")
        # Nodes on which a tensor depends, as bits.
        ancestors = {self.input: 0}
        resizes, branches, sums = 0, 0, set()
        for number, node in enumerate(self.nodes):
            names, output = self.variable_inputs(node), node.output[0]
            ancestors[output] = reduce(or_, (ancestors[name] for name in names), 1 << number)
            resizes |= (node.op_type == "Resize") << number
            if node.op_type == "Add" and len(names) == 2:
                single = ancestors[names[0]] ^ ancestors[names[1]]
                if single and not single & resizes:
                    branches |= single
                    sums.add(output)
            elif node.op_type in POINTWISE and set(names) <= sums:
                sums.add(output)
        return {node.output[0] for number, node in enumerate(self.nodes) if branches >> number & 1}, sums

    def _axes(self, node: onnx.NodeProto) -> list[int]:
        """Return the axes of a Slice node; none if they are not constant."""
        axes = self._constants.get(node.input[3]) if len(node.input) > 3 else None
        return [] if axes is None else [int(axis) for axis in numpy_helper.to_array(axes).ravel()]

    def _work_axes(self, node: onnx.NodeProto) -> list[int]:
        """Return the axes along which a node computes.

        There are none if they are not stated, or not constant.
        """
        form = node_attributes(node)
        if "axes" in form or "axis" in form:
            return list(form.get("axes", [form.get("axis")]))
        axes = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        return [] if axes is None else [int(axis) for axis in numpy_helper.to_array(axes).ravel()]

    def _upsampling_factor(self, node: onnx.NodeProto) -> int:
        """Return the factor of a Resize node."""
        form = node_attributes(node)
        repeats = (
            form.get("mode") == b"nearest"
            and form.get("coordinate_transformation_mode") == b"asymmetric"
            and form.get("nearest_mode") == b"floor"
        )
        if not repeats or len(node.input) != 3 or node.input[2] not in self._constants:
            raise ModelError(f"the graph's node '{node.name}' is not an up-sampling by repetition with constant scales")
        scales = numpy_helper.to_array(self._constants[node.input[2]]).ravel().tolist()
        if len(scales) != 4 or scales != [1, 1, scales[3], scales[3]] or not 1 <= scales[3] == int(scales[3]):
            raise ModelError(f"the graph's node '{node.name}' has unequal or fractional scales {scales}")
        return int(scales[3])


def _sliding_window_reach(node: onnx.NodeProto) -> OperatorReach:
    """Return the reach of a convolution or pooling."""
    form = node_attributes(node)
    sides = [form.get(name, [default] * 2) for name, default in (("kernel_shape", 0), ("strides", 1), ("dilations", 1))]
    pads = form.get("pads", [0] * 4)
    alike = all(side == [side[0]] * 2 for side in (*sides, pads[:2], pads[2:]))
    if not alike or not sides[0][0] or form.get("auto_pad", b"NOTSET") != b"NOTSET" or form.get("ceil_mode"):
        raise ModelError(
            f"the graph's node '{node.name}' does not treat rows and columns alike, or has no explicit shape"
        )
    kernel, stride, dilation = (side[0] for side in sides)
    return OperatorReach(Fraction(stride), Margin(pads[0], (kernel - 1) * dilation - pads[0] - (stride - 1)))


def _dtype(tensor: onnx.TypeProto.Tensor) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(tensor.elem_type or onnx.TensorProto.FLOAT)


def _pads(node: onnx.NodeProto) -> Margin:
    """Return the padding of a node, which is the same for rows and columns."""
    before, _, after, _ = node_attributes(node).get("pads", [0] * 4)
    return Margin(before, after)


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@dataclass(frozen=True)
class ReceptiveField:
    """Context that a tile needs.

    Attributes:
        halo: number of pixels around a tile on which its output can depend, rounded up to a multiple of the alignment;
            the tile's corners lie on the lattice.
        alignment: step of the lattice of pooling layers; windows whose origin and size are multiples of it see the same
            lattice.
    """

    halo: int
    alignment: int


def receptive_field(model: onnx.ModelProto) -> ReceptiveField:
    """Return the receptive field of a graph.

    Raises:
        ModelError: The reach of an operator is not known, or paths of different scale meet.
    """
    network = NetworkGeometry(model)
    alignment = lcm(*network.scales().values())
    return ReceptiveField(round_up(max(*network.margins()[network.input], 0), alignment), alignment)
