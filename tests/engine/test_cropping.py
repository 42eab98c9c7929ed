"""Tests of networks cropped for tiles."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stack_files import noise
from talud.contract import ReducedPrecision
from talud.engine.cropping import Sides, crop_network
from talud.engine.margins import Margin, NetworkGeometry
from talud.engine.runtime import Model
from talud.engine.tiling import Edges, Tiling, round_up
from talud.quantization.precision import convert_to_float16, quantize_to_int8


def probability(graph: onnx.ModelProto | Path, stack: np.ndarray) -> np.ndarray:
    """Return the output of a plain session for a stack."""
    source = graph if isinstance(graph, Path) else graph.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": np.ascontiguousarray(stack)[np.newaxis]})[0][0, 0]


def padded(stack: np.ndarray, alignment: int) -> np.ndarray:
    height, width = stack.shape[1:]
    margins = ((0, 0), (0, round_up(height, alignment) - height), (0, round_up(width, alignment) - width))
    return np.pad(stack, margins, constant_values=np.nan)


def tiled(model: Model, stack: np.ndarray, tiling: Tiling) -> np.ndarray:
    whole, result = padded(stack, model.contract.input.alignment), np.full(stack.shape[1:], np.nan, np.float32)
    for tile in tiling:
        result[tile.core.toslices()] = model.run_cores([whole[:, *tile.window.toslices()]], [tile])[0]
    return result


@pytest.fixture
def plain_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the shape of each window that the plain network runs on."""
    shapes: list[tuple[int, ...]] = []
    run = Model.run

    def noted(self: Model, stack: np.ndarray) -> np.ndarray:
        shapes.append(stack.shape)
        return run(self, stack)

    monkeypatch.setattr(Model, "run", noted)
    return shapes


def test_margins_of_the_described_unet(unets: dict[int, Model]) -> None:
    """The expected margins were counted by hand.

    They are 3 pixels of the up-sampled map at full resolution, then 5, 6 and 6 in the coarser levels.
    """
    margins = NetworkGeometry(onnx.load(unets[4].path)).margins()
    assert [margins[f"up_{level}"] for level in range(4)] == [Margin(side, side) for side in (3, 5, 6, 6)]
    assert [margins[f"skip_{level}"] for level in range(4)] == [Margin(side, side) for side in (2, 4, 5, 5)]
    assert [margins[f"pool_{level}"] for level in range(4)] == [Margin(side, side) for side in (54, 26, 12, 5)]
    assert margins["stack"] == Margin(110, 110)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("size", [(379, 383), (381, 13), (9, 383)])
def test_cropped_tiles_equal_one_pass_bit_by_bit(
    unets: dict[int, Model], depth: int, size: tuple[int, int], plain_runs: list[tuple[int, ...]]
) -> None:
    """Tiles are at least as large as the halo, so that all of them are cropped."""
    model, stack = unets[depth], noise(*size)
    stack[1, size[0] // 3 : size[0] // 2, : size[1] // 2] = np.nan
    whole = probability(model.path, padded(stack, model.contract.input.alignment))[: size[0], : size[1]]
    tiling = model.tiling(size, 128)
    rims = [tile.edges for tile in tiling]
    assert len(set(rims)) == (9 if min(size) > 128 else 3)
    assert np.array_equal(tiled(model, stack, tiling), whole)
    assert not plain_runs


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(10, 90), st.integers(0, 2**32 - 1))
@example(1, 1, 1, 0)
@example(149, 150, 28, 0)
@example(150, 61, 32, 0)
def test_cropped_tiles_of_any_geometry_equal_one_pass(
    unets: dict[int, Model], height: int, width: int, tile: int, seed: int
) -> None:
    model, stack = unets[2], np.random.default_rng(seed).normal(125, 70, (3, height, width)).astype(np.float32)
    stack[stack > 300] = np.nan
    whole = probability(model.path, padded(stack, 4))[:height, :width]
    assert np.array_equal(tiled(model, stack, model.tiling((height, width), tile)), whole)


