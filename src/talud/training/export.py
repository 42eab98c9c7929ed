"""From a trained Keras model to the file that ships: ONNX, with its contract inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import helper

from talud.contract import Contract
from talud.errors import OutputError


def save(model: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Write a graph and its contract, weights inside, as one ONNX file.

    Raises:
        OutputError: the file cannot be written.
    """
    metadata: Mapping[str, str] = contract.to_metadata()
    helper.set_model_props(model, dict(metadata))
    try:
        path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
