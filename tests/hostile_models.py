"""Model files of users: valid, changed, damaged and malicious ones."""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hostile_bytes import cut, flipped

KEY = "talud.contract"
Make = Callable[[Path, np.random.Generator, Path], str]  # a folder, chance, a good model → what is named to talud
Change = Callable[[Any], object]  # of a contract as JSON, or of a graph, in place


def of_bytes(content: bytes | Callable[[Path], bytes]) -> Make:
    def make(folder: Path, chance: np.random.Generator, good: Path) -> str:
        (folder / "model.onnx").write_bytes(content if isinstance(content, bytes) else content(folder))
        return str(folder / "model.onnx")

    return make


def damaged(way: str) -> Make:
    def make(folder: Path, chance: np.random.Generator, good: Path) -> str:
        content = {"cut": cut, "flipped": flipped}[way](good.read_bytes(), chance)
        (folder / "model.onnx").write_bytes(content)
        return str(folder / "model.onnx")

    return make


def contract(change: Change) -> Make:
    """Return a maker of a model with a changed contract.

    A value that `change` returns replaces the contract.
    """

    def make(folder: Path, chance: np.random.Generator, good: Path) -> str:
        model = onnx.load(good)
        (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
        content = json.loads(entry.value)
        changed = change(content)
        entry.value = changed if isinstance(changed, str) else json.dumps(content)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return str(folder / "model.onnx")

    return make


def graph(change: Change) -> Make:
    """Return a maker of a model whose graph is changed or replaced."""

    def make(folder: Path, chance: np.random.Generator, good: Path) -> str:
        model = onnx.load(good)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return str(folder / "model.onnx")

    return make


def states(value: object, *keys: str | int) -> Make:
    """Return a change that sets a value of the contract."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return contract(change)


def lacks(*keys: str | int) -> Make:
    """Return a change that removes a field of the contract."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return contract(change)


def swapped(content: Any) -> None:
    content["input"]["bands"] = content["input"]["bands"][::-1]


def second_band_twice(content: Any) -> None:
    content["input"]["bands"][0] = content["input"]["bands"][1]


def one_band_more(content: Any) -> None:
    content["input"]["bands"].append(content["input"]["bands"][0] | {"name": "near_infrared"})


def nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def before_output(*operators: onnx.NodeProto) -> Change:
    """Return a change that adds nodes before the output."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "inner"
        model.graph.node.extend(operators)

    return change


def operator(
    kind: str, inputs: tuple[str, ...] = ("inner",), output: str = "probability", **form: Any
) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], name=output + kind, **form)


def with_constant(name: str, values: Any, change: Change) -> Change:
    def both(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        change(model)

    return both


def opset(version: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def elsewhere(location: str, offset: int = 0, length: int = 0) -> Change:
    """Return a change that moves the first convolution's weights to another file."""

    def change(model: onnx.ModelProto) -> None:
        point_at(largest(model), location, offset, length)

    return change


def largest(model: onnx.ModelProto) -> onnx.TensorProto:
    return max(model.graph.initializer, key=lambda constant: len(constant.raw_data))


def point_at(constant: onnx.TensorProto, location: str, offset: int = 0, length: int = 0) -> None:
    length = length or len(constant.raw_data)
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": str(offset), "length": str(length)}.items():
        constant.external_data.add(key=key, value=value)


def weights_beside(folder: Path, chance: np.random.Generator, good: Path) -> str:
    """Write a model with its weights in a second file, as ONNX's tools do."""
    model = onnx.load(good)
    (folder / "weights.bin").write_bytes(largest(model).raw_data)
    point_at(largest(model), "weights.bin")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return str(folder / "model.onnx")


def constant_elsewhere(model: onnx.ModelProto) -> None:
    """Refer to another file in a node's attribute."""
    constant = largest(model)
    moved = onnx.TensorProto()
    moved.CopyFrom(constant)
    model.graph.initializer.remove(constant)
    point_at(moved, "/etc/passwd")
    model.graph.node.insert(0, helper.make_node("Constant", [], [moved.name], value=moved))


def sparse_elsewhere(model: onnx.ModelProto) -> None:
    constant = largest(model)
    values = numpy_helper.from_array(np.ones(4, np.float32), constant.name)
    indices = numpy_helper.from_array(np.arange(4), "indices")
    sparse = helper.make_sparse_tensor(values, indices, list(constant.dims))
    model.graph.initializer.remove(constant)
    point_at(sparse.values, "/etc/passwd", length=16)
    model.graph.sparse_initializer.append(sparse)


def loop(turns: int) -> Change:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, None),
        ],
    )
    node = operator("Loop", ("turns", "", "inner"), body=body)
    return with_constant("turns", np.int64(turns), before_output(node))


