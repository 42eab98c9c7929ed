"""Arithmetic and memory of a pass, derived from the graph.

The number of pixels of a tensor is a polynomial in the height H and width W of a core: (H / s + m) · (W / s + n),
where s is the tensor's pixel size in pixels of the input, and m and n are its margins. Multiply-adds and bytes are
therefore vectors of four coefficients, of H·W, H, W and 1, and a tiling is evaluated without building its graphs.

Only convolutions count as arithmetic, among them the depth-wise ones that crop a tensor: all other operators together
take less than a twentieth of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from talud.engine.cropping import crop_steps
from talud.engine.margins import POINTWISE, CroppedAxis, Margin, NetworkGeometry
from talud.engine.tiling import round_up
from talud.errors import ModelError

BLOCK_CHANNELS = 16  # largest block of ONNX Runtime's layout, that of processors with AVX-512
# Coefficients of H·W, H, W and 1.
Polynomial = NDArray[np.float64]
_Margins = tuple[Margin, Margin]  # of rows and columns
_NOTHING: Polynomial = np.zeros(4)


@dataclass(frozen=True)
class PassCost:
    """Cost of a pass over a core of any size.

    Attributes:
        multiply_adds: coefficients of the multiply-adds.
        live_bytes: coefficients of the bytes of all tensors that are alive at each step, (steps, 4).
    """

    multiply_adds: Polynomial
    live_bytes: NDArray[np.float64]

    def arithmetic(self, height: int, width: int) -> float:
        """Return the multiply-adds of a pass over a core."""
        return float(self.multiply_adds @ _monomials(height, width))

    def peak_bytes(self, height: int, width: int) -> float:
        """Return the largest sum of the bytes of tensors that are alive at once.

        An element-wise operator overwrites an input that is not needed afterwards, as in ONNX Runtime. The input is
        alive throughout, since it belongs to the caller.
        """
        return float((self.live_bytes @ _monomials(height, width)).max())


def bare_pass(network: NetworkGeometry) -> PassCost:
    """Return the cost of the plain graph on a window.

    If the reach of an operator is not known, each tensor counts with as many pixels as the input.
    """
    outputs = [name for node in network.nodes for name in node.output]
    none = dict.fromkeys((network.input, *outputs), Margin(0, 0))
    axis = CroppedAxis(none, none, none)
    return cropped_pass(network, axis, axis)


def cropped_pass(network: NetworkGeometry, rows: CroppedAxis, columns: CroppedAxis) -> PassCost:
    """Return the cost of a cropped graph (`talud.engine.cropping`) on a core.

    Args:
        network: geometry of the plain graph.
        rows: margins of the rows.
        columns: margins of the columns.

    Raises:
        ModelError: The graph contradicts itself.
    """
    steps = list(_Steps(network, rows, columns))
    multiply_adds = np.sum([step.multiply_adds for step in steps], axis=0)
    return PassCost(multiply_adds, _live_bytes(network.input, _input_bytes(network, rows, columns), steps))


class _Step(NamedTuple):
    """Operator of a graph.

    Attributes:
        output: name of its output.
        inputs: names of its inputs that are not constant.
        bytes: size of its output.
        multiply_adds: its arithmetic.
        overwrites: whether it may write to the memory of an input.
    """

    output: str
    inputs: list[str]
    bytes: Polynomial
    multiply_adds: Polynomial
    overwrites: bool


class _Steps:
    """Operators of a cropped graph in their order."""

    def __init__(self, network: NetworkGeometry, rows: CroppedAxis, columns: CroppedAxis) -> None:
        self.network, self.axes = network, (rows, columns)
        try:
            self.scales = network.scales()
        except ModelError:
            self.scales = {}
        self.kernels = _kernel_sizes(network)
        # Tensors that a convolution has written, whose channels ONNX Runtime stores in blocks.
        self.blocked: set[str] = set()

    def __iter__(self) -> Iterator[_Step]:
        """Yield the operators."""
        crops: set[str] = set()
        for node in self.network.nodes:
            output = node.output[0]
            if output not in self.axes[0].given:
                continue
            if node.op_type == "Conv" or not self.blocked.isdisjoint(self.network.variable_inputs(node)):
                self.blocked.add(output)
            inputs = []
            for name in self.network.variable_inputs(node):
                wide = self.axes[0].given[name], self.axes[1].given[name]
                narrow = self.axes[0].held[output], self.axes[1].held[output]
                if wide == narrow:
                    inputs.append(name)
                    continue
                inputs.append(f"{name}_within_{narrow}")
                if inputs[-1] not in crops:
                    crops.add(inputs[-1])
                    yield from self._crop(name, inputs[-1], wide, narrow)
            pixels = self._pixels(output, (self.axes[0].given[output], self.axes[1].given[output]))
            arithmetic = pixels * self.kernels.get(node.input[1], 0) if node.op_type == "Conv" else _NOTHING
            yield _Step(output, inputs, pixels * self._pixel_bytes(output), arithmetic, node.op_type in POINTWISE)

    def _crop(self, name: str, result: str, wide: _Margins, narrow: _Margins) -> Iterator[_Step]:
        """Yield the steps that crop a tensor."""
        source, channels, margins = name, _channels(self.network, name), wide
        for number, cuts in enumerate(crop_steps(wide, narrow), start=1):
            left = [
                Margin(margin.before - cut.before, margin.after - cut.after)
                for margin, cut in zip(margins, cuts, strict=True)
            ]
            margins = left[0], left[1]
            pixels, taps = self._pixels(name, margins), cuts[0].taps * cuts[1].taps
            output = result if margins == narrow else f"{result}_step_{number}"
            size = pixels * self._pixel_bytes(name)
            yield _Step(output, [source], size, pixels * channels * taps, overwrites=False)
            source = output

    def _pixel_bytes(self, name: str) -> int:
        return _pixel_bytes(self.network, name, BLOCK_CHANNELS if name in self.blocked else 1)

    def _pixels(self, name: str, margins: _Margins) -> Polynomial:
        return _area(self.scales.get(name, 1), margins)


def _area(scale: int, margins: _Margins) -> Polynomial:
    """Return the pixels of a tensor with margins of rows and columns."""
    rows, columns = (sum(margin) for margin in margins)
    return np.array([1 / scale**2, columns / scale, rows / scale, rows * columns])


def _monomials(height: int, width: int) -> NDArray[np.float64]:
    return np.array([height * width, height, width, 1], np.float64)


def _input_bytes(network: NetworkGeometry, *axes: CroppedAxis) -> Polynomial:
    return _area(1, (axes[0].given[network.input], axes[1].given[network.input])) * _pixel_bytes(network, network.input)


def _live_bytes(source: str, source_bytes: Polynomial, steps: list[_Step]) -> NDArray[np.float64]:
    """Return the bytes of all tensors that are alive at each step."""
    last_use = {name: index for index, step in enumerate(steps) for name in step.inputs}
    sizes = {source: source_bytes} | {step.output: step.bytes for step in steps}
    alive, live = source_bytes.copy(), []
    for index, step in enumerate(steps):
        dying = [name for name in dict.fromkeys(step.inputs) if last_use[name] == index and name != source]
        reused = step.overwrites and any(np.array_equal(sizes[name], step.bytes) for name in dying)
        live.append(alive + (0 if reused else step.bytes))
        alive = alive + step.bytes - sum((sizes[name] for name in dying), _NOTHING)
    return np.array(live)


def _channels(network: NetworkGeometry, name: str) -> int:
    """Return a tensor's channels; if not stated, the most of any tensor."""
    form = network.forms.get(name)
    return (
        form.channels if form and form.channels else max((each.channels for each in network.forms.values()), default=1)
    )


def _pixel_bytes(network: NetworkGeometry, name: str, block: int = 1) -> int:
    form = network.forms.get(name)
    return round_up(_channels(network, name), block) * (form.dtype.itemsize if form else 4)


def _kernel_sizes(network: NetworkGeometry) -> dict[str, int]:
    """Return the number of weights by the name of each constant.

    The weights of a network of reduced precision pass through operators, such as DequantizeLinear, whose first input
    they are.
    """
    sizes = {constant.name: prod(constant.dims) for constant in network.model.graph.initializer}
    for node in network.constant_nodes:
        if node.input and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    return sizes
