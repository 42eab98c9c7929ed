"""Tests of the arithmetic and the memory that are derived from a graph."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_writer import to_onnx
from operator_networks import Network, lite0_unet
from talud.engine.costs import bare_pass, cropped_pass
from talud.engine.cropping import Sides, crop_network
from talud.engine.margins import Margin, NetworkGeometry, receptive_field
from talud.engine.tiling import Edges
from talud.networks import unet


@pytest.fixture(scope="module")
def described() -> NetworkGeometry:
    """Return the study's U-Net: 7 bands, 32 filters, depth 4."""
    scaling = np.zeros(7, np.float32), np.ones(7, np.float32)
    return NetworkGeometry(to_onnx(unet.build(32, 4, *scaling, seed=1)))


@pytest.fixture(scope="module", params=[False, True], ids=["all stages", "cut at 1/16"])
def lite0(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return lite0_unet(cut=request.param)


def counted(graph: onnx.ModelProto, height: int, width: int) -> int:
    """Count the multiply-adds of convolutions with the shape inference of ONNX."""
    sized = onnx.ModelProto()
    sized.CopyFrom(graph)
    for dimension, side in zip(sized.graph.input[0].type.tensor_type.shape.dim[2:], (height, width), strict=True):
        dimension.dim_value = side
    inferred = onnx.shape_inference.infer_shapes(sized, strict_mode=True).graph
    pixels = {
        value.name: np.prod([side.dim_value for side in value.type.tensor_type.shape.dim[2:]])
        for value in (*inferred.value_info, *inferred.output)
    }
    kernels = {constant.name: int(np.prod(constant.dims)) for constant in graph.graph.initializer}
    return sum(
        int(pixels[node.output[0]]) * kernels[node.input[1]] for node in graph.graph.node if node.op_type == "Conv"
    )


def test_arithmetic_of_unet_equals_closed_form(described: NetworkGeometry) -> None:
    """Each level has two convolutions of 3 × 3 on the way down, one of 3 × 3 after the up-sampling, and two more."""
    widths = [32 * 2**level for level in range(5)]
    incoming = [7, *widths[:-1]]
    down = sum(
        9 * width * (before + width) / 4**level
        for level, (before, width) in enumerate(zip(incoming, widths, strict=True))
    )
    up = sum(9 * (2 + 2 + 1) * width**2 / 4**level for level, width in enumerate(widths[:-1]))
    expected = down + up + 32
    assert bare_pass(described).arithmetic(16, 32) / (16 * 32) == pytest.approx(expected) == 250_880


@pytest.mark.parametrize(
    ("core", "plain", "cropped"), [(256, 3.52, 1.70), (512, 2.07, 1.31), (1024, 1.49, 1.15), (2048, 1.23, 1.07)]
)
def test_tiles_cost_as_much_as_documented(described: NetworkGeometry, core: int, plain: float, cropped: float) -> None:
    bare, axis = bare_pass(described), described.cropped_axis(Margin(112, 112))
    alone, window = bare.arithmetic(core, core), core + 2 * 112
    assert bare.arithmetic(window, window) / alone == pytest.approx(plain, abs=0.005)
    assert cropped_pass(described, axis, axis).arithmetic(core, core) / alone == pytest.approx(cropped, abs=0.005)


@pytest.mark.parametrize(
    "edges", [(False, False, False, False), (True, False, False, True), (False, True, True, False)]
)
def test_arithmetic_of_a_cropped_graph_is_counted_exactly(
    lite0: onnx.ModelProto, edges: tuple[bool, bool, bool, bool]
) -> None:
    halo, network, core = receptive_field(lite0).halo, NetworkGeometry(lite0), (96, 64)
    around = Sides(halo, halo, halo, halo).without_edges(Edges(*edges))
    rows, columns = network.cropped_axis(around.rows), network.cropped_axis(around.columns)
    expected = counted(
        crop_network(lite0, Edges(*edges), halo),
        core[0] + sum(rows.given["stack"]),
        core[1] + sum(columns.given["stack"]),
    )
    assert cropped_pass(network, rows, columns).arithmetic(*core) == pytest.approx(expected, rel=1e-9)


def test_lite0_unet_is_affordable() -> None:
    """The margins and the arithmetic are those that were derived before, by another program."""
    for cut, margin, alignment, core, most in ((True, 201, 16, 704, 1.25), (False, 489, 32, 2048, 1.4)):
        network = NetworkGeometry(lite0_unet(cut=cut))
        field, axis = receptive_field(network.model), network.cropped_axis(Margin(512, 512))
        assert (max(network.margins()["stack"]), field.alignment) == (margin, alignment)
        cost = cropped_pass(network, axis, axis).arithmetic(core, core)
        assert 1.05 < cost / bare_pass(network).arithmetic(core, core) < most


def test_no_crop_has_a_large_kernel(lite0: onnx.ModelProto) -> None:
    """The margins before and after differ by odd numbers of pixels."""
    graph = crop_network(lite0, Edges(False, False, False, False), receptive_field(lite0).halo)
    taps = [constant.dims[2:] for constant in graph.graph.initializer if "_within_" in constant.name]
    assert len(taps) >= 8
    assert max(itertools.chain.from_iterable(taps)) <= 4


def test_live_bytes_of_a_small_graph_are_counted_by_hand() -> None:
    """A convolution, its ReLU in place, a Concat of it and the stack, and a last convolution."""
    network = Network()
    first = network.node("Relu", network.convolution("stack", 3, incoming=3, outgoing=16))
    network.convolution(network.node("Concat", first, "stack", axis=1), 1, incoming=19, outgoing=1)
    graph = NetworkGeometry(network.finished("probability"))
    # The stack has 3 float32 bands: 12 bytes a pixel. The others have blocks of 16 channels: 64 and 128 bytes.
    assert bare_pass(graph).peak_bytes(10, 20) == (12 + 64 + 128) * 200
    assert bare_pass(graph).live_bytes[:, 0].tolist() == [76, 76, 204, 204]


def test_weights_of_reduced_precision_count_as_arithmetic() -> None:
    network = Network()
    name = network.convolution("stack", 3, incoming=3, outgoing=1)
    kernel = next(constant for constant in network.constants if len(constant.dims) == 4)
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 3, 3, 3), np.int8), kernel.name))
    scale = network.constant(0.1)
    network.nodes[0].input[1] = "weights"
    network.nodes.insert(0, helper.make_node("DequantizeLinear", [kernel.name, scale], ["weights"]))
    assert name == "conv_0"
    assert bare_pass(NetworkGeometry(network.finished("probability"))).arithmetic(10, 10) == 2700
