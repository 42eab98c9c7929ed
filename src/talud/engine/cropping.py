"""Networks cropped to the pixels that a core needs.

A plain halo computes the whole window in every layer. Most layers need far less of it: in the described U-Net of depth
4, the output needs 3 pixels around the core of the up-sampled map at full resolution, then 5, 6 and 6 pixels in the
coarser levels, and only the first convolution needs all 110. This module therefore derives a second graph, with the
same weights, whose layers compute only the margin that is needed:

- A convolution does not pad, and so loses the pixels that its kernel reaches: no pixel is computed and thrown away, and
  nothing is copied.
- Where two tensors meet, at a skip connection, the wider one is cropped to the narrower. The crop is a depth-wise
  convolution whose kernel is a single 1 among zeros, spaced by the dilation: it keeps the blocked layout in which ONNX
  Runtime stores a convolution's output, whereas a Slice costs two reorderings of the whole tensor in addition to its
  copy. Tensors of other types than float32 are not stored in that layout, and are sliced.
- The branches of a residual block keep one shape, so that ONNX Runtime rounds their sum as in the plain graph
  (`NetworkGeometry.cropped_axis`). The sum is cropped after the last block of a level.
- The few pixels that remain around the output are sliced off at the end.

Where the core reaches the edge of the raster, the window ends there, and the layers pad as in the plain graph: one pass
over the whole raster also sees zeros beyond the edge. Each layer's value at a pixel is then the same sum of the same
numbers as in that pass.

Multiply-adds per output pixel, relative to the bare core (7 bands, 32 filters, depth 4: 250,880, of which the encoder
has 27 %; a tile away from all edges):

| core | plain halo | decoder cropped | decoder and encoder cropped |
| ---- | ---------- | --------------- | --------------------------- |
|  256 |       3.52 |            1.87 |                        1.70 |
|  512 |       2.07 |            1.38 |                        1.31 |
| 1024 |       1.49 |            1.18 |                        1.15 |
| 2048 |       1.23 |            1.08 |                        1.07 |

The crops themselves account for 0.2 % of them.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import zip_longest
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from talud.engine.margins import Margin, NetworkGeometry
from talud.engine.session import Provider, open_session
from talud.engine.tiling import Edges
from talud.errors import ModelError

_MIN_EXTERNAL_BYTES = 1024  # size from which a constant is taken out of the graph
_MAX_TAPS = 4  # longest kernel of a crop that is made in one step
# Limit for the weights of all open sessions; reopening a session takes 40 ms.
SESSION_CACHE_BYTES = 320 * 10**6


class Sides(NamedTuple):
    """Pixels on four sides, in the order of ONNX's `pads`."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def of(cls, rows: Margin, columns: Margin) -> Sides:
        """Combine a row margin and a column margin."""
        return cls(rows.before, columns.before, rows.after, columns.after)

    @property
    def rows(self) -> Margin:
        """Margin of the rows."""
        return Margin(self.top, self.bottom)

    @property
    def columns(self) -> Margin:
        """Margin of the columns."""
        return Margin(self.left, self.right)

    def without_edges(self, edges: Edges) -> Sides:
        """Return the sides with 0 at the raster's edges."""
        return Sides(*(0 if at_edge else side for side, at_edge in zip(self, edges, strict=True)))


def crop_network(model: onnx.ModelProto, edges: Edges, halo: int) -> onnx.ModelProto:
    """Crop a graph to a core and its margin.

    Args:
        model: graph with one input and one output of the same scale; not modified.
        edges: sides on which the core reaches the raster's edge, where there is no margin.
        halo: pixels of context on the other sides, a multiple of the alignment. If they are fewer than the network
            needs, the result equals that of the plain graph on the core with this halo.

    Returns:
        A graph whose input is the core, with corners on the lattice, and the input's margin
            (`NetworkGeometry.margins` with the halo as limit) on the sides that are not on an edge; its output is the
            core.

    Raises:
        ModelError: The reach of an operator is not known.
    """
    network = NetworkGeometry(model)
    writer = _Writer(network, Sides(halo, halo, halo, halo).without_edges(edges))
    for node in network.nodes:
        writer.append(node)
    return writer.finished()


