"""Small networks, written operator by operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16  # ONNX Runtime's blocked layout holds blocks of 8 or 16
# Stages of EfficientNet-Lite0: expansion, channels, kernel, stride, number of blocks.
_LITE0_STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)


class Network:
    """Writer of a small graph: a stem, operators under test, and a head that joins both."""

    def __init__(self, bands: int = 3) -> None:
        self.bands = bands
        self.random = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def convolution(
        self,
        x: str,
        kernel: int,
        *,
        stride: int = 1,
        group: int = 1,
        incoming: int = CHANNELS,
        outgoing: int = CHANNELS,
    ) -> str:
        """Append a convolution with the padding "same" of TensorFlow, for sides that are multiples of the stride."""
        total = max(kernel - stride, 0)
        pads = [total // 2] * 2 + [total - total // 2] * 2
        weights = self.random.normal(
            0, (incoming // group * kernel**2) ** -0.5, (outgoing, incoming // group, kernel, kernel)
        )
        return self.node(
            "Conv",
            x,
            self.constant(weights),
            self.constant(self.random.normal(0, 0.1, outgoing)),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=pads,
            group=group,
        )

    def upsampled(self, x: str) -> str:
        form = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", x, "", self.constant([1, 1, 2, 2]), **form)

    def finished(self, output: str) -> onnx.ModelProto:
        self.nodes[-1].output[0] = output
        sides = ["batch", "height", "width"]
        body = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("stack", TensorProto.FLOAT, [sides[0], self.bands, *sides[1:]])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [sides[0], 1, *sides[1:]])],
            self.constants,
        )
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(0), self.constant(6))


def lite0_unet(bands: int = 7, cut: bool = False) -> onnx.ModelProto:
    """Return a U-Net whose encoder is EfficientNet-Lite0, with random weights.

    Args:
        bands: number of bands.
        cut: whether the encoder ends after the stages at 1/16 of the resolution.
    """
    network, outgoing = Network(bands), [256, 128, 64, 32, 16]
    clean = network.node("Where", network.node("IsNaN", "stack"), network.constant(0.0), "stack")
    level = network.node("Mul", clean, network.constant(0.01))
    skips = [(level, bands)]
    level, width = network.relu6(network.convolution(level, 3, stride=2, incoming=bands, outgoing=32)), 32
    for expansion, channels, kernel, stride, blocks in _LITE0_STAGES[: 5 if cut else None]:
        for number in range(blocks):
            step = stride if number == 0 else 1
            if step == 2:
                skips.append((level, width))
            level = _inverted_residual(network, level, (width, channels), (kernel, step, expansion))
            width = channels
    for (skip, more), channels in zip(reversed(skips), outgoing[-len(skips) :], strict=True):
        joined = network.node("Concat", network.upsampled(level), skip, axis=1)
        for incoming in (width + more, channels):
            joined = network.node("Relu", network.convolution(joined, 3, incoming=incoming, outgoing=channels))
        level, width = joined, channels
    network.node("Sigmoid", network.convolution(level, 1, incoming=width, outgoing=1))
    return network.finished("probability")


def _inverted_residual(network: Network, x: str, widths: tuple[int, int], form: tuple[int, int, int]) -> str:
    (incoming, outgoing), (kernel, stride, expansion) = widths, form
    inner, wide = x, incoming * expansion
    if expansion > 1:
        inner = network.relu6(network.convolution(x, 1, incoming=incoming, outgoing=wide))
    inner = network.convolution(inner, kernel, stride=stride, group=wide, incoming=wide, outgoing=wide)
    inner = network.convolution(network.relu6(inner), 1, incoming=wide, outgoing=outgoing)
    return network.node("Add", inner, x) if stride == 1 and incoming == outgoing else inner
