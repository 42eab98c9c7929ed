"""Tests of the halo and alignment derived from a graph."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from onnx_writer import to_onnx
from talud.engine.margins import ReceptiveField, receptive_field
from talud.errors import ModelError
from talud.networks import unet


def blank(depth: int) -> keras.Model:
    return unet.build(2, depth, np.zeros(1, np.float32), np.ones(1, np.float32), seed=1)


@pytest.mark.parametrize(("depth", "halo"), [(1, 10), (2, 28), (3, 56), (4, 112)])
def test_receptive_field_of_the_described_unet(depth: int, halo: int) -> None:
    """The halos are 10, 26, 54 and 110 rows, rounded up to the lattice.

    The first one was counted by hand for depth 1.
    """
    assert receptive_field(to_onnx(blank(depth))) == ReceptiveField(halo, 2**depth)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("axis", [2, 3])
def test_halo_is_exact(depth: int, axis: int) -> None:
    model = blank(depth)
    for layer in model.layers[2:]:  # with positive weights no ReLU blocks a path to the output
        layer.set_weights([np.abs(values) * 0.5 for values in layer.get_weights()])
    graph = to_onnx(model)
    graph.graph.output[0].name = "probability_linear"  # before the sigmoid, which would round off small influences
    field = receptive_field(to_onnx(model))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    length, cell = 32 * 2**depth, field.alignment
    core = slice(length // 2, length // 2 + 2 * cell)
    shape = [1, 1, 2 * cell, 2 * cell]
    shape[axis] = length
    stack = np.random.default_rng(2).random(shape, np.float32)

    def core_output(image: np.ndarray) -> np.ndarray:
        return np.moveaxis(session.run(None, {"stack": image})[0], axis, 0)[core]

    def changed_outside(reach: int) -> np.ndarray:
        image = np.moveaxis(stack.copy(), axis, 0)
        image[: core.start - reach] += 1e6
        image[core.stop + reach :] += 1e6
        return np.ascontiguousarray(np.moveaxis(image, 0, axis))

    reference = core_output(stack)
    np.testing.assert_array_equal(core_output(changed_outside(field.halo)), reference)
    assert np.any(core_output(changed_outside(field.halo - cell)) != reference)


def test_operator_of_unknown_reach_is_refused() -> None:
    graph = to_onnx(blank(1))
    graph.graph.node[-1].CopyFrom(
        helper.make_node("Softmax", [graph.graph.node[-1].input[0]], ["probability"], name="end")
    )
    with pytest.raises(ModelError, match="'Softmax'"):
        receptive_field(graph)


def test_interpolating_upsampling_is_refused() -> None:
    graph = to_onnx(blank(1))
    resize = next(node for node in graph.graph.node if node.op_type == "Resize")
    next(attribute for attribute in resize.attribute if attribute.name == "mode").s = b"linear"
    with pytest.raises(ModelError, match="up-sampling"):
        receptive_field(graph)


def test_dilation_and_stride_increase_the_reach() -> None:
    """A convolution of 5 with dilation 3 reaches 6 pixels.

    After a pooling by 4 it reaches 24 pixels and the rest of the lattice cell.
    """
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["a", "w"], ["b"], kernel_shape=[5, 5], dilations=[3, 3], pads=[6, 6, 6, 6]),
        helper.make_node(
            "Resize", ["b", "", "s"], ["y"],
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        ),
    ]  # fmt: skip
    constants = [
        onnx.numpy_helper.from_array(np.ones((1, 1, 5, 5), np.float32), "w"),
        onnx.numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "s"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [1, 1, "h", "w"]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], constants))
    assert receptive_field(model) == ReceptiveField(halo=24, alignment=4)