def split_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """Separate a graph from its large constants.

    Returns the graph, and the constants by name.

    Such a graph is derived and parsed in milliseconds, and all sessions that run it can share the arrays.
    """
    light, weights = onnx.ModelProto(), {}
    light.CopyFrom(model)
    for constant in light.graph.initializer:
        if len(constant.raw_data) < _MIN_EXTERNAL_BYTES:
            continue
        weights[constant.name] = numpy_helper.to_array(constant)
        constant.ClearField("raw_data")
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="in memory")
    return light, weights


class _Writer:
    """Writer of the cropped graph, node by node."""

    def __init__(self, network: NetworkGeometry, room: Sides) -> None:
        self.network = network
        self.axes = network.cropped_axis(room.rows), network.cropped_axis(room.columns)
        self.margins = {network.input: Sides.of(*(axis.given[network.input] for axis in self.axes))}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.makers = {node.output[0]: node for node in network.nodes}

    def append(self, node: onnx.NodeProto) -> None:
        """Write a node with the padding it needs."""
        output = node.output[0]
        if output not in self.axes[0].given:
            return
        names = self.network.variable_inputs(node)
        held = Sides.of(*(axis.held[output] for axis in self.axes))
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._crop(name, held) if name in names else name for name in node.input]
        for attribute in copy.attribute:
            if attribute.name == "pads":
                attribute.ints[:] = Sides.of(*(axis.pads[output] for axis in self.axes))
        self.nodes.append(copy)
        self.margins[output] = Sides.of(*(axis.given[output] for axis in self.axes))

    def finished(self) -> onnx.ModelProto:
        """Return the graph, its output sliced to the core."""
        plain = self.network.model.graph
        self._slice_output()
        body = helper.make_graph(
            [*self.network.constant_nodes, *self.nodes],
            plain.name,
            plain.input,
            plain.output,
            [*plain.initializer, *self.constants],
        )
        opset = self.network.model.opset_import
        return helper.make_model(body, opset_imports=opset, ir_version=self.network.model.ir_version)

    def _crop(self, name: str, sides: Sides) -> str:
        """Crop a tensor, and return the result's name."""
        margin = self.margins[name]
        if margin == sides:
            return name
        result = f"{name}_within_{'_'.join(map(str, sides))}"
        if result in self.margins:
            return result
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            self._dequantize_cropped(maker, sides, result)
        elif self.network.forms[name].dtype == np.float32:
            self._convolve(name, sides, result)
        else:
            self._slice(name, Sides(*(wide - narrow for wide, narrow in zip(margin, sides, strict=True))), result)
        self.margins[result] = sides
        return result

    def _dequantize_cropped(self, maker: onnx.NodeProto, sides: Sides, result: str) -> None:
        """Crop a dequantised tensor before its DequantizeLinear node.

        ONNX Runtime fuses an operator only with a DequantizeLinear node directly before it.
        """
        copy = onnx.NodeProto()
        copy.CopyFrom(maker)
        copy.name = copy.output[0] = result
        copy.input[0] = self._crop(maker.input[0], sides)
        self.nodes.append(copy)

    def _convolve(self, name: str, sides: Sides, result: str) -> None:
        """Crop a tensor by depth-wise convolutions."""
        margin, (channels, dtype) = self.margins[name], self.network.forms[name]
        steps = crop_steps((margin.rows, margin.columns), (sides.rows, sides.columns))
        for number, cuts in enumerate(steps, start=1):
            kernel = np.zeros((channels, 1, *(cut.taps for cut in cuts)), dtype)
            kernel[:, :, cuts[0].tap, cuts[1].tap] = 1
            output = result if number == len(steps) else f"{result}_step_{number}"
            inputs = [name, self._constant(f"{output}_kernel", kernel)]
            dilations = [cut.dilation for cut in cuts]
            self.nodes.append(
                helper.make_node("Conv", inputs, [output], name=output, group=channels, dilations=dilations)
            )
            name = output

    def _slice(self, name: str, off: Sides, result: str) -> None:
        ends = [-side or np.iinfo(np.int64).max for side in (off.bottom, off.right)]
        bounds = {"starts": [off.top, off.left], "ends": ends, "axes": [2, 3]}
        inputs = [self._constant(f"{result}_{bound}", np.array(values)) for bound, values in bounds.items()]
        self.nodes.append(helper.make_node("Slice", [name, *inputs], [result], name=f"{result}_slice"))

    def _slice_output(self) -> None:
        output = self.network.output
        left = self.margins[output]
        if not any(left):
            return
        wide = f"{output}_wide"
        self.nodes[-1].output[0] = wide
        self._slice(wide, left, output)

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name


