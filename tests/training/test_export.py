"""Tests of the comparison of an exported file with its Keras model."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnx
import pytest

from onnx_writer import to_onnx
from talud.contract import Contract
from talud.data.patches import Patches
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.networks import unet
from talud.training import export

PATCHES = Patches(
    np.random.default_rng(1).normal(90, 30, (6, 32, 32, 3)).astype(np.float32), np.zeros((6, 32, 32), np.uint8)
)


def overconfident_model() -> keras.Model:
    """Return a model with logits of hundreds, as after long training."""
    mean, deviation = np.full(3, 90, np.float32), np.full(3, 30, np.float32)
    model = unet.build(4, 2, mean, deviation, seed=3)
    kernel, _ = model.layers[-1].get_weights()
    logits = keras.ops.convert_to_numpy(keras.Model(model.inputs[0], model.layers[-1].input)(PATCHES.stack)) @ kernel
    kernel *= 2e4 / np.ptp(logits)
    model.layers[-1].set_weights([kernel, np.array([-2e4 / np.ptp(logits) * np.median(logits)], np.float32)])
    return model


def save_and_load(graph: onnx.ModelProto, tiny_model: Path, folder: Path) -> Model:
    metadata = {entry.key: entry.value for entry in onnx.load(tiny_model).metadata_props}
    export.save_model(graph, Contract.from_metadata(metadata, "tiny"), folder / "model.onnx")
    return Model.load(folder / "model.onnx")


def test_double_precision_removes_rounding_errors() -> None:
    model = overconfident_model()
    exact = export.to_double_precision(model)
    wide = np.asarray(exact(PATCHES.stack.astype(np.float64)))
    assert wide.dtype == np.float64
    rounding = np.abs(wide - np.asarray(model(PATCHES.stack))).max()
    assert 1e-5 < rounding < 1e-2  # in single precision the error exceeds the tolerance


def test_parity_check_accepts_rounding_errors(tiny_model: Path, tmp_path: Path) -> None:
    model = overconfident_model()
    parity = export.check_parity(model, save_and_load(to_onnx(model), tiny_model, tmp_path), PATCHES)
    assert parity["allowed"] > 1e-5
    assert 0 < parity["difference"] <= parity["allowed"]


def test_parity_check_detects_changed_weights(tiny_model: Path, tmp_path: Path) -> None:
    model = overconfident_model()
    graph = to_onnx(model)
    for constant in graph.graph.initializer:
        if constant.name == "bottom_second_kernel":
            values = onnx.numpy_helper.to_array(constant)
            constant.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), constant.name))
    with pytest.raises(StudyError, match="more than the"):
        export.check_parity(model, save_and_load(graph, tiny_model, tmp_path), PATCHES)
