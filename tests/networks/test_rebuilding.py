"""Tests of Keras models rebuilt from exported graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_writer import to_onnx
from talud.contract import NetworkArchitecture
from talud.errors import ModelError
from talud.networks import export, rebuilding, unet
from talud.networks.catalogue import build_network, read_network
from talud.networks.rebuilding import from_onnx


@pytest.mark.parametrize(("bands", "filters", "depth"), [(1, 3, 1), (7, 2, 4)])
def test_unet_of_older_file_is_rebuilt_from_its_graph(bands: int, filters: int, depth: int) -> None:
    scale = np.linspace(2, 9, bands, dtype=np.float32)
    graph = to_onnx(unet.build(filters, depth, scale, scale + 1, seed=11))
    older = onnx.ModelProto()
    older.CopyFrom(graph)
    (zero,) = (constant for constant in older.graph.initializer if constant.name == "scaling_constant_1")
    zero.name = "neutral"
    again = to_onnx(from_onnx(older, None, "this"))
    assert again.SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet", {"filters": 3, "depth": 2}), ("pretrained_unet", {"filters": 4})],
)
def test_network_of_catalogue_is_rebuilt_from_its_file(name: str, options: dict[str, object]) -> None:
    scale = np.linspace(2, 9, 3, dtype=np.float32)
    network = read_network(name, options, "this")
    model = build_network(network, scale, scale + 1, seed=3, batch_normalisation=True)
    generator = np.random.default_rng(1)
    model.set_weights([weight * generator.uniform(0.8, 1.2, weight.shape) for weight in model.get_weights()])
    graph = export.to_onnx(model)
    rebuilt = from_onnx(graph, NetworkArchitecture(name=name, options=network.fields), "this")
    stack = generator.normal(5, 3, (1, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(model(stack))
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(np.asarray(rebuilt(stack)), expected, atol=1e-5)
    assert not [layer for layer in rebuilt.layers if unet.NORMALISATION_SUFFIX in layer.name]


def test_foreign_graph_is_not_rebuilt(tiny_model: Path) -> None:
    graph = onnx.load(tiny_model)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "more"))
    with pytest.raises(ModelError, match=r"tiny\.onnx: is not a float32 network of talud train"):
        from_onnx(graph, None, "tiny.onnx")


def test_graph_of_another_network_is_not_rebuilt(tiny_model: Path) -> None:
    architecture = NetworkArchitecture(name="unet", options={"filters": 5, "depth": 1})
    with pytest.raises(ModelError, match=r"tiny\.onnx: is not a float32 network of talud train"):
        from_onnx(onnx.load(tiny_model), architecture, "tiny.onnx")


def test_stated_network_larger_than_the_file_is_not_built(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "build_network", lambda *_, **__: pytest.fail("takes terabytes"))
    architecture = NetworkArchitecture(name="resunet", options={"filters": 1024, "depth": 8})
    with pytest.raises(ModelError, match="weights, but its network, resunet, has more than 68719476736"):
        from_onnx(onnx.load(tiny_model), architecture, "tiny.onnx")