class CutKernel(NamedTuple):
    """Kernel that crops along one axis.

    It is a single 1 among zeros, spaced by a dilation.

    Attributes:
        taps: length of the kernel.
        tap: position of the 1.
        dilation: spacing in pixels.
        before: pixels that it cuts off before the core.
        after: pixels that it cuts off after the core.
    """

    taps: int
    tap: int
    dilation: int
    before: int
    after: int

    @classmethod
    def of(cls, before: int, after: int) -> CutKernel:
        """Return the kernel that cuts off pixels on both sides."""
        dilation = gcd(before, after) or 1
        return cls((before + after) // dilation + 1, before // dilation, dilation, before, after)


def crop_steps(wide: tuple[Margin, Margin], narrow: tuple[Margin, Margin]) -> list[tuple[CutKernel, CutKernel]]:
    """Return the kernels that crop rows and columns, one convolution after the other.

    If two lengths have no large common divisor, a kernel that cuts off both would have hundreds of taps. The same
    number of pixels is then cut off on both sides, with three taps, and the rest on one side, with two.
    """
    rows, columns = (_cut_kernels(*each) for each in zip(wide, narrow, strict=True))
    return list(zip_longest(rows, columns, fillvalue=CutKernel.of(0, 0)))


def _cut_kernels(wide: Margin, narrow: Margin) -> list[CutKernel]:
    before, after = wide.before - narrow.before, wide.after - narrow.after
    kernel = CutKernel.of(before, after)
    if kernel.taps <= _MAX_TAPS:
        return [kernel]
    both = min(before, after)
    return [CutKernel.of(both, both), CutKernel.of(before - both, after - both)]


class CroppedSessions:
    """Sessions of a cropped network, opened on first use.

    Tiles come row by row, and a row has a left, a middle and a right tile, so at least three sessions are kept open.
    All nine kinds are kept if the weights are small, since workers may get the rows in any order. The sessions share
    the weights; each holds its own copy in ONNX Runtime's blocked layout.
    """

    def __init__(self, graph: onnx.ModelProto, provider: Provider, threads: int | None) -> None:
        self._provider, self._threads = provider, threads
        self._graph, self._weights = split_weights(graph)
        self.network = NetworkGeometry(self._graph)
        self.session = lru_cache(maxsize=self.cache_size)(self._open)
        self.margin = lru_cache(maxsize=None)(self._margin)

    @property
    def weight_bytes(self) -> int:
        """Size of one copy of the weights in bytes."""
        return sum(values.nbytes for values in self._weights.values())

    @property
    def cache_size(self) -> int:
        """Number of sessions that stay open."""
        return min(max(SESSION_CACHE_BYTES // max(self.weight_bytes, 1), 3), 9)

    def _open(self, edges: Edges, halo: int) -> Any:
        graph = crop_network(self._graph, edges, halo).SerializeToString()
        return open_session(graph, self._provider, self._weights, self._threads)

    def _margin(self, halo: int) -> Margin | None:
        """Return the margin that a cropped network needs around a core.

        It is None if the network cannot be cropped, because the reach of an operator is not known.

        Args:
            halo: pixels of context, a multiple of the alignment.
        """
        try:
            return self.network.margins(Margin(halo, halo))[self.network.input]
        except ModelError:
            return None
