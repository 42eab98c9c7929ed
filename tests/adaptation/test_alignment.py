"""Tests of the adaptation of a model without labels."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from stack_files import write_stack
from talud.adaptation.alignment import _drop_outliers, adapt, measure_signs
from talud.adaptation.decision import Alignment, DeclinedError
from talud.cli.main import app
from talud.contract import Contract
from talud.engine.model_file import save_model, weights_digest
from talud.engine.runtime import Model
from talud.errors import MismatchError, ModelError
from talud.mapping.reader import open_stack
from talud.measurement.features import FeatureStatistics, measure_features
from talud.measurement.samples import sample_windows
from talud.metrics import confusion

pytestmark = pytest.mark.slow  # the tests share a trained network

SIDE = 256
CUTS = range(0, SIDE, 64)
GAIN, OFFSET = np.array([0.6, 1.3, 0.7], np.float32), np.array([40, -25, 35], np.float32)

Bands = NDArray[np.float32]
Truth = NDArray[np.bool_]


def scene(seed: int, landslide: float = 0.05, soil: float = 0.1) -> tuple[Bands, Truth]:
    """Return a synthetic image (3, SIDE, SIDE) and its landslide mask.

    Landslides are as bright as soil, but rougher.
    """
    generator = np.random.default_rng(seed)

    def blobs(share: float, size: float) -> Truth:
        field = gaussian_filter(generator.normal(size=(SIDE, SIDE)), size)
        return np.asarray(field > np.quantile(field, 1 - share))

    def ground(colour: tuple[int, int, int], rough: float) -> NDArray[np.float64]:
        return np.reshape(colour, (3, 1, 1)) + 10 * light + rough * generator.normal(size=(3, SIDE, SIDE))

    light = gaussian_filter(generator.normal(size=(SIDE, SIDE)), 12)
    light /= light.std()
    truth = blobs(landslide, 3)
    image = np.where(blobs(soil, 10), ground((105, 110, 80), 6), ground((60, 75, 50), 6))
    return np.where(truth, ground((135, 115, 85), 16), image).astype(np.float32), truth


def change_radiometry(image: Bands) -> Bands:
    return image * GAIN[:, np.newaxis, np.newaxis] + OFFSET[:, np.newaxis, np.newaxis]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return a small U-Net trained on a scene, with its feature statistics."""
    import keras

    from onnx_writer import to_onnx
    from talud.networks import unet
    from talud.training.losses import Loss

    image, truth = scene(1)
    mean, deviation = image.mean(axis=(1, 2)), image.std(axis=(1, 2))
    network = unet.build(filters=4, depth=2, mean=mean, deviation=deviation, seed=3)
    network.compile(keras.optimizers.Adam(5e-3), Loss("dice_cross_entropy"), jit_compile=False)
    generator = np.random.default_rng(0)
    for _ in range(100):
        cuts = [
            np.s_[row : row + 64, column : column + 64] for row, column in generator.integers(SIDE - 64, size=(8, 2))
        ]
        stacks = np.stack([np.moveaxis(image, 0, -1)[cut] for cut in cuts])
        network.train_on_batch(stacks, np.stack([truth[cut] for cut in cuts])[..., np.newaxis].astype(np.uint8))
    graph, contract = to_onnx(network), Model.load(tiny_model).contract
    training_windows = np.stack([image[:, row : row + 64, column : column + 64] for row in CUTS for column in CUTS])
    path = tmp_path_factory.mktemp("adapted") / "3band.onnx"
    save_model(
        graph,
        contract.replace(weights=weights_digest(graph)),
        path,
        measure_features(graph, training_windows).to_metadata(),
    )
    return Model.load(path)


def f1(model: Model, image: Bands, truth: Truth, known: Truth | None = None) -> float:
    return confusion(model.run(image) >= model.contract.measured.threshold, truth.astype(np.uint8), known).f1


def save_and_load(
    graph: onnx.ModelProto, contract: Contract, folder: Path, metadata: dict[str, str] | None = None
) -> Model:
    save_model(graph, contract, folder / "new.onnx", metadata)
    return Model.load(folder / "new.onnx")


def test_adapt_restores_f1_after_gain_and_offset(model: Model, tmp_path: Path) -> None:
    image, truth = scene(2)
    raster = write_stack(tmp_path / "basin.tif", change_radiometry(image), tags={"TALUD_AREA": "basin"})
    made = adapt(model, raster)
    new = save_and_load(made.graph, made.contract, tmp_path)
    assert f1(model, change_radiometry(image), truth) < 0.7 < 0.85 < f1(model, image, truth)
    assert f1(new, change_radiometry(image), truth) > f1(model, image, truth) - 0.05
    assert made.contract.origin.weights == weights_digest(onnx.load(new.path)) != model.contract.origin.weights
    adapted = made.contract.derived.adapted
    assert adapted is not None
    assert (adapted.weights, adapted.area, adapted.raster) == (model.contract.origin.weights, "basin", "basin.tif")
    assert adapted.agreement_before < adapted.agreement_after
    assert made.contract.measured.threshold == model.contract.measured.threshold


