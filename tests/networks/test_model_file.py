"""Tests of the conversion of a U-Net to ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_writer import to_onnx
from talud.contract import Contract
from talud.engine.model_file import weights_digest
from talud.networks import unet


def run(model: onnx.ModelProto, stack: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": np.ascontiguousarray(stack.transpose(0, 3, 1, 2))})[0].transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("bands", "filters", "depth"), [(1, 3, 1), (2, 4, 3), (7, 2, 4)])
def test_onnx_matches_keras_for_any_shape_and_nan(bands: int, filters: int, depth: int) -> None:
    mean, deviation = np.linspace(-5, 40, bands, dtype=np.float32), np.linspace(1, 9, bands, dtype=np.float32)
    model = unet.build(filters, depth, mean, deviation, seed=11)
    generator = np.random.default_rng(5)
    for layer in model.layers[2:]:  # biases too: they start at zero, which would hide a fault
        layer.set_weights([generator.normal(0, 0.2, values.shape) for values in layer.get_weights()])
    graph = to_onnx(model)
    for height, width, batch in ((32, 64, 1), (64, 32, 3)):
        stack = generator.normal(mean, deviation, (batch, height, width, bands)).astype(np.float32)
        stack[:, 3:9, 5:20] = np.nan
        stack[:, 20:22, :, 0] = np.nan
        ours = run(graph, stack)
        theirs = np.asarray(model(stack))
        assert ours.shape == (batch, height, width, 1)
        assert np.ptp(theirs) > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_model_file_is_valid_and_states_its_contract(tiny_model: Path) -> None:
    onnx.checker.check_model(str(tiny_model), full_check=True)
    model = onnx.load(tiny_model, load_external_data=False)
    assert not any(onnx.external_data_helper.uses_external_data(constant) for constant in model.graph.initializer)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    contract = Contract.from_metadata(metadata, str(tiny_model))
    assert contract.input.band_names == ("red", "green", "blue")
    assert contract.origin.weights == weights_digest(model)
    assert "/" not in "".join(node.name for node in model.graph.node)  # names must not contain paths of this machine
