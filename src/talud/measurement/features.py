"""Features of a network in an area, and their alignment to those of the training areas.

Another light, another sensor, another season change what a network computes at every layer. Mean and variance of each
band that they change are made, by the constants that scale it, what they were at home; and after each convolution mean
and variance of each channel, layer after layer, since what a layer sees depends on those before it (adaptive batch
normalisation: Li, Wang, Shi, Hou and Liu, 2018, Pattern Recognition 80; here for networks whose normalisation is part
of their convolutions, or that never had one). A convolution and a normalisation of its output are one convolution, so
the network that results has the form, the reach and the cost of the old one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from talud.errors import ModelError

METADATA_KEY = "talud.features"
_FLOOR = 1e-3  # added to each variance, so that a channel that is nearly constant is not blown up
_FORM = "<f4"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Mean and variance of each band, and of what each convolution but the last gives, before its ReLU.

    Attributes:
        side: of the squares that they are over, in pixels.
        means: (channels,) by the name of a convolution's output, over all pixels, of which those that are invalid carry
            no signal; and under the network's input, (bands,), over the valid pixels.
        variances: likewise.
    """

    side: int
    means: dict[str, Floats]
    variances: dict[str, Floats]

    def between(self, other: Features, strength: float) -> Features:
        """Interpolate between these features and others by a share."""

        def on_the_way(here: dict[str, Floats], there: dict[str, Floats]) -> dict[str, Floats]:
            return {name: (1 - strength) * here[name] + strength * there[name] for name in here}

        return Features(self.side, on_the_way(self.means, other.means), on_the_way(self.variances, other.variances))

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata entry of a model file, in float32."""

        def text(values: dict[str, Floats]) -> dict[str, str]:
            return {name: base64.b64encode(part.astype(_FORM).tobytes()).decode() for name, part in values.items()}

        held = {"side": self.side, "means": text(self.means), "variances": text(self.variances)}
        return {METADATA_KEY: json.dumps(held)}

    @classmethod
    def of(cls, graph: onnx.ModelProto) -> Self:
        """Read the features of the training areas from a model file.

        Raises:
            ModelError: it holds none, or not those of its own convolutions.
        """
        held = {entry.key: entry.value for entry in graph.metadata_props}.get(METADATA_KEY)
        if held is None:
            raise ModelError("holds no statistics of its features; take a file that talud train has made of late")
        try:
            said = json.loads(held)
            means, variances = (
                {name: np.frombuffer(base64.b64decode(part), _FORM) for name, part in said[key].items()}
                for key in ("means", "variances")
            )
            found = cls(int(said["side"]), means, variances)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError("its statistics of features are damaged; export it again") from error
        bands = graph.graph.input[0]
        widths = {bands.name: bands.type.tensor_type.shape.dim[1].dim_value}
        widths |= {node.output[0]: len(_constant(graph, node.input[2])) for node in convolutions(graph)}
        for values in (found.means, found.variances):
            whole = all(np.isfinite(part).all() for part in values.values())
            if not whole or {name: len(part) for name, part in values.items()} != widths:
                raise ModelError("its statistics of features are not those of its layers; export it again")
        if found.side < 1 or any((part < 0).any() for part in found.variances.values()):
            raise ModelError("its statistics of features are no statistics; export it again")
        return found


def convolutions(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions of a network in order, without the last one."""
    return [node for node in graph.graph.node if node.op_type == "Conv"][:-1]


def measured(
    graph: onnx.ModelProto, squares: Floats, like: Features | None = None, lit: Sequence[bool] = ()
) -> Features:
    """Measure the features of a network over some squares.

    Args:
        graph: of a model file whose convolutions have a bias.
        squares: in physical units, NaN where invalid; (squares, bands, side, side), multiples of the alignment.
        like: features as which each layer's are made, before the next layer sees them; default: they are left alone.
        lit: which bands are made so too; default: none.

    Raises:
        ModelError: the network does not scale its bands as talud's do.
    """
    stack, bands = graph.graph.input[0].name, _of_bands(squares)
    probe = _scaled(graph, like, bands, lit) if like else _copy(graph)
    chosen = {node.output[0] for node in convolutions(graph)}
    nodes: list[onnx.NodeProto] = []
    for node in probe.graph.node:
        nodes.append(node)
        if node.op_type == "Conv" and node.output[0] in chosen:
            name = node.output[0]
            node.output[0] = f"{name}_found"
            nodes += _moments(name)
            nodes += _normalisation(probe, name, like) if like else [_node("Identity", [f"{name}_found"], name)]
    del probe.graph.node[:]
    probe.graph.node.extend(nodes)
    probe.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0, 2, 3], np.int64), "over"),
            numpy_helper.from_array(np.array(_FLOOR, np.float32), "floor"),
        ]
    )
    names = sorted(chosen)
    wanted = [f"{name}_{moment}" for moment in ("mean", "variance") for name in names]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [values.ravel() for values in session.run(wanted, {stack: squares})]
    means, variances = (dict(zip(names, part, strict=True)) for part in (found[: len(names)], found[len(names) :]))
    return Features(squares.shape[-1], {stack: bands[0], **means}, {stack: bands[1], **variances})