@pytest.mark.parametrize("edges", list(itertools.product([False, True], repeat=4)))
def test_cropped_graph_is_valid_for_all_edges(unets: dict[int, Model], edges: tuple[bool, bool, bool, bool]) -> None:
    """The reference pads the surroundings of the raster.

    The core's sides are therefore on its edge or far from it.
    """
    model = unets[3]
    graph = onnx.load(model.path)
    network, core = crop_network(graph, Edges(*edges), 56), (24, 40)
    onnx.checker.check_model(network, full_check=True)
    margin = NetworkGeometry(graph).margins()["stack"]
    top, left, bottom, right = Sides(56, 56, 56, 56).without_edges(Edges(*edges))
    image = noise(top + core[0] + bottom, left + core[1] + right)
    inner = Sides.of(margin, margin).without_edges(Edges(*edges))
    rows = slice(top - inner.top, top + core[0] + inner.bottom)
    columns = slice(left - inner.left, left + core[1] + inner.right)
    expected = probability(model.path, image)[top : top + core[0], left : left + core[1]]
    assert np.array_equal(probability(network, image[:, rows, columns]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(
    "edges", [(False, False, False, False), (True, False, False, True), (False, True, False, False)]
)
def test_smaller_halo_equals_the_plain_graph_on_its_window(
    unets: dict[int, Model], depth: int, edges: tuple[bool, bool, bool, bool]
) -> None:
    """The result is equal bit by bit, for every halo on the lattice."""
    model, cell = unets[depth], 2**depth
    graph, core = onnx.load(model.path), (3 * cell, 5 * cell)
    needed = max(NetworkGeometry(graph).margins()["stack"])
    for halo in range(0, model.halo + cell, cell):
        around = Sides(halo, halo, halo, halo).without_edges(Edges(*edges))
        image = noise(around.top + core[0] + around.bottom, around.left + core[1] + around.right)
        rows, columns = slice(around.top, around.top + core[0]), slice(around.left, around.left + core[1])
        expected = probability(model.path, image)[rows, columns]
        cut = [max(side - needed, 0) for side in around]  # pixels that the exact network does not read either
        read = image[:, cut[0] : image.shape[1] - cut[2], cut[1] : image.shape[2] - cut[3]]
        assert np.array_equal(probability(crop_network(graph, Edges(*edges), halo), read), expected), halo


def test_smaller_halo_costs_fewer_multiply_adds(unets: dict[int, Model]) -> None:
    """It also costs less than the plain graph on the same window."""
    graph, core = onnx.load(unets[4].path), 256
    inside = Edges(False, False, False, False)
    costs = {
        halo: multiply_adds(crop_network(graph, inside, halo), core + 2 * min(halo, 110)) for halo in range(0, 128, 16)
    }
    plain = {halo: multiply_adds(graph, core + 2 * halo) for halo in costs}
    assert list(costs.values()) == sorted(costs.values())
    assert costs[0] == plain[0]
    assert all(costs[halo] < plain[halo] for halo in costs if halo)
    assert costs[32] < 0.8 * costs[112]


def multiply_adds(graph: onnx.ModelProto, side: int) -> int:
    """Count the multiply-adds of the convolutions for a square input."""
    sized = onnx.ModelProto()
    sized.CopyFrom(graph)
    for dimension in sized.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = side
    inferred = onnx.shape_inference.infer_shapes(sized).graph.value_info
    pixels = {value.name: value.type.tensor_type.shape.dim[2].dim_value ** 2 for value in inferred}
    kernels = {constant.name: int(np.prod(constant.dims)) for constant in graph.graph.initializer}
    return sum(pixels[node.output[0]] * kernels[node.input[1]] for node in graph.graph.node if node.op_type == "Conv")


def test_margins_are_as_small_as_possible(unets: dict[int, Model]) -> None:
    """The outermost pixels of the input affect the output."""
    graph = onnx.load(unets[2].path)
    network = crop_network(graph, Edges(False, False, False, False), 112)
    side = 64 + 2 * NetworkGeometry(graph).margins()["stack"].before
    image = noise(side, side)
    before = probability(network, image)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        changed = image.copy()
        changed[edge] = -1e6
        assert (probability(network, changed) != before).any()


def test_cropping_shrinks_every_layer(unets: dict[int, Model]) -> None:
    """Each convolution computes only what the core and the lattice require."""
    graph = onnx.load(unets[4].path)
    network = crop_network(graph, Edges(False, False, False, False), 112)
    plain, core = NetworkGeometry(graph), 64
    margins, scales = plain.margins(), plain.scales()
    for value, side in ((network.graph.input[0], core + sum(margins["stack"])), (network.graph.output[0], core)):
        for dimension in value.type.tensor_type.shape.dim[2:]:
            dimension.dim_value = side
    inferred = onnx.shape_inference.infer_shapes(network, strict_mode=True).graph.value_info
    heights = {value.name: value.type.tensor_type.shape.dim[2].dim_value for value in inferred}
    for name in (node.output[0] for node in graph.graph.node[:-1]):
        left_over = heights[name] - core // scales[name] - sum(margins[name])
        assert 0 <= left_over <= 2 * 3, name


def test_network_with_an_unknown_operator_is_not_cropped(
    unets: dict[int, Model], tmp_path: Path, plain_runs: list[tuple[int, ...]]
) -> None:
    graph = onnx.load(unets[2].path)
    for node in graph.graph.node:
        node.op_type = "Abs" if node.op_type == "Relu" else node.op_type
    onnx.save(graph, tmp_path / "abs.onnx")
    model, stack = Model.load(tmp_path / "abs.onnx"), noise(90, 120)
    tiling = model.tiling((90, 120), 32)
    whole = probability(model.path, padded(stack, 4))[:90]
    assert np.array_equal(tiled(model, stack, tiling), whole)
    assert plain_runs[1:] == [(3, *tiling.window)] * len(tiling)  # the first run is the check at loading


@pytest.mark.slow
def test_tile_with_an_edge_in_its_halo_is_not_cropped(
    unets: dict[int, Model], plain_runs: list[tuple[int, ...]]
) -> None:
    tiling = unets[2].tiling((90, 120), 8)
    near = [tile for tile in tiling if tile.edges is None]
    tiled(unets[2], noise(90, 120), tiling)
    assert 0 < len(plain_runs) == len(near) < len(tiling)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_cropped_int8_tiles_equal_one_pass(
    unets: dict[int, Model], depth: int, precision: ReducedPrecision, tmp_path: Path, plain_runs: list[tuple[int, ...]]
) -> None:
    """Tiles of the variant equal one pass of the variant, bit by bit."""
    graph = onnx.load(unets[depth].path)
    patches = np.stack([noise(64, 64, seed=seed) for seed in range(4)])
    variant = quantize_to_int8(graph, patches) if precision == "int8" else convert_to_float16(graph)
    onnx.helper.set_model_props(variant, unets[depth].contract.to_metadata())
    onnx.save(variant, tmp_path / "variant.onnx")
    model, size = Model.load(tmp_path / "variant.onnx"), (307, 290)
    stack = noise(*size, seed=9)
    stack[1, 100:150, :90] = np.nan
    whole = probability(model.path, padded(stack, model.contract.input.alignment))[: size[0], : size[1]]
    assert (
        whole != probability(unets[depth].path, padded(stack, model.contract.input.alignment))[: size[0], : size[1]]
    ).any()
    for tile in (128, 151):
        plain_runs.clear()
        tiling = model.tiling(size, tile)
        assert np.array_equal(tiled(model, stack, tiling), whole)
        assert len({tile.edges for tile in tiling}) > 3
        assert len(plain_runs) < len(tiling)
