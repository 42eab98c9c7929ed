"""Tests of the model file of each network: parity, exact tiling, int8, registration and rebuilding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import onnx
import pytest

from talud.contract import NetworkArchitecture
from talud.engine.margins import receptive_field
from talud.engine.model_file import save_model, weights_digest
from talud.engine.runtime import Model
from talud.networks import encoders
from talud.networks.catalogue import NAMES, NetworkSpec, build_network, read_network
from talud.networks.export import to_onnx
from talud.networks.rebuilding import from_onnx
from talud.quantization.precision import convert_to_float16, quantize_to_int8
from talud.registry import Store

MEAN, DEVIATION = np.array([90, 110, 70], np.float32), np.array([30, 40, 20], np.float32)
# Networks of the catalogue, and the one encoder with overlapping poolings and with padding of its own.
CASES = (*NAMES, "resnet50")
# Options of each network, its halo (counted by hand for the shallow ones), its alignment, and a raster (height, width)
# with a tile side that gives tiles without an edge of the raster.
NETWORKS: dict[str, tuple[dict[str, Any], int, int, tuple[int, int], int]] = {
    "unet": ({"filters": 3, "depth": 2}, 28, 4, (67, 93), 32),
    "pretrained_unet": ({"filters": 2}, 208, 16, (29, 651), 224),
    "resnet50": ({"filters": 2, "encoder": "resnet50", "weights": "none"}, 192, 16, (29, 619), 208),
    "resunet": ({"filters": 3, "depth": 2}, 20, 4, (67, 81), 28),
    "attention_unet": ({"filters": 3, "depth": 2}, 24, 4, (67, 81), 28),
    "multiscale_unet": ({"filters": 3, "depth": 2}, 24, 4, (67, 81), 28),
    "fusion_unet": ({"filters": 3, "depth": 2, "band_filters": 2}, 24, 4, (67, 81), 28),
    "dual_encoder": (
        {"groups": [{"bands": 2}, {"bands": 1, "pixels": 2}], "filters": 2, "depth": 3},
        48,
        8,
        (51, 165),
        56,
    ),
}


class Case(NamedTuple):
    spec: NetworkSpec
    network: keras.Model
    path: Path
    model: Model
    stack: np.ndarray
    tile: int


@pytest.fixture(scope="module")
def narrow_resnet() -> Iterator[None]:
    """Divide the filters of ResNet50 by 16, which changes no margin."""
    name, stages = "resnet50", encoders.STAGES["resnet50"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.STEM_FILTERS, name, 4)  # type: ignore[misc]
        patch.setitem(encoders.STAGES, name, tuple(each._replace(filters=each.filters // 16) for each in stages))  # type: ignore[misc]
        yield


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, narrow_resnet: None
) -> Case:
    """Return a network with random weights and statistics, and its model file."""
    options, halo, alignment, shape, tile = NETWORKS[request.param]
    spec = read_network("pretrained_unet" if request.param == "resnet50" else request.param, options, "test")
    network = build_network(spec, MEAN, DEVIATION, 1, batch_normalisation=True)
    generator = np.random.default_rng(3)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, values.shape) for values in layer.get_weights()])
    graph = to_onnx(network)
    field = receptive_field(graph)
    assert (field.halo, field.alignment, spec.options.alignment) == (halo, alignment, alignment)
    # A model file does not need the file of the weights that its training started from.
    fields = spec.fields | ({"weights": "absent.h5", "weights_md5": "0" * 32} if "encoder" in options else {})
    stated = {
        "halo": halo,
        "alignment": alignment,
        "weights": weights_digest(graph),
        "network": NetworkArchitecture(name=spec.name, options=fields),
    }
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    save_model(graph, Model.load(tiny_model).contract.replace(**stated), path)
    stack = generator.normal(MEAN, DEVIATION, (*shape, 3)).astype(np.float32)
    stack[5:9, 20:31] = np.nan
    return Case(spec, network, path, Model.load(path), np.ascontiguousarray(np.moveaxis(stack, -1, 0)), tile)


def padded(stack: np.ndarray, alignment: int) -> np.ndarray:
    """Return a stack with NaN up to a multiple of the alignment."""
    sides = [(0, -side % alignment) for side in stack.shape[1:]]
    return np.pad(stack, [(0, 0), *sides], constant_values=np.nan)


def tiled(model: Model, stack: np.ndarray, tile: int) -> np.ndarray:
    """Return the map of a stack in tiles, at least one of them without an edge of the raster at its sides."""
    tiling = model.tiling(stack.shape[1:], tile)
    whole = padded(stack, model.contract.input.alignment)
    result = np.full(stack.shape[1:], np.nan, np.float32)
    for part in tiling:
        window = np.ascontiguousarray(whole[:, *part.window.toslices()])
        result[part.core.toslices()] = model.run_cores([window], [part])[0]
    assert any(part.edges and not (part.edges.left or part.edges.right) for part in tiling)
    return result


def load_variant(case: Case, graph: onnx.ModelProto, precision: str, folder: Path) -> Model:
    save_model(graph, case.model.contract.replace(precision=precision), folder / "variant.onnx")
    return Model.load(folder / "variant.onnx")


def one_pass(model: Model, stack: np.ndarray) -> np.ndarray:
    height, width = stack.shape[1:]
    return model.run(padded(stack, model.contract.input.alignment))[:height, :width]


def test_file_has_the_probabilities_of_the_network(case: Case) -> None:
    whole = padded(case.stack, case.model.contract.input.alignment)
    expected = np.asarray(case.network(np.moveaxis(whole, 0, -1)[np.newaxis]))[0, ..., 0]
    found = one_pass(case.model, case.stack)
    assert expected.std() > 0.001
    np.testing.assert_allclose(found, expected[: found.shape[0], : found.shape[1]], atol=1e-5)


def test_map_in_tiles_equals_that_of_one_pass(case: Case) -> None:
    np.testing.assert_array_equal(tiled(case.model, case.stack, case.tile), one_pass(case.model, case.stack))


def test_int8_file_is_tiled_exactly(case: Case, tmp_path: Path) -> None:
    side = 4 * case.model.contract.input.alignment
    patches = np.random.default_rng(5).normal(MEAN, DEVIATION, (4, side, side, 3)).astype(np.float32)
    graph = quantize_to_int8(onnx.load(case.path), np.ascontiguousarray(np.moveaxis(patches, -1, 1)))
    variant = load_variant(case, graph, "int8", tmp_path)
    found = one_pass(variant, case.stack)
    assert 0 < np.abs(found - one_pass(case.model, case.stack)).mean() < 0.05
    np.testing.assert_array_equal(tiled(variant, case.stack, case.tile), found)


def test_float16_file_has_nearly_the_same_map(case: Case, tmp_path: Path) -> None:
    variant = load_variant(case, convert_to_float16(onnx.load(case.path)), "float16", tmp_path)
    expected = one_pass(case.model, case.stack)
    assert 0 < np.abs(one_pass(variant, case.stack) - expected).mean() < 0.005


# The others are in test_rebuilding.py.
@pytest.mark.parametrize(
    "case", ["resnet50", "resunet", "attention_unet", "fusion_unet", "dual_encoder"], indirect=True
)
def test_network_is_rebuilt_from_its_file(case: Case) -> None:
    rebuilt = from_onnx(onnx.load(case.path), case.model.contract.origin.network, "test")
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in rebuilt.layers)
    side = 2 * case.model.contract.input.alignment
    stack = np.random.default_rng(5).normal(MEAN, DEVIATION, (1, side, side, 3)).astype(np.float32)
    np.testing.assert_allclose(rebuilt(stack), case.network(stack), atol=1e-5)


@pytest.mark.parametrize("case", ["pretrained_unet"], indirect=True)
def test_registered_network_maps_like_its_file(case: Case, tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    tags = {"band_set": "3band", "search": "test", "data_version": "ab" * 16, "commit": "cd" * 20}
    with store.runs.study("3band · test", tags) as parent, store.runs.trial(parent, "one", {}, tags) as trial:
        trial.log_scores({"f1": 0.5, "precision": 0.5, "recall": 0.5, "iou": 0.3})
    made = store.models.register("landslide-unet-3band", onnx.load(case.path), trial.run_id, "a" * 64)
    registered = Model.load(store.models.fetch(made.uri).path)
    assert registered.contract.origin.network == case.model.contract.origin.network
    np.testing.assert_array_equal(one_pass(registered, case.stack), one_pass(case.model, case.stack))