def branch(model: onnx.ModelProto) -> None:
    def arm() -> onnx.GraphProto:
        value = helper.make_tensor_value_info("arm", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Identity", ["inner"], ["arm"])], "arm", [], [value])

    node = operator("If", ("truth",), then_branch=arm(), else_branch=arm())
    with_constant("truth", np.bool_(True), before_output(node))(model)


def own_function(model: onnx.ModelProto) -> None:
    """Define a function in the file under the name of a standard operator."""
    inner = [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[5, 5], pads=[2, 2, 2, 2])]
    imports = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("mine", "Relu", ["x"], ["y"], inner, imports))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    before_output(operator("Relu", domain="mine"))(model)


def many_nodes(model: onnx.ModelProto) -> None:
    before_output()(model)
    names = ["inner", *(f"step{n}" for n in range(2_000)), "probability"]
    chain = itertools.pairwise(names)
    model.graph.node.extend(helper.make_node("Identity", [a], [b]) for a, b in chain)


def circle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def dims(*sides: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        largest(model).dims[:] = sides

    return change


def up_sampling(*scales: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (constant,) = (each for each in model.graph.initializer if each.name == "up_0_scales")
        constant.raw_data = np.array(scales, np.float32).tobytes()

    return change


def no_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(largest(model))


def nan_weights(model: onnx.ModelProto) -> None:
    constant = largest(model)
    constant.raw_data = np.full(len(constant.raw_data) // 4, np.nan, np.float32).tobytes()


def renamed_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "landslide"


def input_of(*shape: int | str, kind: int = TensorProto.FLOAT, name: str = "stack") -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.input[:]
        model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))

    return change


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def two_channels(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    before_output(operator("Concat", ("inner", "inner"), axis=1))(model)


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def first(kind: str, **form: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for name, value in form.items():
            set_attribute(nodes(model, kind)[0], name, value)

    return change


class Runs:
    """Object whose unpickling creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def a_pickle(folder: Path) -> bytes:
    return pickle.dumps(Runs(str(folder / "ran")))


def a_checkpoint(folder: Path) -> bytes:
    """Return a checkpoint as PyTorch writes it: a pickle in a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", a_pickle(folder))
        archive.writestr("archive/version", "3")
    return buffer.getvalue()


def an_array(folder: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Runs(str(folder / "ran"))], object), allow_pickle=True)
    return buffer.getvalue()


def a_directory(folder: Path, chance: np.random.Generator, good: Path) -> str:
    (folder / "model.onnx").mkdir()
    return str(folder / "model.onnx")


def unchanged(folder: Path, chance: np.random.Generator, good: Path) -> str:
    return str(good)


FIELDS = (
    ("schema_version",), ("input",), ("origin",), ("measured",),
    *(("input", name) for name in ("bands", "required_groups", "pixel_size", "halo", "alignment", "stack")),
    *(("origin", name) for name in ("name", "weights", "data_version", "areas", "commit", "run_id", "hyperparameters")),
    ("measured", "threshold"), ("measured", "scores"),
)  # fmt: skip
BAND_FIELDS = ("name", "group", "unit", "lowest", "highest", "mean", "deviation", "minimum", "maximum")
NAN, INF = math.nan, math.inf
SMOOTH = helper.make_node("AveragePool", ["inner"], ["probability"], kernel_shape=[9, 9], pads=[4, 4, 4, 4])

MAPPED: dict[str, Make] = {
    "as exported": unchanged,
    "bands swapped in the contract": contract(swapped),
    "no group is required": states([], "input", "required_groups"),
    "a larger halo": states(32, "input", "halo"),
    "a halo off the lattice": states(27, "input", "halo"),
    "an alignment twice as large": states(8, "input", "alignment"),
    "another threshold": states(0.4, "measured", "threshold"),
    "filters that say nothing": states("many", "origin", "hyperparameters", "filters"),
    "a negative number of filters": states(-3, "origin", "hyperparameters", "filters"),
    "a milliard filters": states(10**9, "origin", "hyperparameters", "filters"),
    "a name with blanks and accents": states("ñandú 7", "origin", "name"),
    "a contract without its version": lacks("schema_version"),
    "a tenth of a level more": graph(before_output(operator("Clip"))),
    "2,000 nodes that do nothing": graph(many_nodes),
    "opset 17": graph(opset(17)),
}
REFUSED: dict[str, Make] = {
    **{f"a contract without {'.'.join(keys)}": lacks(*keys) for keys in FIELDS[1:]},
    **{f"a band without {name}": lacks("input", "bands", 1, name) for name in BAND_FIELDS},
    **{f"null as {'.'.join(keys)}": states(None, *keys) for keys in FIELDS},
    **{f"null as a band's {name}": states(None, "input", "bands", 2, name) for name in BAND_FIELDS},
    **{f"NaN as a band's {name}": states(NAN, "input", "bands", 2, name) for name in BAND_FIELDS[3:]},
    **{f"infinity as a band's {name}": states(-INF, "input", "bands", 2, name) for name in BAND_FIELDS[3:]},
    **{
        f"{value} as {name}": states(value, name) for name in ("pixel_size", "threshold") for value in (NAN, INF, -1, 0)
    },
    **{
        f"{value} as {name}": states(value, name)
        for name in ("halo", "alignment")
        for value in (-4, 1.5, 10**9, 10**30)
    },
    "no contract": graph(lambda model: model.ClearField("metadata_props")),
    "an empty contract": contract(lambda content: ""),
    "a contract of text": contract(lambda content: "trust me"),
    "a contract that is a list": contract(lambda content: json.dumps([content])),
    "a contract cut short": contract(lambda content: json.dumps(content)[:-40]),
    "a contract of 100,000 brackets": contract(lambda content: "[" * 100_000),
    "a contract of another version": states(99, "schema_version"),
    "a contract of a version that is text": states("2", "schema_version"),
    "a field that no contract has": states(1, "code"),
    "no bands": states([], "input", "bands"),
    "a band twice": contract(second_band_twice),
    "a band more": contract(one_band_more),
    "a band less": contract(lambda content: content["input"]["bands"].pop() and None),
    "a band without a name": states("", "input", "bands", 0, "name"),
    "an unknown group": states("radar", "input", "bands", 0, "group"),
    "a required group without bands": states(["optical", "sar"], "input", "required_groups"),
    "a range beyond float32": states(1e308, "input", "bands", 0, "highest"),
    "a range upside down": states(501, "input", "bands", 0, "lowest"),
    "a negative deviation": states(-1, "input", "bands", 0, "deviation"),
    "a minimum above the maximum": states(999, "input", "bands", 0, "minimum"),
    "threshold 1": states(1, "measured", "threshold"),
    "a threshold above 1": states(1.5, "measured", "threshold"),
    "no halo": states(0, "input", "halo"),
    "too small a halo": states(12, "input", "halo"),
    "alignment 0": states(0, "input", "alignment"),
    "alignment 1": states(1, "input", "alignment"),
    "alignment 2": states(2, "input", "alignment"),
    "alignment 6": states(6, "input", "alignment"),
    "alignment 4096": states(4096, "input", "alignment"),
    "pixels of a micrometre": states(1e-6, "input", "pixel_size"),
    "scores of NaN": states(NAN, "measured", "scores", "f1"),
    "a hyperparameter that is a list": states([1], "origin", "hyperparameters", "filters"),
    "weights that lie outside": graph(elsewhere("/etc/passwd")),
    "weights that lie above": graph(elsewhere("../../../../../../../etc/passwd")),
    "weights that lie at an address in memory": graph(elsewhere("*/_ORT_MEM_ADDR_/*", offset=4096)),
    "weights that lie nowhere": graph(elsewhere("")),
    "weights beside the model": weights_beside,
    "a constant that lies outside": graph(constant_elsewhere),
    "a sparse constant that lies outside": graph(sparse_elsewhere),
    "an operator of a custom domain": graph(before_output(operator("Steal", domain="evil.example"))),
    "a known operator in a custom domain": graph(before_output(operator("Relu", domain="evil.example"))),
    "an operator of Python": graph(before_output(operator("PyOp", domain="pyopmulti_1", module="os", class_name="x"))),
    "an unknown operator": graph(before_output(operator("Landslide"))),
    "a loop without end": graph(loop(2**62)),
    "a loop of one turn": graph(loop(1)),
    "a branch": graph(branch),
    "a function of its own": graph(own_function),
    "a circle": graph(circle),
    "a tensor of terabytes": graph(
        with_constant(
            "size",
            [1, 1, 10**6, 10**6],
            before_output(operator("ConstantOfShape", ("size",), "space"), operator("Add", ("inner", "space"))),
        )
    ),
    "a hundred times enlarged on each side": graph(
        with_constant(
            "times",
            np.array([1, 1, 100, 100], np.float32),
            before_output(
                operator(
                    "Resize",
                    ("inner", "", "times"),
                    mode="nearest",
                    nearest_mode="floor",
                    coordinate_transformation_mode="asymmetric",
                )
            ),
        )
    ),
    "no probability": graph(before_output(operator("Log"))),
    "more than a probability": graph(
        with_constant("much", np.float32(99), before_output(operator("Mul", ("inner", "much"))))
    ),
    "NaN everywhere": graph(
        with_constant(
            "nought",
            np.float32(0),
            before_output(operator("Mul", ("inner", "nought"), "none"), operator("Div", ("none", "nought"))),
        )
    ),
    "a network that sees farther than its contract says": graph(first("Conv", dilations=[9, 9], pads=[9] * 4)),
    "an up-sampling of the batch": graph(up_sampling(0.25, 1, 2, 2)),
    "an up-sampling of the channels": graph(up_sampling(1, 2, 2, 2)),
    "an up-sampling of rows and columns unlike": graph(up_sampling(1, 1, 2, 4)),
    "an up-sampling by less than whole pixels": graph(up_sampling(1, 1, 2, 2.5)),
    "no strides": graph(first("MaxPool", strides=[0, 0])),
    "negative strides": graph(first("MaxPool", strides=[-2, -2])),
    "a kernel of nothing": graph(first("MaxPool", kernel_shape=[0, 0])),
    "a huge padding": graph(first("Conv", pads=[10**9] * 4)),
    "a negative padding": graph(first("Conv", pads=[-1] * 4)),
    "NaN as weights": graph(nan_weights),
    "weights missing": graph(no_weights),
    "negative dimensions": graph(dims(-4, 3, 3, 3)),
    "huge dimensions": graph(dims(10**9, 10**9, 3, 3)),
    "dimensions whose product overflows": graph(dims(2**32, 2**32, 1, 1)),
    "dimensions that do not fit": graph(dims(4, 4, 3, 4)),
    "an output of another name": graph(renamed_output),
    "an input of another name": graph(input_of("batch", 3, "height", "width", name="image")),
    "an input of four bands": graph(input_of("batch", 4, "height", "width")),
    "an input of doubles": graph(input_of("batch", 3, "height", "width", kind=TensorProto.DOUBLE)),
    "an input of one size": graph(input_of(1, 3, 64, 64)),
    "an input of three dimensions": graph(input_of(3, "height", "width")),
    "a second input": graph(second_input),
    "two channels": graph(two_channels),
    "no output": graph(no_outputs),
    "no nodes": graph(no_nodes),
    "no graph": graph(no_graph),
    "opset 0": graph(opset(0)),
    "a negative opset": graph(opset(-3)),
    "opset 999": graph(opset(999)),
    "no opset": graph(lambda model: model.ClearField("opset_import")),
    "a format of the future": graph(lambda model: setattr(model, "ir_version", 999)),
    "empty": of_bytes(b""),
    "text": of_bytes(b"weights: good\n" * 99),
    "a picture": of_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)),
    "zeros": of_bytes(bytes(9999)),
    "ones": of_bytes(b"\xff" * 9999),
    "HDF5": of_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000)),
    "a pickle": of_bytes(a_pickle),
    "a checkpoint": of_bytes(a_checkpoint),
    "an array of objects": of_bytes(an_array),
    "a folder": a_directory,
    "nothing": lambda folder, chance, good: str(folder / "model.onnx"),
    "a device": lambda folder, chance, good: "/dev/zero",
}
EITHER: dict[str, Make] = {
    **{f"opset {version}": graph(opset(version)) for version in (1, 7, 11, 13, 20, 21, 23)},
    "a format of the past": graph(lambda model: setattr(model, "ir_version", 3)),
    "a blurred probability": graph(before_output(SMOOTH)),
}