def add_cloud(image: Bands) -> tuple[Bands, Truth]:
    """Return an image with 30 % unmarked cloud, and the mask of its clear pixels."""
    clear = np.indices((SIDE, SIDE))[0] >= SIDE * 3 // 10
    return np.where(clear, image, 230 + np.random.default_rng(0).normal(0, 4, image.shape)).astype(np.float32), clear


@pytest.mark.parametrize("skewed", ["landslide", "cloud", "soil", "forest", "nothing"])
def test_adapt_hardly_lowers_f1_of_skewed_areas(model: Model, skewed: str, tmp_path: Path) -> None:
    """Adapt to areas with unusual shares of landslide, cloud, soil or forest.

    The loss differs between networks, and therefore between processors, on which training is not bit-identical.
    """
    soil = {"soil": 0.8, "forest": 0.01}.get(skewed, 0.1)
    image, truth = scene(6, landslide=0.3 if skewed == "landslide" else 0.05, soil=soil)
    image, clear = add_cloud(image) if skewed == "cloud" else (image, np.ones_like(truth))
    raster = write_stack(tmp_path / "skewed.tif", image)
    before, after = f1(model, image, truth, clear), None
    with suppress(MismatchError):
        made = adapt(model, raster)
        after = f1(save_and_load(made.graph, made.contract, tmp_path), image, truth, clear)
    assert after is None or after >= before - 0.05


def test_adapt_declines_area_of_half_landslides(model: Model, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "slides.tif", scene(6, landslide=0.45)[0])
    with pytest.raises(DeclinedError, match=r"would fall from 0\.\d{3} to 0\.\d{3}; use the original"):
        adapt(model, raster)