def aligned(graph: onnx.ModelProto, home: Features, there: Features, lit: Sequence[bool]) -> onnx.ModelProto:
    """Align the features of a network in a new area to those of its training areas.

    Args:
        graph: of a model file.
        home: the features of its training area.
        there: what `measured` found in the new area with those of home as `like`, or what lies between.
        lit: which bands are scaled anew, as there.

    Raises:
        ModelError: the network does not scale its bands as talud's do.
    """
    stack = graph.graph.input[0].name
    result = _scaled(graph, home, (there.means[stack], there.variances[stack]), lit)
    constants = {constant.name: constant for constant in result.graph.initializer}
    for node in convolutions(result):
        name, kernel, bias = node.output[0], *(_constant(graph, part) for part in node.input[1:3])
        gain = np.sqrt((home.variances[name] + _FLOOR) / (there.variances[name] + _FLOOR))
        moved = (bias - there.means[name]) * gain + home.means[name]
        for part, values in ((node.input[1], kernel * gain[:, None, None, None]), (node.input[2], moved)):
            constants[part].CopyFrom(numpy_helper.from_array(values.astype(np.float32), part))
    return result


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def _of_bands(squares: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of each band over its valid pixels, (bands,) each; 0 of one that has none."""
    valid = [band[np.isfinite(band)].astype(np.float64) for band in np.moveaxis(squares, 1, 0)]
    moments = [(band.mean(), band.var()) if band.size else (0.0, 0.0) for band in valid]
    mean, variance = np.array(moments, np.float32).T
    return mean, variance


def _scaled(
    graph: onnx.ModelProto, home: Features, there: tuple[Floats, Floats], lit: Sequence[bool]
) -> onnx.ModelProto:
    """Scale some bands of an area to their means and variances in the training areas.

    Of (x - mean) / deviation, in which x becomes (x - mean there) * gain + mean at home.
    """
    result = _copy(graph)
    constants = {constant.name: constant for constant in result.graph.initializer}
    if not {"mean", "deviation"} <= constants.keys():
        raise ModelError("does not scale its bands by a mean and a deviation, as talud's networks do")
    stack = graph.graph.input[0].name
    mean, deviation = (numpy_helper.to_array(constants[name]).ravel() for name in ("mean", "deviation"))
    changed = np.array(lit or [False] * len(mean)) & (there[1] > 0) & (home.variances[stack] > 0)
    width = np.sqrt(np.divide(there[1], home.variances[stack], out=np.ones_like(mean), where=changed))
    moved = np.where(changed, there[0] - (home.means[stack] - mean) * width, mean)
    for name, values in (("mean", moved), ("deviation", deviation * width)):
        shaped = np.reshape(values, (1, -1, 1, 1)).astype(np.float32)
        constants[name].CopyFrom(numpy_helper.from_array(shaped, name))
    return result


def _moments(name: str) -> list[onnx.NodeProto]:
    """Mean and variance of each channel of a convolution's output."""
    return [
        _node("ReduceMean", [f"{name}_found", "over"], f"{name}_mean", keepdims=1),
        _node("Sub", [f"{name}_found", f"{name}_mean"], f"{name}_centred"),
        _node("Mul", [f"{name}_centred", f"{name}_centred"], f"{name}_square"),
        _node("ReduceMean", [f"{name}_square", "over"], f"{name}_variance", keepdims=1),
    ]


def _normalisation(probe: onnx.ModelProto, name: str, like: Features) -> list[onnx.NodeProto]:
    """Make a convolution's output have the mean and variance of other features."""
    deviation = np.sqrt(like.variances[name] + _FLOOR)
    for suffix, values in (("home", like.means[name]), ("width", deviation)):
        shaped = np.reshape(values, (1, -1, 1, 1)).astype(np.float32)
        probe.graph.initializer.append(numpy_helper.from_array(shaped, f"{name}_{suffix}"))
    return [
        _node("Add", [f"{name}_variance", "floor"], f"{name}_raised"),
        _node("Sqrt", [f"{name}_raised"], f"{name}_deviation"),
        _node("Div", [f"{name}_centred", f"{name}_deviation"], f"{name}_standard"),
        _node("Mul", [f"{name}_standard", f"{name}_width"], f"{name}_scaled"),
        _node("Add", [f"{name}_scaled", f"{name}_home"], name),
    ]


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def _constant(graph: onnx.ModelProto, name: str) -> Floats:
    values: Floats = numpy_helper.to_array(next(part for part in graph.graph.initializer if part.name == name))
    return values
