"""Tests of exact tiling for each operator that a network may contain."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from operator_networks import CHANNELS, Network
from stack_files import noise
from talud.engine.margins import Margin, NetworkGeometry, receptive_field
from talud.engine.runtime import Model
from talud.engine.tiling import round_up
from talud.errors import ModelError


def normalised(network: Network, x: str) -> str:
    values = [network.random.uniform(0.5, 1.5, CHANNELS) for _ in range(4)]
    return network.node("BatchNormalization", x, *(network.constant(one) for one in values))


def swish(network: Network, x: str) -> str:
    return network.node("Mul", x, network.node("Sigmoid", x))


def some_bands(network: Network, x: str) -> str:
    bounds = [network.constant(value, np.int64) for value in ([2], [7], [1])]
    return network.convolution(network.node("Slice", x, *bounds), 3, incoming=5)


def residual(network: Network, x: str) -> str:
    """Append a block as in ResNet, whose addition ONNX Runtime computes within a convolution."""
    inner = network.node("Relu", network.convolution(x, 3))
    return network.node("Relu", network.node("Add", x, network.convolution(inner, 3)))


def strided_residual(network: Network, x: str) -> str:
    """Append a block that adds two strided branches of different reach."""
    inner = network.node("Relu", network.convolution(network.convolution(x, 5), 3, stride=2))
    return network.node("Add", network.convolution(inner, 3), network.convolution(x, 1, stride=2))


def added_level(network: Network, x: str) -> str:
    """Add a coarser level, as in a feature pyramid."""
    coarse = network.node("Relu", network.convolution(network.convolution(x, 5, stride=2), 3))
    return network.node("Add", network.upsampled(coarse), network.convolution(x, 1))


def inverted_residual(network: Network, x: str) -> str:
    """Append a block as in EfficientNet-Lite: expansion, depth-wise convolution, projection, addition."""
    wide = network.relu6(network.convolution(x, 1, outgoing=32))
    spread = network.relu6(network.convolution(wide, 5, group=32, incoming=32, outgoing=32))
    return network.node("Add", network.convolution(spread, 1, incoming=32), x)


OPERATORS: dict[str, tuple[int, Callable[[Network, str], str]]] = {
    "strided convolution 3": (2, lambda network, x: network.convolution(x, 3, stride=2)),
    "strided convolution 5": (2, lambda network, x: network.convolution(x, 5, stride=2)),
    "strided convolution 1": (2, lambda network, x: network.convolution(x, 1, stride=2)),
    "strided depth-wise convolution": (2, lambda network, x: network.convolution(x, 5, stride=2, group=CHANNELS)),
    "depth-wise convolution": (1, lambda network, x: network.convolution(x, 3, group=CHANNELS)),
    "grouped convolution": (1, lambda network, x: network.convolution(x, 3, group=2)),
    "max pooling 3": (
        2,
        lambda network, x: network.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    ),
    "average pooling": (2, lambda network, x: network.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])),
    "average pooling 3": (
        1,
        lambda network, x: network.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ),
    "normalisation": (1, lambda network, x: normalised(network, network.convolution(x, 3))),
    "swish": (1, lambda network, x: swish(network, network.convolution(x, 3))),
    "hard swish": (1, lambda network, x: network.node("HardSwish", network.convolution(x, 3))),
    "ReLU6": (1, lambda network, x: network.relu6(network.convolution(x, 3))),
    "some bands": (1, some_bands),
    "residual": (1, residual),
    "strided residual": (2, strided_residual),
    "added level": (2, lambda network, x: network.convolution(added_level(network, x), 3, stride=2)),
    "inverted residual": (1, inverted_residual),
    "strided inverted residual": (
        2,
        lambda network, x: inverted_residual(network, network.convolution(x, 3, stride=2)),
    ),
}


def network_with(name: str) -> onnx.ModelProto:
    """Return a network in which one level has an operator, and the full resolution joins it."""
    stride, operator = OPERATORS[name]
    network = Network()
    clean = network.node("Where", network.node("IsNaN", "stack"), network.constant(0.0), "stack")
    scaled = network.node("Mul", clean, network.constant(0.01))
    stem = network.node("Relu", network.convolution(scaled, 3, incoming=3))
    deep = operator(network, stem)
    level = network.upsampled(deep) if stride == 2 else deep
    joined = network.node("Concat", level, stem, axis=1)
    last = network.node("Relu", network.convolution(joined, 3, incoming=2 * CHANNELS))
    network.node("Sigmoid", network.convolution(last, 1, outgoing=1))
    return network.finished("probability")


@pytest.fixture(scope="module")
def networks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Save a network with each operator as a model."""
    contract = Model.load(tiny_model).contract
    folder, models = tmp_path_factory.mktemp("operators"), {}
    for number, name in enumerate(OPERATORS):
        graph = network_with(name)
        field = receptive_field(graph)
        part = contract.input.model_copy(update={"halo": field.halo, "alignment": field.alignment})
        helper.set_model_props(graph, contract.model_copy(update={"input": part}).to_metadata())
        onnx.save(graph, folder / f"{number}.onnx")
        models[name] = Model.load(folder / f"{number}.onnx")
    return models


