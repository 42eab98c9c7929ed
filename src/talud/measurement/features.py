"""Measurement and alignment of the feature statistics of a network.

A change of light, sensor or season changes the activations of every layer. The alignment restores the mean and the
variance of the training areas: of each changed band through the constants that scale it, and of each channel after each
convolution. It goes layer by layer, since the input of a layer depends on the layers before it (adaptive batch
normalisation: Li, Wang, Shi, Hou and Liu, 2018, Pattern Recognition 80; here for networks whose normalisation is folded
into their convolutions, or that have none). A convolution followed by a normalisation is again one convolution, so
the aligned network has the structure, the receptive field and the cost of the original.
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
# Added to each variance, so that an almost constant channel is not amplified.
_VARIANCE_OFFSET = 1e-3
_STORED_DTYPE = "<f4"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and variance of each band and convolution output.

    Outputs are taken before the ReLU. The last convolution, whose output is the logit, is not included.

    Attributes:
        side: side in pixels of the windows that were measured.
        means: name of a convolution's output → mean of each channel, (channels,), over all pixels (invalid ones enter
            the network as zeros); name of the network's input → mean of each band, (bands,), over the valid pixels.
        variances: variances, in the same form.
    """

    side: int
    means: dict[str, Floats]
    variances: dict[str, Floats]

    def interpolate(self, other: FeatureStatistics, strength: float) -> FeatureStatistics:
        """Interpolate linearly to other statistics (at strength 1)."""

        def mix(ours: dict[str, Floats], theirs: dict[str, Floats]) -> dict[str, Floats]:
            return {name: (1 - strength) * ours[name] + strength * theirs[name] for name in ours}

        return FeatureStatistics(self.side, mix(self.means, other.means), mix(self.variances, other.variances))

    def to_metadata(self) -> dict[str, str]:
        """Serialise as float32 for a model file's metadata."""

        def encode(values: Floats) -> str:
            return base64.b64encode(values.astype(_STORED_DTYPE).tobytes()).decode()

        means, variances = (
            {name: encode(values) for name, values in part.items()} for part in (self.means, self.variances)
        )
        return {METADATA_KEY: json.dumps({"side": self.side, "means": means, "variances": variances})}

    @classmethod
    def of(cls, graph: onnx.ModelProto) -> Self:
        """Read the training areas' statistics from a model file.

        Raises:
            ModelError: the file holds none, or they do not fit the network.
        """
        entry = {entry.key: entry.value for entry in graph.metadata_props}.get(METADATA_KEY)
        if entry is None:
            raise ModelError("holds no feature statistics; train the model again with this version of talud")
        try:
            stored = json.loads(entry)
            means, variances = (
                {name: np.frombuffer(base64.b64decode(part), _STORED_DTYPE) for name, part in stored[key].items()}
                for key in ("means", "variances")
            )
            statistics = cls(int(stored["side"]), means, variances)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError("has damaged feature statistics; export it again") from error
        bands = graph.graph.input[0]
        widths = {bands.name: bands.type.tensor_type.shape.dim[1].dim_value}
        widths |= {node.output[0]: len(_constant(graph, node.input[2])) for node in convolutions(graph)}
        for values in (statistics.means, statistics.variances):
            finite = all(np.isfinite(part).all() for part in values.values())
            if not finite or {name: len(part) for name, part in values.items()} != widths:
                raise ModelError("has feature statistics that do not fit its layers; export it again")
        if statistics.side < 1 or any((part < 0).any() for part in statistics.variances.values()):
            raise ModelError("has feature statistics with impossible values; export it again")
        return statistics


