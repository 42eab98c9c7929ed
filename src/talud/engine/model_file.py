"""Reading, checking and writing of model files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from talud.contract import Contract
from talud.engine.margins import GlobalReachError, NetworkGeometry
from talud.engine.tiling import round_up
from talud.errors import ModelError, OutputError

INPUT_NAME, OUTPUT_NAME = "stack", "probability"  # names of a graph's input and output


def parse_model(content: bytes) -> onnx.ModelProto:
    """Parse a model file that is safe to run.

    ONNX allows a constant to be stored in another file, at a path of the author's choice, or at a memory address;
    operators to contain graphs that run in a loop; and a file to define functions under the names of standard
    operators. Files that do so are rejected.

    Args:
        content: content of the file.

    Raises:
        ModelError: The file uses one of these features, or has no input or output.
        Exception: The content is not ONNX.
    """
    model = onnx.load_model_from_string(content)
    if len(model.graph.input) == 0 or len(model.graph.output) == 0:
        raise ModelError("it has no input or no output")
    if model.functions:
        raise ModelError(f"it contains a custom function, '{model.functions[0].name}'; export it without functions")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"its constant '{tensor.name}' is stored outside the file; save it again with all weights inside"
            )
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ModelError(f"its operator '{node.op_type}' contains a subgraph; export it without such operators")
    _check_resize_nodes(model.graph)
    return model


def read_contract(path: Path) -> Contract:
    """Read the contract of a model file.

    Raises:
        ModelError: The file is not a talud model.
    """
    try:
        properties = parse_model(path.read_bytes()).metadata_props
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # protobuf's exceptions have no common base class
        raise ModelError(f"{path}: is not an ONNX model") from error
    return Contract.from_metadata({entry.key: entry.value for entry in properties}, str(path))


def weights_digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a graph's constants.

    Two exports of the same weights have the same digest.
    """
    digest = hashlib.sha256()
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def save_model(
    graph: onnx.ModelProto, contract: Contract, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a graph and its contract to a file.

    Args:
        graph: network with its weights.
        contract: contract of the model.
        path: path of the file.
        metadata: further metadata entries, such as the features of the training areas.

    Raises:
        OutputError: The file cannot be written.
    """
    helper.set_model_props(graph, contract.to_metadata() | dict(metadata or {}))
    try:
        path.write_bytes(graph.SerializeToString(deterministic=True))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _check_resize_nodes(graph: onnx.GraphProto) -> None:
    """Check that Resize nodes keep batch and bands."""
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "Resize" and len(node.input) > 2 and node.input[2] in constants:
            scales = numpy_helper.to_array(constants[node.input[2]]).ravel()[:2].tolist()
            # ONNX Runtime was seen to return uninitialised memory for such a node.
            if scales not in ([], [1, 1]):
                raise ModelError(f"its operator '{node.name}' enlarges the batch or the bands; export it again")


def check_lattice(model: onnx.ModelProto, contract: Contract) -> None:
    """Check a contract's halo and alignment.

    They must be at least the halo and the alignment of the graph.

    If the reach of an operator is not known, the contract cannot be checked and is accepted.

    Raises:
        ModelError: The contract states a smaller halo, or an alignment that does not fit, or the output of an operator
            depends on the whole image.
    """
    network = NetworkGeometry(model)
    try:
        reach, lattice = max(network.margins()[network.input]), math.lcm(*network.scales().values())
    except GlobalReachError:
        raise
    except ModelError:
        return
    halo, alignment = contract.input.halo, contract.input.alignment
    if alignment % lattice or round_up(halo, alignment) < reach:
        raise ModelError(
            f"its contract states an alignment of {alignment} and a halo of {halo} pixels, but the network needs "
            f"{lattice} and {reach}; export it again"
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all constants of a graph."""
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