def test_ruined_map_is_never_recommended(model: Model, tmp_path: Path) -> None:
    """Adapt a model whose logits are so high that all of its maps are landslide."""
    graph = onnx.load(model.path)
    metadata = FeatureStatistics.of(graph).to_metadata()
    del graph.metadata_props[:]
    (bias,) = (part for part in graph.graph.initializer if part.name == "probability_bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e4), bias.name))
    ruined = save_and_load(graph, model.contract.replace(landslide_share=0.05), tmp_path, metadata)
    raster = write_stack(tmp_path / "forest.tif", change_radiometry(scene(2)[0]))
    with pytest.raises(DeclinedError) as caught:
        adapt(ruined, raster)
    assert not caught.value.usable
    message = str(caught.value)
    assert "use the original" not in message
    assert "is probably wrong too: as it is 100%, bands aligned 100%, bands and layers aligned 100%, and the" in message
    assert "training areas had 5%; fine-tune it with at least 10 labelled patches" in message
    done = CliRunner().invoke(app, ["adapt", str(ruined.path), str(raster), "--out", str(tmp_path / "out.onnx")])
    assert isinstance(done.exception, DeclinedError)
    assert not (tmp_path / "out.onnx").exists()


def test_aligning_bands_leaves_all_other_weights_unchanged(model: Model, tmp_path: Path) -> None:
    image, truth = scene(2)
    made = adapt(model, write_stack(tmp_path / "basin.tif", change_radiometry(image)), align="bands")
    before, after = constants(onnx.load(model.path)), constants(made.graph)
    changed = {name for name, values in before.items() if values.tobytes() != after[name].tobytes()}
    assert changed == {"mean", "deviation"}
    assert made.graph.graph.node == onnx.load(model.path).graph.node
    adapted = made.contract.derived.adapted
    assert adapted is not None
    assert (adapted.aligned, adapted.strength, adapted.label) == ("bands", 1, "bands aligned")
    assert [one.alignment for one in made.signs] == [None, Alignment("bands", 1)]
    # The network scaled by the moments of the training image, and now scales by those of the new one, except outliers.
    there = change_radiometry(image)
    np.testing.assert_allclose(after["mean"].ravel(), there.mean((1, 2)), atol=2)
    np.testing.assert_allclose(after["deviation"].ravel(), there.std((1, 2)), rtol=0.05)
    new = save_and_load(made.graph, made.contract, tmp_path)
    assert f1(new, change_radiometry(image), truth) > f1(model, image, truth) - 0.05


def constants(graph: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {part.name: numpy_helper.to_array(part) for part in graph.graph.initializer}


def test_half_strength_moves_statistics_half_way(model: Model, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "basin.tif", change_radiometry(scene(2)[0]))
    half, whole = (
        constants(adapt(model, raster, strength=strength, align="layers").graph)["deviation"] ** 2
        for strength in (0.5, 1)
    )
    training_windows = constants(onnx.load(model.path))["deviation"] ** 2
    np.testing.assert_allclose(half, (training_windows + whole) / 2, rtol=1e-4)


def test_adapt_uses_patches_of_a_patch_stack(model: Model, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "patches.tif", change_radiometry(scene(2)[0]), tags={"TALUD_PATCH": "64"})
    made = adapt(model, raster).contract.derived.adapted
    assert made is not None
    assert (made.squares, made.side) == (16, 64)


def test_self_agreement_is_0_for_an_empty_map(model: Model) -> None:
    image, truth = scene(2)
    signs = measure_signs(model, image[np.newaxis])
    assert signs.agreement > 0.7
    assert signs.share == pytest.approx(truth.mean(), abs=0.02)
    empty = measure_signs(model, np.full_like(image, model.contract.input.bands[0].mean)[np.newaxis])
    assert (empty.agreement, empty.share) == (0, 0)


def test_adapt_reports_too_few_windows(model: Model, tmp_path: Path) -> None:
    few = np.where(np.indices((SIDE, SIDE))[0] < 64, scene(2)[0], np.float32(np.nan))
    few[:, :, :64] = np.nan
    raster = write_stack(tmp_path / "few.tif", few)
    with pytest.raises(
        MismatchError, match=r"has \d squares of 64 pixels of which at least 75% can be mapped, but .* needs 4"
    ):
        adapt(model, raster)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [1, 20, 64])
def test_adapt_refuses_small_raster_without_warnings(model: Model, tmp_path: Path, side: int) -> None:
    raster = write_stack(tmp_path / "small.tif", scene(2)[0][:, :side, :side])
    with pytest.raises(MismatchError, match=r"small\.tif: has \d squares of 64 pixels"):
        adapt(model, raster)


def test_windows_without_a_radiometric_band_are_dropped() -> None:
    sample = np.random.default_rng(0).normal(100, 1, (6, 2, 4, 4)).astype(np.float32)
    sample[2, 0] = np.nan
    sample[3, 1, 0] = np.nan
    kept = _drop_outliers(sample, (True, False))
    assert len(kept) >= 4
    assert not np.isnan(kept[:, 0]).any()
    assert not len(_drop_outliers(np.full_like(sample, np.nan), (True, True)))
    assert not len(_drop_outliers(sample[:0], (True, True)))


def test_adapt_ignores_pixels_of_the_cloud_band(model: Model, tmp_path: Path) -> None:
    values = change_radiometry(scene(1)[0])
    hidden = np.indices((SIDE, SIDE))[0] < SIDE // 4
    seen = np.where(hidden, np.float32(np.nan), values)
    expected = adapt(model, write_stack(tmp_path / "seen.tif", seen))
    bands = ("red", "green", "blue", "cloud")
    cloudy = np.concatenate([np.where(hidden, np.float32(240), values), hidden[np.newaxis].astype(np.float32)])
    made = adapt(model, write_stack(tmp_path / "cloudy.tif", cloudy, bands))
    assert made.contract.origin.weights == expected.contract.origin.weights


def test_sample_windows_are_valid_and_reproducible(model: Model, tmp_path: Path) -> None:
    image = scene(2)[0]
    image[:, :100, :64] = np.nan
    with open_stack(write_stack(tmp_path / "basin.tif", image), model.contract) as stack:
        found = [sample_windows(stack, stack.grid.windows(64), 64) for _ in range(2)]
    assert found[0].shape == (14, 3, 64, 64)
    assert np.array_equal(found[0], found[1], equal_nan=True)


def test_adapt_refuses_files_without_features_or_adapted(model: Model, tiny_model: Path, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "basin.tif", change_radiometry(scene(2)[0]))
    with pytest.raises(ModelError, match="holds no feature statistics"):
        adapt(Model.load(tiny_model), raster)
    made = adapt(model, raster)
    with pytest.raises(ModelError, match="was already adapted to basin"):
        adapt(save_and_load(made.graph, made.contract, tmp_path), raster)


def test_adapt_command_requires_out_for_a_file(model: Model, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "basin.tif", change_radiometry(scene(2)[0]))
    out = tmp_path / "new" / "basin.onnx"
    asked = CliRunner().invoke(app, ["adapt", str(model.path), str(raster)])
    assert (asked.exit_code, "--out" in asked.output) == (2, True)
    done = CliRunner().invoke(app, ["adapt", str(model.path), str(raster), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "adapted to basin (b" in done.output
    assert "as it is" in done.output
    assert Model.load(out).contract.derived.adapted is not None


def test_adapt_ignores_unmarked_clouds(model: Model, tmp_path: Path) -> None:
    """Cover 4 of 16 windows with cloud, which changes nothing."""
    image = change_radiometry(scene(2)[0])
    cloudy = np.where(np.indices((SIDE, SIDE))[0] < 64, np.float32(230), image)
    made = adapt(model, write_stack(tmp_path / "cloudy.tif", cloudy), align="layers")
    clear = adapt(model, write_stack(tmp_path / "clear.tif", image[:, 64:]), align="layers")
    for name, values in constants(made.graph).items():
        np.testing.assert_allclose(values, constants(clear.graph)[name], rtol=1e-3, atol=1e-4)