def convolutions(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return all convolutions but the last, in order."""
    return [node for node in graph.graph.node if node.op_type == "Conv"][:-1]


def measure_features(
    graph: onnx.ModelProto,
    squares: Floats,
    target: FeatureStatistics | None = None,
    radiometric_bands: Sequence[bool] = (),
) -> FeatureStatistics:
    """Measure the feature statistics of a network on windows.

    Args:
        graph: model file whose convolutions have a bias.
        squares: windows in physical units, NaN where invalid; (windows, bands, side, side), where side is a multiple of
            the alignment.
        target: statistics to which each layer's output is normalised before the next layer reads it. Default: outputs
            are passed on unchanged.
        radiometric_bands: flag of each band that is normalised to the target too. Default: none.

    Raises:
        ModelError: the network does not scale its bands by a mean and a deviation.
    """
    stack, bands = graph.graph.input[0].name, _band_moments(squares)
    probe = _rescale_bands(graph, target, bands, radiometric_bands) if target else _copy(graph)
    chosen = {node.output[0] for node in convolutions(graph)}
    nodes: list[onnx.NodeProto] = []
    for node in probe.graph.node:
        nodes.append(node)
        if node.op_type == "Conv" and node.output[0] in chosen:
            name = node.output[0]
            node.output[0] = f"{name}_raw"
            nodes += _moments(name)
            nodes += _normalisation(probe, name, target) if target else [_node("Identity", [f"{name}_raw"], name)]
    del probe.graph.node[:]
    probe.graph.node.extend(nodes)
    probe.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0, 2, 3], np.int64), "over"),
            numpy_helper.from_array(np.array(_VARIANCE_OFFSET, np.float32), "offset"),
        ]
    )
    names = sorted(chosen)
    outputs = [f"{name}_{moment}" for moment in ("mean", "variance") for name in names]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    moments = [values.ravel() for values in session.run(outputs, {stack: squares})]
    means, variances = (dict(zip(names, part, strict=True)) for part in (moments[: len(names)], moments[len(names) :]))
    return FeatureStatistics(squares.shape[-1], {stack: bands[0], **means}, {stack: bands[1], **variances})


def align_features(
    graph: onnx.ModelProto,
    reference: FeatureStatistics,
    observed: FeatureStatistics,
    radiometric_bands: Sequence[bool],
) -> onnx.ModelProto:
    """Align a network's features in a new area to the training areas.

    Args:
        graph: model file.
        reference: statistics of the training areas.
        observed: statistics of the new area, measured with the reference as target, or interpolated between both.
        radiometric_bands: flag of each band that is rescaled; the same as in the measurement.

    Raises:
        ModelError: the network does not scale its bands by a mean and a deviation.
    """
    result = align_bands(graph, reference, observed, radiometric_bands)
    constants = {constant.name: constant for constant in result.graph.initializer}
    for node in convolutions(result):
        name, kernel, bias = node.output[0], *(_constant(graph, part) for part in node.input[1:3])
        gain = np.sqrt((reference.variances[name] + _VARIANCE_OFFSET) / (observed.variances[name] + _VARIANCE_OFFSET))
        moved = (bias - observed.means[name]) * gain + reference.means[name]
        for part, values in ((node.input[1], kernel * gain[:, None, None, None]), (node.input[2], moved)):
            constants[part].CopyFrom(numpy_helper.from_array(values.astype(np.float32), part))
    return result


def align_bands(
    graph: onnx.ModelProto,
    reference: FeatureStatistics,
    observed: FeatureStatistics,
    radiometric_bands: Sequence[bool],
) -> onnx.ModelProto:
    """Align a network's bands in a new area to the training areas.

    Only the mean and the deviation by which the network scales its bands are changed.

    Args:
        graph: model file.
        reference: statistics of the training areas.
        observed: statistics of the new area, or interpolated between both; only those of the bands are used.
        radiometric_bands: flag of each band that is rescaled.

    Raises:
        ModelError: the network does not scale its bands by a mean and a deviation.
    """
    stack = graph.graph.input[0].name
    return _rescale_bands(graph, reference, (observed.means[stack], observed.variances[stack]), radiometric_bands)


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def _band_moments(squares: Floats) -> tuple[Floats, Floats]:
    """Return mean and variance, (bands,) each; 0 without valid pixels."""
    valid = [band[np.isfinite(band)].astype(np.float64) for band in np.moveaxis(squares, 1, 0)]
    moments = [(band.mean(), band.var()) if band.size else (0.0, 0.0) for band in valid]
    mean, variance = np.array(moments, np.float32).T
    return mean, variance


def _rescale_bands(
    graph: onnx.ModelProto,
    reference: FeatureStatistics,
    observed: tuple[Floats, Floats],
    radiometric_bands: Sequence[bool],
) -> onnx.ModelProto:
    """Rescale some bands to the statistics of the training areas.

    The network scales a band as (x - mean) / deviation. Here x is replaced by (x - observed mean) * gain + reference
    mean, which changes only the two constants.
    """
    result = _copy(graph)
    constants = {constant.name: constant for constant in result.graph.initializer}
    if not {"mean", "deviation"} <= constants.keys():
        raise ModelError("does not scale its bands by a mean and a deviation; train it with talud")
    stack = graph.graph.input[0].name
    mean, deviation = (numpy_helper.to_array(constants[name]).ravel() for name in ("mean", "deviation"))
    changed = np.array(radiometric_bands or [False] * len(mean)) & (observed[1] > 0) & (reference.variances[stack] > 0)
    width = np.sqrt(np.divide(observed[1], reference.variances[stack], out=np.ones_like(mean), where=changed))
    moved = np.where(changed, observed[0] - (reference.means[stack] - mean) * width, mean)
    for name, values in (("mean", moved), ("deviation", deviation * width)):
        shaped = np.reshape(values, (1, -1, 1, 1)).astype(np.float32)
        constants[name].CopyFrom(numpy_helper.from_array(shaped, name))
    return result


def _moments(name: str) -> list[onnx.NodeProto]:
    """Return nodes that measure a convolution's output."""
    return [
        _node("ReduceMean", [f"{name}_raw", "over"], f"{name}_mean", keepdims=1),
        _node("Sub", [f"{name}_raw", f"{name}_mean"], f"{name}_centred"),
        _node("Mul", [f"{name}_centred", f"{name}_centred"], f"{name}_square"),
        _node("ReduceMean", [f"{name}_square", "over"], f"{name}_variance", keepdims=1),
    ]


def _normalisation(probe: onnx.ModelProto, name: str, target: FeatureStatistics) -> list[onnx.NodeProto]:
    """Return nodes that normalise an output to the target statistics."""
    deviation = np.sqrt(target.variances[name] + _VARIANCE_OFFSET)
    for suffix, values in (("target", target.means[name]), ("width", deviation)):
        shaped = np.reshape(values, (1, -1, 1, 1)).astype(np.float32)
        probe.graph.initializer.append(numpy_helper.from_array(shaped, f"{name}_{suffix}"))
    return [
        _node("Add", [f"{name}_variance", "offset"], f"{name}_raised"),
        _node("Sqrt", [f"{name}_raised"], f"{name}_deviation"),
        _node("Div", [f"{name}_centred", f"{name}_deviation"], f"{name}_standard"),
        _node("Mul", [f"{name}_standard", f"{name}_width"], f"{name}_scaled"),
        _node("Add", [f"{name}_scaled", f"{name}_target"], name),
    ]


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def _constant(graph: onnx.ModelProto, name: str) -> Floats:
    values: Floats = numpy_helper.to_array(next(part for part in graph.graph.initializer if part.name == name))
    return values
