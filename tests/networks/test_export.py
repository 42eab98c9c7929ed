"""Tests of the export of Keras models through tf2onnx."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

from onnx_writer import fold_batch_normalisation
from onnx_writer import to_onnx as written
from talud.engine.margins import receptive_field
from talud.engine.model_file import weights_digest
from talud.errors import StudyError
from talud.networks import unet
from talud.networks.export import to_onnx, with_last_layer
from talud.networks.unet import Scaling

BANDS = 3


def randomised(model: keras.Model, seed: int = 1) -> keras.Model:
    """Set all weights at random, since a bias of 0 would hide a fault."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        values = generator.normal(0, 0.4, weight.shape)
        positive = any(name in weight.path for name in ("variance", "deviation", "gamma"))
        weight.assign(np.abs(values) + 0.3 if positive else values)
    return model


def network(between: Callable[[Any], Any]) -> keras.Model:
    """Return a network that scales its bands, with layers between."""
    stack = layers.Input((None, None, BANDS), name="stack")
    x = between(Scaling(name="scaling")(stack))
    return keras.Model(stack, layers.Conv2D(1, 1, activation="sigmoid", name="probability")(x), name="network")


def run(graph: onnx.ModelProto, stack: np.ndarray) -> np.ndarray:
    """Run a graph on a stack in Keras's axis order."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": np.ascontiguousarray(stack.transpose(0, 3, 1, 2))})[0].transpose(0, 2, 3, 1)


def sample_stack(*shape: int) -> np.ndarray:
    """Return a stack with invalid pixels."""
    stack = np.random.default_rng(2).normal(0, 1, (*shape, BANDS)).astype(np.float32)
    stack[:, 3:5, 7] = np.nan
    return stack


@pytest.mark.parametrize(("bands", "filters", "depth"), [(1, 3, 1), (7, 2, 4)])
def test_export_equals_unet_written_node_by_node(bands: int, filters: int, depth: int) -> None:
    mean, deviation = np.linspace(-5, 40, bands, dtype=np.float32), np.linspace(1, 9, bands, dtype=np.float32)
    model = randomised(unet.build(filters, depth, mean, deviation, seed=11))
    expected = written(model).SerializeToString(deterministic=True)
    assert to_onnx(model).SerializeToString(deterministic=True) == expected


def test_normalisation_is_folded_as_in_closed_form() -> None:
    scale = np.ones(2, np.float32)
    model = randomised(unet.build(3, 2, scale, scale, seed=1, batch_normalisation=True))
    graph = to_onnx(model)
    assert {node.op_type for node in graph.graph.node} >= {"Conv", "Relu"}
    assert not {node.op_type for node in graph.graph.node} & {"BatchNormalization", "Mul", "Add"}
    assert weights_digest(graph) == weights_digest(written(fold_batch_normalisation(model)))


def stem(x: Any) -> Any:
    """Append strided and depth-wise convolutions with normalisation."""
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU(6, name="stem_relu")(layers.BatchNormalization(name="stem_normalisation")(x))
    x = layers.DepthwiseConv2D(5, strides=2, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_normalisation")(x)
    return layers.UpSampling2D(4, name="up")(layers.Conv2D(4, 1, name="pointwise")(x))


def gated(x: Any) -> Any:
    """Append two branches that meet in Add and Multiply."""
    x = layers.Conv2D(4, 3, padding="same", activation="swish", name="first")(x)
    gate = layers.Conv2D(1, 1, activation="sigmoid", name="gate")(x)
    return layers.Add(name="sum")([x, layers.Multiply(name="product")([x, gate])])


def shared(x: Any) -> Any:
    """Append one convolution that two paths with their own normalisation use."""
    convolution = layers.Conv2D(4, 3, padding="same", use_bias=False, name="convolution")
    paths = [convolution(x), convolution(layers.ReLU(name="relu")(x))]
    normalised = [layers.BatchNormalization(name=f"normalisation_{i}")(path) for i, path in enumerate(paths)]
    return layers.Add(name="sum")(normalised)


def nested(x: Any) -> Any:
    """Append a model with layers of its own."""
    inside = layers.Input((None, None, BANDS))
    y = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="probability_linear")(inside)
    return keras.Model(inside, layers.UpSampling2D(2, name="stack")(y), name="inner")(x)


OPERATORS: dict[str, Callable[[Any], Any]] = {
    "strided and depth-wise": stem,
    "grouped": lambda x: layers.Conv2D(4, 3, groups=2, padding="same", name="grouped")(
        layers.Conv2D(4, 1, name="before")(x)
    ),
    "dilated": lambda x: layers.Conv2D(4, 3, dilation_rate=2, padding="same", activation="relu", name="dilated")(x),
    "average pooling": lambda x: layers.UpSampling2D(2, name="up")(layers.AveragePooling2D(2, name="pool")(x)),
    "pooling that overlaps": lambda x: layers.UpSampling2D(2, name="up")(
        layers.MaxPooling2D(3, strides=2, padding="same", name="pool")(x)
    ),
    "two up-samplings": lambda x: layers.UpSampling2D(2, name="second")(
        layers.UpSampling2D(2, name="first")(layers.MaxPooling2D(4, name="pool")(x))
    ),
    "gates": gated,
    "hard swish": lambda x: layers.Conv2D(4, 3, padding="same", activation="hard_swish", name="convolution")(x),
    "hard sigmoid": lambda x: layers.Activation("hard_sigmoid", name="activation")(x),
    "normalisation alone": lambda x: layers.BatchNormalization(name="normalisation")(layers.ReLU(name="relu")(x)),
    "layer called twice": shared,
    "model inside a model": nested,
    "bands": lambda x: layers.Concatenate(name="joined")([x[..., 1:], layers.Conv2D(2, 1, name="rest")(x[..., :1])]),
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_exported_operator_equals_keras(operator: str) -> None:
    model = randomised(network(OPERATORS[operator]))
    graph = to_onnx(model)
    assert not {node.op_type for node in graph.graph.node} & {"Transpose", "Reshape", "Squeeze", "Tile", "Unsqueeze"}
    stack = sample_stack(2, 16, 24)
    expected = np.asarray(model(stack))
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(run(graph, stack), expected, atol=1e-5)


def test_nodes_and_weights_are_named_after_layers() -> None:
    graph = to_onnx(randomised(network(stem))).graph
    assert [node.name for node in graph.node if node.op_type in {"Conv", "Clip", "Resize"}] == [
        "stem", "stem_relu", "depthwise", "pointwise", "up", "probability_linear",
    ]  # fmt: skip
    names = [constant.name for constant in graph.initializer]
    assert names[:2] == ["mean", "deviation"]
    assert {"stem_kernel", "stem_bias", "depthwise_kernel", "up_scales", "probability_bias"} <= set(names)


def test_strided_convolution_pads_less_before_than_after() -> None:
    pads = {
        node.name: list(attribute.ints)
        for node in to_onnx(network(stem)).graph.node
        for attribute in node.attribute
        if attribute.name == "pads"
    }
    assert (pads["stem"], pads["depthwise"]) == ([0, 0, 1, 1], [1, 1, 2, 2])


def test_export_is_reproducible_and_its_sides_are_free() -> None:
    first, again = (to_onnx(randomised(network(stem))) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert weights_digest(first) != weights_digest(to_onnx(randomised(network(stem), seed=2)))
    sides = first.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["batch", BANDS, "height", "width"]


def test_changed_last_layer_is_replaced_in_the_graph() -> None:
    model = randomised(network(stem))
    graph = to_onnx(model)
    model.layers[-1].set_weights([3 * weight for weight in model.layers[-1].get_weights()])
    replaced = with_last_layer(graph, model).SerializeToString(deterministic=True)
    assert replaced == to_onnx(model).SerializeToString(deterministic=True)
    assert replaced != graph.SerializeToString(deterministic=True)


def test_alignment_above_the_first_side_is_exported() -> None:
    def deep(x: Any) -> Any:
        return layers.UpSampling2D(128, name="up")(layers.MaxPooling2D(128, name="pool")(x))

    assert receptive_field(to_onnx(network(deep))).alignment == 128


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda x: layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)]), "averages the whole image"),
        (lambda x: x - keras.ops.mean(x, axis=(1, 2), keepdims=True), "ReduceMean"),
        (lambda x: layers.UpSampling2D(2, interpolation="bilinear")(layers.MaxPooling2D(2)(x)), "use 'nearest'"),
        (lambda x: keras.ops.transpose(x, (0, 2, 1, 3)), "Transpose"),
    ],
    ids=["global pooling", "mean", "bilinear", "transposition"],
)
def test_layer_that_cannot_be_tiled_is_refused(layer: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        to_onnx(network(layer))


EXPORT = """
import sys
import numpy as np
from talud.networks import unet
from talud.networks.export import to_onnx
scale, generator = np.ones(2, np.float32), np.random.default_rng(4)
model = unet.build(2, 1, scale, scale, seed=4)
model.set_weights([generator.normal(1, 0.1, weight.shape) for weight in model.get_weights()])
exported = to_onnx(model).SerializeToString(deterministic=True)
"""


@pytest.mark.slow
def test_model_of_another_backend_gives_the_same_graph(tmp_path: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    written_code = f"{EXPORT}\nsys.stdout.buffer.write(exported)"
    command = [sys.executable, "-W", "ignore", "-c", written_code]
    result = subprocess.run(command, env=environment, capture_output=True, check=True, cwd=tmp_path)
    here: dict[str, Any] = {}
    exec(EXPORT, here)
    assert result.stdout == here["exported"]
