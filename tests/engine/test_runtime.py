"""Tests of loading and running models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from stack_files import noise
from talud import load_model
from talud.contract import METADATA_KEY
from talud.engine.runtime import Model, RegistryVersion
from talud.engine.tiling import Tiling, batch_tiles, round_up
from talud.errors import ModelError

ODD_SIZES = [(1, 1), (5, 203), (131, 97)]


def in_one_pass(model: Model, stack: np.ndarray) -> np.ndarray:
    """Return the output of a plain session over the whole raster.

    The raster is padded with NaN to a multiple of the alignment.
    """
    height, width = stack.shape[1:]
    cell = model.contract.input.alignment
    padded = np.full((len(stack), round_up(height, cell), round_up(width, cell)), np.nan, np.float32)
    padded[:, :height, :width] = stack
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    return session.run(None, {"stack": padded[np.newaxis]})[0][0, 0, :height, :width]


def tiled(model: Model, stack: np.ndarray, tiling: Tiling, plain: bool = False) -> np.ndarray:
    padded = np.full((len(stack), *tiling.padded), np.nan, np.float32)
    padded[:, : stack.shape[1], : stack.shape[2]] = stack
    result = np.full(stack.shape[1:], np.nan, np.float32)
    for tile in tiling:
        window = np.ascontiguousarray(padded[:, *tile.window.toslices()])
        result[tile.core.toslices()] = (
            model.run(window)[tile.core_slices] if plain else model.run_cores([window], [tile])[0]
        )
    return result


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("size", [*ODD_SIZES, (201, 245)])
def test_tiles_equal_one_pass_over_the_raster(unets: dict[int, Model], depth: int, size: tuple[int, int]) -> None:
    model, stack = unets[depth], noise(*size)
    stack[0, size[0] // 3 : size[0] // 2, : size[1] // 2] = np.nan
    whole = in_one_pass(model, stack)
    for core in (1, 40, 64):
        if core == 1 and size[0] * size[1] > 20_000:
            continue  # a core of one lattice cell, on the small rasters only
        for plain in (True, False):
            assert np.abs(tiled(model, stack, model.tiling(size, core), plain) - whole).max() == 0
    assert np.abs(model.probability(stack) - whole).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("size", [(131, 97), (201, 245)])
def test_batched_tiles_equal_one_pass_over_the_raster(
    unets: dict[int, Model], depth: int, size: tuple[int, int]
) -> None:
    model, stack = unets[depth], noise(*size)
    stack[2, size[0] // 3 : size[0] // 2, : size[1] // 2] = np.nan
    whole = in_one_pass(model, stack)
    for core, batch in ((32, 3), (64, 2)):
        tiling = model.tiling(size, core)
        padded = np.full((3, *tiling.padded), np.nan, np.float32)
        padded[:, : size[0], : size[1]] = stack
        result = np.full(size, np.nan, np.float32)
        for tiles in batch_tiles(tiling, batch):
            cores = model.run_cores([padded[:, *tile.window.toslices()] for tile in tiles], tiles)
            for tile, core_ in zip(tiles, cores, strict=True):
                result[tile.core.toslices()] = core_
        assert np.array_equal(result, whole)


def test_batch_runs_in_one_pass(unets: dict[int, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles with an edge in their halo are run one by one."""
    passes: list[int] = []
    probability = Model._probability

    def noted(self: Model, session: object, batch: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        passes.append(len(batch))
        return probability(self, session, batch, shape)

    monkeypatch.setattr(Model, "_probability", noted)
    tiling = unets[2].tiling((64, 320), 32)
    for tiles in batch_tiles(tiling, 4):
        unets[2].run_cores([np.zeros((3, *tiling.window), np.float32)] * len(tiles), tiles)
    assert sorted(passes) == [1] * 4 + [4] * 4


def test_halo_is_rounded_up_to_at_most_the_exact_one(unets: dict[int, Model]) -> None:
    model = unets[4]
    halos = {wanted: model.tiling((999, 999), 256, wanted).rows.halo for wanted in (None, 0, 1, 32, 33, 112, 113, 9999)}
    assert halos == {None: 112, 0: 0, 1: 16, 32: 32, 33: 48, 112: 112, 113: 112, 9999: 112}
    assert model.tiling((999, 999), 256, 9999) == model.tiling((999, 999), 256)


def test_memory_grows_with_the_batch(unets: dict[int, Model]) -> None:
    model = unets[4]
    tiling = model.tiling((9000, 9000), memory=2 * 10**8)
    assert model.memory_bytes(tiling) <= 2 * 10**8 < model.memory_bytes(tiling, 4)
    fixed = model.memory_bytes(tiling, 0)
    assert model.memory_bytes(tiling, 4) - fixed == 4 * (model.memory_bytes(tiling) - fixed)
    assert model.batch_size(tiling) == 1  # on the CPU
    assert model.memory_bytes(model.tiling((50, 50)), 4) == model.memory_bytes(model.tiling((50, 50)))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_smaller_halo_or_shifted_lattice_changes_the_result(unets: dict[int, Model], depth: int) -> None:
    """This shows that the previous test can fail."""
    model, stack = unets[depth], noise(301, 345)
    whole = in_one_pass(model, stack)
    contract = model.contract
    short = Tiling.of((301, 345), 64, contract.input.halo // 2, contract.input.alignment)
    assert np.abs(tiled(model, stack, short, plain=True) - whole).max() > 1e-4
    aside = model.probability(stack[:, :, 1:])
    far = slice(contract.input.halo, -contract.input.halo) if depth < 4 else slice(None)
    assert np.abs(aside - whole[:, 1:])[:, far].max() > 1e-4


def test_large_array_is_tiled_automatically(unets: dict[int, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model, stack = unets[2], noise(150, 170)
    monkeypatch.setattr("talud.engine.planning.DEFAULT_MEMORY_BYTES", 5 * 10**6)
    assert len(model.tiling((150, 170))) > 1
    assert np.array_equal(model.probability(stack), in_one_pass(model, stack))


def test_model_states_the_provider_of_its_session(model: Model) -> None:
    assert model.provider == model._session.get_providers()[0]
    assert (model.name, model.version) == ("3band", "unregistered")


def test_registered_model_has_its_registry_name(tiny_model: Path) -> None:
    model = Model.load(tiny_model, RegistryVersion("landslide-unet-3band", "7"))
    assert (model.name, model.version) == ("landslide-unet-3band", "7")


def test_load_model_accepts_paths(tiny_model: Path) -> None:
    assert load_model(tiny_model).contract == load_model(str(tiny_model)).contract


def no_contract(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def broken_contract(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {METADATA_KEY: '{"version": 1'})


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "x"
    for node in model.graph.node:
        node.input[:] = ["x" if name == "stack" else name for name in node.input]


def fixed_size(model: onnx.ModelProto) -> None:
    for side in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = 64


def fewer_bands_in_contract(model: onnx.ModelProto) -> None:
    stated = Model.load(Path(model.doc_string)).contract
    helper.set_model_props(model, stated.replace(bands=stated.input.bands[:2]).to_metadata())


def wrong_alignment(model: onnx.ModelProto) -> None:
    stated = Model.load(Path(model.doc_string)).contract
    helper.set_model_props(model, stated.replace(alignment=3).to_metadata())


def huge_alignment(model: onnx.ModelProto) -> None:
    stated = Model.load(Path(model.doc_string)).contract
    helper.set_model_props(model, stated.replace(alignment=10**9).to_metadata())


def weights_gone(model: onnx.ModelProto) -> None:
    kernel = next(value for value in model.graph.initializer if value.name == "probability_kernel")
    kernel.raw_data = np.full(len(kernel.raw_data) // 4, np.nan, np.float32).tobytes()


def another_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    model.graph.node.append(helper.make_node("Identity", ["stack"], ["more"]))


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_contract, "contains no talud contract"),
        (broken_contract, "contract is damaged"),
        (another_input, "'stack'"),
        (fixed_size, "height and width free"),
        (fewer_bands_in_contract, "(batch, 2, height, width)"),
        (wrong_alignment, "alignment of 3"),
        (huge_alignment, "alignment"),
        (weights_gone, "not probabilities"),
        (another_output, "'probability'"),
        (newer_opset, "opset"),
    ],
)
def test_foreign_model_is_refused_in_one_line(
    tiny_model: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    proto = onnx.load(tiny_model)
    proto.doc_string = str(tiny_model)
    change(proto)
    path = tmp_path / "changed.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError) as caught:
        Model.load(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000), "½".encode() * 500, None])
def test_file_that_is_not_a_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"file\.onnx") as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)


def test_damaged_model_is_refused_or_returns_probabilities(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit in a weight leaves a valid model; others raise ModelError."""
    content, chance = tiny_model.read_bytes(), random.Random(1)
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        for _ in range(20):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        if number % 3 == 0:
            del damaged[chance.randrange(len(damaged)) :]
        path = tmp_path / "damaged.onnx"
        path.write_bytes(damaged)
        try:
            probability = Model.load(path).probability(noise(20, 20))
            assert ((probability >= 0) & (probability <= 1)).all()
        except ModelError:
            refused += 1
    assert refused >= 20
    assert capfd.readouterr() == ("", "")
