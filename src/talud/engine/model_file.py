"""Checks of a model file before it runs: a model is data in one file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from talud.contract import Contract
from talud.engine.margins import NetworkGeometry
from talud.engine.tiling import round_up
from talud.errors import ModelError, OutputError

INPUT_NAME, OUTPUT_NAME = "stack", "probability"  # names of a graph's input and output


def parse_model(content: bytes) -> onnx.ModelProto:
    """The graph of a model file, which reads no other file, and ends.

    ONNX lets a constant lie in another file, named by a path of the author's choice, or at an address in memory; lets
    operators hold graphs that run over and over; and lets a file define operators under the names of known ones.

    Args:
        content: of the file.

    Raises:
        ModelError: it does any of this.
        Exception: it is not ONNX.
    """
    model = onnx.load_model_from_string(content)
    if len(model.graph.input) == 0 or len(model.graph.output) == 0:
        raise ModelError("it has no input or no output")
    if model.functions:
        raise ModelError(f"it defines an operator of its own, '{model.functions[0].name}'; export it again without")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"its constant '{tensor.name}' lies outside the file; save it again with all weights inside"
            )
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(f"its operator '{node.op_type}' runs a graph of its own; export it again without")
    _check_resize_nodes(model.graph)
    return model


def read_contract(path: Path) -> Contract:
    """Return the contract of a model file, without opening it for a run.

    Raises:
        ModelError: it is no model of talud's.
    """
    try:
        properties = parse_model(path.read_bytes()).metadata_props
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged file sets off: protobuf's exceptions have no common base
        raise ModelError(f"{path}: is not an ONNX model") from error
    return Contract.from_metadata({entry.key: entry.value for entry in properties}, str(path))


def weights_digest(model: onnx.ModelProto) -> str:
    """SHA-256 over the constants of a graph, in its order: equal for two exports of the same weights."""
    digest = hashlib.sha256()
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def save_model(
    graph: onnx.ModelProto, contract: Contract, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a graph and its contract, weights inside, as one ONNX file.

    Args:
        graph: network with its weights.
        contract: contract of the model.
        path: path of the file.
        metadata: further entries of the file, such as the features of its training areas.

    Raises:
        OutputError: the file cannot be written.
    """
    helper.set_model_props(graph, contract.to_metadata() | dict(metadata or {}))
    try:
        path.write_bytes(graph.SerializeToString(deterministic=True))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _check_resize_nodes(graph: onnx.GraphProto) -> None:
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "Resize" and len(node.input) > 2 and node.input[2] in constants:
            scales = numpy_helper.to_array(constants[node.input[2]]).ravel()[:2].tolist()
            if scales not in ([], [1, 1]):  # ONNX Runtime was seen to answer with memory that nobody had written
                raise ModelError(f"its operator '{node.name}' enlarges batch or bands; export it again")


def check_lattice(model: onnx.ModelProto, contract: Contract) -> None:
    """Check that a contract's halo and alignment cover those of the graph.

    Of a graph that holds an operator of unknown reach, nothing but the contract can say it.

    Raises:
        ModelError: they are not.
    """
    network = NetworkGeometry(model)
    try:
        reach, lattice = max(network.margins()[network.input]), math.lcm(*network.scales().values())
    except ModelError:
        return
    halo, alignment = contract.input.halo, contract.input.alignment
    if alignment % lattice or round_up(halo, alignment) < reach:
        raise ModelError(
            f"its contract states an alignment of {alignment} and a halo of {halo} pixels, the "
            f"network has {lattice} and sees {reach} pixels far; export it again"
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph, in nodes too."""
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