def one_pass(model: Model, stack: np.ndarray) -> np.ndarray:
    """Return the output of one pass over a padded raster."""
    height, width = stack.shape[1:]
    cell = model.contract.input.alignment
    sides = ((0, 0), (0, round_up(height, cell) - height), (0, round_up(width, cell) - width))
    whole = np.pad(stack, sides, constant_values=np.nan)
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": whole[np.newaxis]})[0][0, 0, :height, :width]


def tiles(model: Model, stack: np.ndarray, side: int) -> np.ndarray:
    """Return the output of tiles of a side."""
    height, width = stack.shape[1:]
    tiling = model.tiling((height, width), side)
    padded = np.full((len(stack), *tiling.padded), np.nan, np.float32)
    padded[:, :height, :width] = stack
    result = np.full((height, width), np.nan, np.float32)
    for tile in tiling:
        window = np.ascontiguousarray(padded[:, *tile.window.toslices()])
        result[tile.core.toslices()] = model.run_cores([window], [tile])[0]
    return result


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("size", [(61, 83), (33, 9)])
def test_tiles_equal_one_pass_for_each_operator(networks: dict[str, Model], name: str, size: tuple[int, int]) -> None:
    model, stack = networks[name], noise(*size)
    stack[:, 20:30, 2:7] = np.nan
    whole = one_pass(model, stack)
    for side in (16, 22, 38):
        assert np.array_equal(tiles(model, stack, side), whole), side


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.sampled_from(list(OPERATORS)), st.integers(1, 70), st.integers(1, 70), st.integers(2, 40), st.integers(0, 999)
)
def test_any_geometry_equals_one_pass_for_each_operator(
    networks: dict[str, Model], name: str, height: int, width: int, side: int, seed: int
) -> None:
    stack = noise(height, width, seed=seed)
    assert np.array_equal(tiles(networks[name], stack, side), one_pass(networks[name], stack))


@pytest.mark.parametrize(("kernel", "before", "after"), [(1, 0, 0), (3, 0, 1), (5, 1, 2), (7, 2, 3)])
def test_strided_convolution_needs_more_pixels_after_the_core(kernel: int, before: int, after: int) -> None:
    """The padding "same" of TensorFlow adds the odd pixel at the end."""
    network = Network()
    network.upsampled(network.convolution("stack", kernel, stride=2, incoming=3, outgoing=1))
    assert NetworkGeometry(network.finished("probability")).margins()["stack"] == Margin(before, after)


def test_pixels_outside_the_margin_have_no_effect(networks: dict[str, Model]) -> None:
    for name, side in itertools.product(OPERATORS, ("before", "after")):
        model = networks[name]
        margin = NetworkGeometry(onnx.load(model.path)).margins()["stack"]
        length, cell = 64, slice(24, 40)
        base = noise(length, length)
        reach = margin.before if side == "before" else margin.after
        first = cell.start - reach if side == "before" else cell.stop - 1 + reach
        outside = first - 1 if side == "before" else first + 1
        expected = one_pass(model, base)[cell, cell]
        changed = base.copy()
        changed[:, outside] = 9e5
        assert np.array_equal(one_pass(model, changed)[cell, cell], expected), (name, side)


def network_with_global_operator(operator: str) -> onnx.ModelProto:
    """Return a network that scales its features by a statistic of the image."""
    network = Network()
    values = network.convolution("stack", 3, incoming=3)
    inputs = {
        "InstanceNormalization": [network.constant(np.ones(CHANNELS)), network.constant(np.ones(CHANNELS))],
        "ReduceMean": [network.constant([2, 3], np.int64)],
        "ReduceMax": [network.constant([-1, -2], np.int64)],
    }
    changed = network.node(operator, values, *inputs.get(operator, []))
    gate = network.node("Sigmoid", network.convolution(changed, 1))
    network.node("Sigmoid", network.convolution(network.node("Mul", values, gate), 1, outgoing=1))
    return network.finished("probability")


@pytest.mark.parametrize(
    "operator", ["GlobalAveragePool", "InstanceNormalization", "ReduceMean", "ReduceMax", "Softmax"]
)
def test_operator_that_sees_the_whole_image_is_refused(tiny_model: Path, tmp_path: Path, operator: str) -> None:
    """The message names the operator and the reason."""
    graph = network_with_global_operator(operator)
    reason = f"'{operator}' .* depends on the whole image, so a map could not be computed in tiles"
    with pytest.raises(ModelError, match=reason):
        receptive_field(graph)
    helper.set_model_props(graph, Model.load(tiny_model).contract.to_metadata())
    onnx.save(graph, tmp_path / "global.onnx")
    with pytest.raises(ModelError, match=rf"global\.onnx: .*{reason}"):
        Model.load(tmp_path / "global.onnx")


def test_softmax_along_the_bands_is_not_global() -> None:
    network = Network()
    network.node("Softmax", network.convolution("stack", 3, incoming=3, outgoing=1), axis=1)
    with pytest.raises(ModelError, match=r"'Softmax' .* is not known"):
        receptive_field(network.finished("probability"))
