"""Writing of ONNX graphs with the names of layers and weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from talud.engine.model_file import INPUT_NAME, OUTPUT_NAME
from talud.networks.axis_order import Constant, Node
from talud.networks.tracing import OPSET
from talud.networks.unet import SCALING

IR_VERSION = 10  # newest version that every supported ONNX Runtime reads
# Attributes with these values are left out, since they are ONNX's defaults.
_DEFAULTS: Mapping[str, Any] = {
    "strides": [1, 1], "dilations": [1, 1], "group": 1, "exclude_outside": 0, "ceil_mode": 0, "storage_order": 0,
    "auto_pad": b"NOTSET",
}  # fmt: skip
# Suffix of an operator that is not the last of its layer; by default its type.
_SUFFIXES = {"Conv": "linear"}
# Names of constant inputs after the first input.
_ROLES = {"Conv": ("kernel", "bias"), "Resize": ("roi", "scales"), "Clip": ("lowest", "highest")}


def write_graph(
    nodes: list[Node], constants: Mapping[str, Constant], output: str, bands: int, name: str
) -> onnx.ModelProto:
    """Write nodes and constants under their final names.

    Args:
        nodes: nodes in their final order.
        constants: constants by the names that the nodes use.
        output: name that the nodes use for the output.
        bands: number of bands of the input.
        name: name of the graph.
    """
    tensors = _tensor_names(nodes, output)
    written: dict[str, onnx.TensorProto] = {}
    body = []
    for node in nodes:
        inputs = []
        for index, original in enumerate(node.inputs):
            if original in constants:
                constant = _stored(constants[original].values, node.operator)
                wanted = _constant_name(node, index, constants[original], tensors[node.output])
                # A layer that is called twice has the same constant, or two after different normalisations.
                names = (name for name in _numbered(wanted) if name not in tensors.values())
                constant.name = next(
                    name for name in names if name not in written or written[name].raw_data == constant.raw_data
                )
                written[constant.name] = constant
                inputs.append(constant.name)
            else:
                inputs.append(tensors[original] if original else "")
        final = tensors[node.output]
        body.append(helper.make_node(node.operator, inputs, [final], name=final, **_attributes(node, constants)))
    graph = helper.make_graph(
        body,
        name,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["batch", bands, "height", "width"])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", 1, "height", "width"])],
        list(written.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="talud")
    onnx.checker.check_model(model, full_check=True)
    return model


def _stored(values: NDArray[Any], operator: str) -> onnx.TensorProto:
    """Return a constant as it is stored, without a name.

    The bounds of a Clip must be scalars. Others have an axis, as in files of earlier versions.
    """
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return numpy_helper.from_array(
        np.asarray(values, order="C") if operator == "Clip" else np.ascontiguousarray(values)
    )


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, then the name with the numbers from 2 on."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def _tensor_names(nodes: list[Node], output: str) -> dict[str, str]:
    """Return the final name of the input and of each node's output.

    The last node of a layer has the layer's name; the others have the name of their operator, too.
    """
    last = {node.layer: node.output for node in nodes}
    names = {INPUT_NAME: INPUT_NAME, output: OUTPUT_NAME}
    for node in nodes:
        if node.output == output:
            continue
        name = f"{node.layer or 'graph'}_{_SUFFIXES.get(node.operator, node.operator.lower())}"
        wanted = node.layer if node.layer and last[node.layer] == node.output else name
        names[node.output] = next(free for free in _numbered(wanted) if free not in names.values())
    return names


def _constant_name(node: Node, index: int, constant: Constant, tensor: str) -> str:
    """Return the final name of a constant input.

    The constants that scale the bands are named `mean` and `deviation`.
    """
    if constant.weight and node.layer == SCALING:
        return constant.weight.name
    roles = _ROLES.get(node.operator, ())
    role = roles[index - 1] if 0 < index <= len(roles) else f"constant_{index}"
    return f"{node.layer or tensor}_{role}" if node.operator == "Conv" else f"{tensor}_{role}"


def _attributes(node: Node, constants: Mapping[str, Constant]) -> dict[str, Any]:
    """Return a node's attributes that differ from ONNX's defaults.

    A convolution always states its kernel and pads, which the engine reads.
    """
    stated = {name: value for name, value in node.attributes.items() if _DEFAULTS.get(name) != value}
    if node.operator == "Conv":
        stated["kernel_shape"] = list(constants[node.inputs[1]].values.shape[2:])
        stated.setdefault("pads", [0, 0, 0, 0])
    elif not any(stated.get("pads", [0])):
        stated.pop("pads", None)
    return stated
