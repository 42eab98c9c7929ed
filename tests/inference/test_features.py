"""A network's features in another light, and the network that sees there what it saw at home."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

from talud.errors import ModelError
from talud.inference.features import METADATA_KEY, Features, aligned, convolutions, measured

MEAN, DEVIATION = np.array([90, 110, 70], np.float32), np.array([30, 40, 20], np.float32)


@pytest.fixture(scope="module")
def network() -> tuple[keras.Model, onnx.ModelProto]:
    """An untrained network, and its file."""
    from talud.training import unet
    from talud.training.onnx_graph import to_onnx

    model = unet.build(filters=4, depth=2, mean=MEAN, deviation=DEVIATION, seed=3)
    return model, to_onnx(model)


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    """Six windows (6, 3, 32, 32) of noise and edges."""
    generator = np.random.default_rng(5)
    noise = generator.normal(size=(6, 3, 32, 32)) * DEVIATION[:, None, None]
    edges = np.where(np.arange(32) > generator.integers(8, 24, size=(6, 1, 1, 1)), 40, 0)
    return (noise + edges + MEAN[:, None, None]).astype(np.float32)


def run(graph: onnx.ModelProto, stack: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": stack})[0]


def test_the_moments_are_those_that_keras_gives(
    network: tuple[keras.Model, onnx.ModelProto], windows: np.ndarray
) -> None:
    model, graph = network
    found = measured(graph, windows)
    first = model.get_layer("encoder_0_first")
    scaled = (np.moveaxis(windows, 1, -1) - MEAN) / DEVIATION
    kernel, bias = first.get_weights()
    linear = keras.ops.convert_to_numpy(keras.ops.conv(scaled, kernel, padding="same")) + bias
    np.testing.assert_allclose(found.means["encoder_0_first_linear"], linear.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found.variances["encoder_0_first_linear"], linear.var((0, 1, 2)), rtol=1e-4)
    assert (
        len(found.means)
        == len(model.layers) - sum(not isinstance(layer, keras.layers.Conv2D) for layer in model.layers) - 1
    )


def test_where_nothing_differs_nothing_changes(
    network: tuple[keras.Model, onnx.ModelProto], windows: np.ndarray
) -> None:
    _, graph = network
    home = measured(graph, windows)
    same = aligned(graph, home, measured(graph, windows, home))
    np.testing.assert_allclose(run(same, windows), run(graph, windows), atol=1e-5)


def test_a_gain_common_to_all_bands_and_an_offset_are_undone(
    network: tuple[keras.Model, onnx.ModelProto], windows: np.ndarray
) -> None:
    """Away from the rim, where zeros are padded, the first layer is linear: its moments hold gain and offset whole."""
    _, graph = network
    home = measured(graph, windows)
    shifted = (2.5 * (windows - MEAN[:, None, None]) + MEAN[:, None, None] - 25).astype(np.float32)
    adapted = aligned(graph, home, measured(graph, shifted, home))
    before, after = (
        np.abs(run(one, shifted) - run(graph, windows))[..., 8:24, 8:24].mean() for one in (graph, adapted)
    )
    assert after < before / 5
    again = measured(adapted, shifted)
    for name, mean in home.means.items():
        np.testing.assert_allclose(again.means[name], mean, atol=2e-3 * (1 + np.abs(mean).max()))


def test_half_of_the_way_lies_between(network: tuple[keras.Model, onnx.ModelProto], windows: np.ndarray) -> None:
    _, graph = network
    home = measured(graph, windows)
    there = measured(graph, (windows * 1.5).astype(np.float32), home)
    half = home.between(there, 0.5)
    for name in home.means:
        np.testing.assert_allclose(half.means[name], (home.means[name] + there.means[name]) / 2, rtol=1e-5)
    assert home.between(there, 0.0).means.keys() == home.means.keys()


def test_a_file_gives_back_what_it_was_given(
    network: tuple[keras.Model, onnx.ModelProto], windows: np.ndarray, tmp_path: Path
) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(network[1])
    home = measured(graph, windows)
    onnx.helper.set_model_props(graph, home.to_metadata())
    onnx.save(graph, tmp_path / "model.onnx")
    read = Features.of(onnx.load(tmp_path / "model.onnx"))
    for name in home.means:
        assert np.array_equal(read.means[name], home.means[name])
        assert np.array_equal(read.variances[name], home.variances[name])


def test_what_is_missing_or_damaged_is_said(network: tuple[keras.Model, onnx.ModelProto], windows: np.ndarray) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(network[1])
    with pytest.raises(ModelError, match="train it again"):
        Features.of(graph)
    whole = measured(graph, windows)
    first = convolutions(graph)[0].output[0]
    fewer = Features({k: v for k, v in whole.means.items() if k != first}, whole.variances)
    negative = Features(whole.means, {**whole.variances, first: -whole.variances[first]})
    for text in ("", "[]", '{"means": {}}', '{"means": 3, "variances": 4}', '{"means": {"a": "?"}, "variances": {}}'):
        onnx.helper.set_model_props(graph, {METADATA_KEY: text})
        with pytest.raises(ModelError, match="statistics of features"):
            Features.of(graph)
    for wrong in (fewer, negative):
        onnx.helper.set_model_props(graph, wrong.to_metadata())
        with pytest.raises(ModelError, match="statistics of features"):
            Features.of(graph)
