"""Tests of the 8-bit form of a network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_writer import to_onnx
from talud.engine.cropping import crop_network
from talud.engine.tiling import Edges
from talud.networks import unet
from talud.quantization.precision import quantize_to_int8

# Statistics of reflectance, slope, curvature and digital numbers, which differ by orders of magnitude.
MEAN, DEVIATION = np.array([0.2, 30, 0, 5000], np.float32), np.array([0.05, 12, 0.01, 1500], np.float32)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return to_onnx(unet.build(8, 2, MEAN, DEVIATION, seed=3))


@pytest.fixture(scope="module")
def int8_network(network: onnx.ModelProto) -> onnx.ModelProto:
    return quantize_to_int8(network, patches(24, 1))


def patches(count: int, seed: int) -> np.ndarray:
    chance = np.random.default_rng(seed)
    stack = chance.normal(MEAN, DEVIATION, (count, 32, 32, len(MEAN))).astype(np.float32)
    stack[:, 4:9, 10:20] = np.nan
    stack[:, 20:24, :, 0] = np.nan
    return np.ascontiguousarray(np.moveaxis(stack, -1, 1))


def run(graph: onnx.ModelProto, stack: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": stack})[0]


def operators(graph: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Count the operators in ONNX Runtime's optimised form of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_int8_handles_nan_and_bands_of_different_scales(
    network: onnx.ModelProto, int8_network: onnx.ModelProto
) -> None:
    """Keep the scaling layers in float32, which would lose all but the largest band."""
    stack = patches(8, 2)
    expected, found = run(network, stack), run(int8_network, stack)
    assert np.isfinite(found).all()
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.995


def test_int8_runs_all_convolutions_except_first_as_integers(
    int8_network: onnx.ModelProto, network: onnx.ModelProto, tmp_path: Path
) -> None:
    """Convert to integers once and back once, with or without cropping."""
    convolutions = sum(node.op_type == "Conv" for node in network.graph.node)
    for graph in (
        int8_network,
        crop_network(int8_network, Edges(False, False, False, False), 112),
        crop_network(int8_network, Edges(True, False, False, True), 112),
    ):
        found = operators(graph, tmp_path)
        assert (found["QLinearConv"], found["Conv"], found["QLinearConcat"]) == (convolutions - 1, 1, 2)
        assert (found["QuantizeLinear"], found["DequantizeLinear"], found["Transpose"]) == (1, 1, 2)
