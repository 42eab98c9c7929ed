"""Tests of the measurement and alignment of feature statistics."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

from talud.errors import ModelError
from talud.measurement.features import METADATA_KEY, FeatureStatistics, align_features, convolutions, measure_features

MEAN, DEVIATION = np.array([90, 110, 70], np.float32), np.array([30, 40, 20], np.float32)


@pytest.fixture(scope="module")
def network() -> tuple[keras.Model, onnx.ModelProto]:
    """Untrained network and its ONNX model."""
    from onnx_writer import to_onnx
    from talud.networks import unet

    model = unet.build(filters=4, depth=2, mean=MEAN, deviation=DEVIATION, seed=3)
    return model, to_onnx(model)


@pytest.fixture(scope="module")
def squares() -> np.ndarray:
    """Six windows of noise and edges, (6, 3, 32, 32)."""
    generator = np.random.default_rng(5)
    noise = generator.normal(size=(6, 3, 32, 32)) * DEVIATION[:, None, None]
    edges = np.where(np.arange(32) > generator.integers(8, 24, size=(6, 1, 1, 1)), 40, 0)
    return (noise + edges + MEAN[:, None, None]).astype(np.float32)


def run(graph: onnx.ModelProto, stack: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": stack})[0]


def test_feature_statistics_match_keras(network: tuple[keras.Model, onnx.ModelProto], squares: np.ndarray) -> None:
    model, graph = network
    found = measure_features(graph, squares)
    first = model.get_layer("encoder_0_first")
    scaled = (np.moveaxis(squares, 1, -1) - MEAN) / DEVIATION
    kernel, bias = first.get_weights()
    linear = keras.ops.convert_to_numpy(keras.ops.conv(scaled, kernel, padding="same")) + bias
    np.testing.assert_allclose(found.means["encoder_0_first_linear"], linear.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found.variances["encoder_0_first_linear"], linear.var((0, 1, 2)), rtol=1e-4)
    layers = {f"{layer.name}_linear" for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    assert set(found.means) == layers - {"probability_linear"} | {"stack"}
    np.testing.assert_allclose(found.means["stack"], squares.mean((0, 2, 3)), rtol=1e-5)


def test_aligning_to_the_same_area_changes_nothing(
    network: tuple[keras.Model, onnx.ModelProto], squares: np.ndarray
) -> None:
    _, graph = network
    home = measure_features(graph, squares)
    same = align_features(graph, home, measure_features(graph, squares, home, [True] * 3), [True] * 3)
    np.testing.assert_allclose(run(same, squares), run(graph, squares), atol=1e-5)


def test_alignment_reverts_gain_and_offset_of_bands(
    network: tuple[keras.Model, onnx.ModelProto], squares: np.ndarray
) -> None:
    _, graph = network
    home = measure_features(graph, squares)
    gain, offset = np.reshape([2.5, 0.6, 1.3], (3, 1, 1)), np.reshape([-25, 40, 3], (3, 1, 1))
    shifted = (gain * squares + offset).astype(np.float32)
    adapted = align_features(graph, home, measure_features(graph, shifted, home, [True] * 3), [True] * 3)
    assert np.abs(run(graph, shifted) - run(graph, squares)).max() > 0.1
    np.testing.assert_allclose(run(adapted, shifted), run(graph, squares), atol=1e-4)
    shifted[:, 0] = squares[:, 0]
    some = [False, True, True]
    adapted = align_features(graph, home, measure_features(graph, shifted, home, some), some)
    np.testing.assert_allclose(run(adapted, shifted), run(graph, squares), atol=1e-4)


def test_alignment_restores_the_reference_statistics(
    network: tuple[keras.Model, onnx.ModelProto], squares: np.ndarray
) -> None:
    _, graph = network
    home = measure_features(graph, squares)
    other = np.roll(squares, 1, axis=1) + np.random.default_rng(2).normal(0, 15, squares.shape).astype(np.float32)
    adapted = align_features(graph, home, measure_features(graph, other, home), [False] * 3)
    found = measure_features(adapted, other)
    for name in set(home.means) - {"stack"}:
        np.testing.assert_allclose(
            found.means[name], home.means[name], atol=1e-3 + 1e-2 * np.abs(home.means[name]).max()
        )


def test_interpolation_is_linear(network: tuple[keras.Model, onnx.ModelProto], squares: np.ndarray) -> None:
    _, graph = network
    home = measure_features(graph, squares)
    there = measure_features(graph, (squares * 1.5).astype(np.float32), home)
    half = home.interpolate(there, 0.5)
    for name in home.means:
        np.testing.assert_allclose(half.means[name], (home.means[name] + there.means[name]) / 2, rtol=1e-5)
    assert home.interpolate(there, 0.0).means.keys() == home.means.keys()


def test_feature_statistics_survive_a_model_file(
    network: tuple[keras.Model, onnx.ModelProto], squares: np.ndarray, tmp_path: Path
) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(network[1])
    home = measure_features(graph, squares)
    onnx.helper.set_model_props(graph, home.to_metadata())
    onnx.save(graph, tmp_path / "model.onnx")
    read = FeatureStatistics.of(onnx.load(tmp_path / "model.onnx"))
    for name in home.means:
        assert np.array_equal(read.means[name], home.means[name])
        assert np.array_equal(read.variances[name], home.variances[name])
    assert read.side == 32


def test_missing_or_damaged_statistics_are_reported(
    network: tuple[keras.Model, onnx.ModelProto], squares: np.ndarray
) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(network[1])
    with pytest.raises(ModelError, match="train the model again"):
        FeatureStatistics.of(graph)
    whole = measure_features(graph, squares)
    first = convolutions(graph)[0].output[0]
    fewer = FeatureStatistics(32, {name: part for name, part in whole.means.items() if name != first}, whole.variances)
    negative = FeatureStatistics(32, whole.means, {**whole.variances, first: -whole.variances[first]})
    for text in ("", "[]", '{"means": {}}', '{"means": 3, "variances": 4}', '{"means": {"a": "?"}, "variances": {}}'):
        onnx.helper.set_model_props(graph, {METADATA_KEY: text})
        with pytest.raises(ModelError, match="feature statistics"):
            FeatureStatistics.of(graph)
    for wrong in (fewer, negative):
        onnx.helper.set_model_props(graph, wrong.to_metadata())
        with pytest.raises(ModelError, match="feature statistics"):
            FeatureStatistics.of(graph)
